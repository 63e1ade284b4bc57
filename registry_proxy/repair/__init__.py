"""Replicas made equal: inspection, comparison, repair, recovery, and maintenance of single replicas."""
