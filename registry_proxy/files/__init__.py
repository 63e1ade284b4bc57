"""Files, and the machinery around them: locks, whole files, shared pages, hashes, and a thread that writes."""
