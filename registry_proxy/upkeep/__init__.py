"""The resources of the admin API by which a node is kept: replicas, comparisons, cache, signing key, reload."""
