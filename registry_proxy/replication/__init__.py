"""Writing to replicas: upload sessions, fan-out with a quorum, the journal of what each replica misses."""
