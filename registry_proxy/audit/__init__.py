"""The tamper-evident log: its chain, signatures, sinks, and the search in it."""
