"""The admin listener: permissions, replicas, repositories, audit, health and metrics over HTTP."""
