"""Shared by all commands: the client of the admin API, credentials, output, times, errors."""
