"""Events for the audit log, and the outcome of a reload."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from registry_proxy.protocol.scope import Action


class AuditKind(StrEnum):
    """The callers that can cause an event, which decides how many lines it may take and how long these are kept."""

    ACT = "act"
    """A change by an administrator, or of the service by itself: always a line of its own."""

    ACCOUNT = "account"
    """A login, or a change by a user or an owner of namespaces: bounded for each subject, and kept as long as acts."""

    TRAFFIC = "traffic"
    """A request of a client, and every refusal: refusals are bounded for each address."""


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """An event for the audit log: a subject did something, or was refused. No field may hold a secret.

    Args:
        action: what it is: login, pull, push, delete, or a resource of the admin API and its method (``users.put``).
        outcome: ok, refused (credentials), limited, denied (a right) or failed.
        subject: typed, such as ``user:ann``; of a refused login, the claimed one.
        address: the client's.
        repository: the canonical name.
        tag: where one is named.
        digest: where one is named or made.
        rule: the id of the grant that decided, or the reason, also that of a login which its answer does not tell.
        detail: what else there is, as JSON has it.
        kind: the callers that can cause it.
    """

    action: str
    outcome: str
    subject: str = ""
    address: str = ""
    repository: str = ""
    tag: str = ""
    digest: str = ""
    rule: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    kind: AuditKind = AuditKind.TRAFFIC


AskedRight = tuple[str, str, Action, str | None]
"""A question that was decided: subject, canonical repository, action, tag."""


class AuditLog(Protocol):
    """Remembers events; no method fails, and only ``written`` waits."""

    @property
    def records_pulls(self) -> bool:
        """Whether it records each allowed pull."""

    def record(self, event: AuditEvent) -> None:
        """Take an event of the request that is being answered."""

    async def written(self) -> None:
        """Wait until the events recorded so far survive the end of this process, for a second at most."""

    def asked(self, right: AskedRight) -> None:
        """Record a decided question, so that it can be put to another policy as well."""


@dataclass(frozen=True, slots=True)
class ReloadOutcome:
    """The outcome of reading the configuration again.

    ``generation`` is that of the workers that serve now, from 1. ``faults`` are those of the configuration, each with
    its place; ``failure`` is why workers did not start with it. With either the old workers serve on, with the old one.
    """

    generation: int
    faults: tuple[str, ...] = ()
    failure: str = ""
