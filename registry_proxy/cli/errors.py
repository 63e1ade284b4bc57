"""The words of a command that cannot do its work."""

from collections.abc import Sequence


class CommandError(Exception):
    """A failure told to a person: what happened and to what, then the faults, then what to do next. Exit status 1.

    Args:
        message: one sentence.
        faults: more lines, one a fault.
        hint: what to do next.
    """

    def __init__(self, message: str, *, faults: Sequence[str] = (), hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.faults = tuple(faults)
        self.hint = hint


class NotAdminError(CommandError):
    """The login is good, and not an admin's."""
