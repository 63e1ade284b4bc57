"""Replicas behind us, reading: routes, health, choice, one HTTP client each, fail-over."""
