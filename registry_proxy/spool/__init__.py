"""Uploads on their way: written once, followed by the senders to the replicas, committed to the cache."""
