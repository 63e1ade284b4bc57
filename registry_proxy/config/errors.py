"""Failures of the start."""


class StartError(Exception):
    """The service cannot start; the text says why, in words for the operator."""
