"""The outcome of a look-up: an answer that is here, or the way to one that needs a question."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Ask(Generic[_T]):
    """The way to an answer that is not here. Nothing was counted or begun; ``ask`` is called once, or never."""

    ask: Callable[[], Awaitable[_T]]


async def answer_of(found: _T | Ask[_T]) -> _T:
    """Return an answer that is here, or ask for it."""
    return await found.ask() if isinstance(found, Ask) else found


def then(found: _T | Ask[_T], make: Callable[[_T], _R]) -> _R | Ask[_R]:
    """Return what is made of an answer, as soon as that is here."""
    if not isinstance(found, Ask):
        return make(found)

    async def ask() -> _R:
        return make(await found.ask())

    return Ask(ask)
