"""The words of a command that cannot do its work."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class CommandError(Exception):
    """A failure in words for a person: the event and its object, then the faults, then the next step.

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
        self.status = 1
        """The exit status of the command."""


class NotAdminError(CommandError):
    """The login is good, and not an admin's."""


@contextmanager
def failing_with(status: int) -> Iterator[None]:
    """Have a failure end a command with another status than 1, which is an answer of it."""
    try:
        yield
    except CommandError as error:
        error.status = status
        raise
