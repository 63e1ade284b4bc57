"""The settings: their model, sources, checks, and the replicas that DNS knows."""
