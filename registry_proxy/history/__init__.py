"""The history of tags: its record, its bounds, and the ways back to an earlier state."""
