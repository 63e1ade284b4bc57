"""State that outlives a process: SQLite on one node, Redis for several, behind one port."""
