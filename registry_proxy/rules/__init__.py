"""Image rules: conditions for what tags may be, judged when a tag is moved or deleted."""
