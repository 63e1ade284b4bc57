"""Deployments: reports of what was made to run in an environment, and the receipts that stay on record."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Protocol, Self

from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.reference import Digest

HISTORY_MAX = 10
"""Limit of the receipts of a repository in an environment; the one that runs is kept beside them."""


class Outcome(StrEnum):
    """The end of a deployment."""

    SUCCEEDED = "succeeded"
    """The digest runs in the environment now, in place of all others of the repository."""

    FAILED = "failed"
    """The digest does not run; the one before still does."""

    REMOVED = "removed"
    """Nothing of the repository runs in the environment any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentReport:
    """The content of a report before its rules are checked; the fields of the admin API.

    Args:
        environment: such as ``production``.
        repository: the canonical name.
        digest: of the manifest.
        outcome: see ``Outcome``.
        tag: by which the digest was found; "" where none is named.
        at: seconds since the epoch; None for now.
    """

    environment: str
    repository: str
    digest: str
    outcome: str
    tag: str = ""
    at: float | None = None


@dataclass(frozen=True, slots=True)
class ImageLabels:
    """The origin of an image as its labels or annotations state it; "" where they do not.

    Args:
        source: ``org.opencontainers.image.source``, as a rule the URL of a repository of code.
        revision: ``org.opencontainers.image.revision``, as a rule the commit.
    """

    source: str = ""
    revision: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """A report on record.

    Args:
        id: unique.
        digest: of the manifest, as all fields up to ``at`` in the report.
        outcome: the end of the deployment.
        tag: "" where none was named.
        at: seconds since the epoch; of the last of several reports that say the same.
        since: the time of the first of these.
        subject: the sender, such as ``robot:deployer`` or ``subscription:ci``.
        source: see ``ImageLabels``.
        revision: see ``ImageLabels``.
    """

    id: str
    digest: str
    outcome: Outcome
    tag: str = ""
    at: float
    since: float
    subject: str
    source: str = ""
    revision: str = ""

    def stored(self) -> dict[str, Any]:
        """Return the receipt as plain JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Self:
        """Return the receipt that ``stored`` returned; fields that a later release stored are left out."""
        known = {name: value[name] for name in cls.__slots__ if name in value}
        return cls(**{**known, "outcome": Outcome(known["outcome"])})

    def repeats(self, other: "Receipt") -> bool:
        """Tell whether it says nothing that another one did not say."""
        return (self.digest, self.tag, self.outcome) == (other.digest, other.tag, other.outcome)


@dataclass(frozen=True, slots=True)
class DeploymentHistory:
    """The receipts of a repository in an environment, the newest first."""

    repository: str
    environment: str
    receipts: Sequence[Receipt] = ()
    revision: int = 0

    @property
    def running(self) -> Receipt | None:
        """The receipt of the digest that runs; None where none does."""
        ended = (each for each in self.receipts if each.outcome is not Outcome.FAILED)
        last = next(ended, None)
        return last if last is not None and last.outcome is Outcome.SUCCEEDED else None

    def with_receipt(self, receipt: Receipt) -> tuple["DeploymentHistory", Receipt, bool]:
        """Return the history with one more receipt, this receipt as it is kept, and whether it repeats another one.

        A receipt that repeats the one before it takes its place, so that a deployer that reports each minute
        displaces nothing.
        """
        newer = [each for each in self.receipts if each.at > receipt.at]
        older = list(self.receipts[len(newer) :])
        is_repeated = bool(older) and receipt.repeats(older[0])
        if is_repeated:
            receipt = replace(receipt, since=older.pop(0).since)
        history = replace(self, receipts=[*newer, receipt, *older])
        running, kept = history.running, history.receipts[:HISTORY_MAX]
        if running is not None and running not in kept:
            kept = [*kept, running]
        return replace(history, receipts=kept), receipt, is_repeated


ReadLabels = Callable[[RoutedRepository, Digest], Awaitable[ImageLabels]]
"""Returns the labels of a manifest. Raises RegistryError where the repository does not hold it, and
UpstreamUnavailableError where that cannot be known."""


class DeploymentAnswers(Protocol):
    """Takes the reports that receivers of events answer with."""

    async def take(self, report: DeploymentReport, subscription: str) -> None:
        """Put a report on record; one that is not valid is left out.

        Raises:
            StoreUnavailableError: it is not on record, and the event is to be delivered again.
        """
