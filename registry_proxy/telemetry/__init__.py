"""The operator's view: metrics and logs."""
