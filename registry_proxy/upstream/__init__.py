"""The replicas of an upstream, reading: routes, health, choice, fail-over."""
