"""Replicas behind us, writing: upload sessions, fan-out with a quorum, the journal of what is missing, repair."""
