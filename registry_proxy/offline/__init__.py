"""Work on a node's state while the service does not run: backup, restore, import, reset."""
