"""What the operator sees: metrics, logs, and the audit log."""
