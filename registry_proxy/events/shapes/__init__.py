"""The shapes in which receivers get events: one file each, a function from a delivery to a body and its media type."""
