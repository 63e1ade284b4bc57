"""Deployments: the receipts of each repository in each environment."""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from http import HTTPStatus
from typing import Any

from registry_proxy.access.faults import Faults, InvalidError, faults_of
from registry_proxy.access.subject import NAME_FAULT, is_name
from registry_proxy.directory.revise import NotFoundError, Records, Revised
from registry_proxy.ports.deployments import (
    DeploymentHistory,
    DeploymentReport,
    ImageLabels,
    Outcome,
    ReadLabels,
    Receipt,
)
from registry_proxy.ports.errors import FillFailedError, UpstreamUnavailableError
from registry_proxy.ports.events import AuditEvent, AuditKind, AuditLog
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.outbox import Actor, EventType, Outbox
from registry_proxy.ports.store import Change, Record, Store, StoreChanges, Table
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import (
    RESERVED_TAG_PREFIX,
    Digest,
    Repository,
    is_repository,
    is_tag,
    parse_digest,
    parse_repository,
)

ENVIRONMENTS_MAX = 50
"""Limit of the environments of a repository; where nothing runs any more gives way."""

HISTORIES_MAX = 10_000
"""Limit of the repositories in environments."""

SHARE_MAX = 2500
"""Limit of those whose last report one subject has sent, so that no deployer takes the room of all others."""

_AHEAD_MAX_SECONDS = 300.0
_SHOWN_MAX = 100
_log = logging.getLogger(__name__)


class ImageUnavailableError(Exception):
    """No replica can say now whether the repository holds the image."""


class Deployments(Records[DeploymentHistory]):
    """Reports and receipts; every method raises StoreUnavailableError.

    Args:
        store: holds the receipts.
        changes: tells when they have changed.
        outbox: makes the events of deployments.
        route: says where a repository lies.
        read_labels: reads the labels of an image.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        *,
        store: Store,
        changes: StoreChanges,
        outbox: Outbox,
        route: Callable[[Repository], RoutedRepository],
        read_labels: ReadLabels,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(store, Table.DEPLOYMENTS, "deployment", _history_of)
        self._changes = changes
        self._outbox = outbox
        self._route = route
        self._read_labels = read_labels
        self._clock = clock
        self._reading = asyncio.Lock()
        self._version = -1
        self._known: Sequence[DeploymentHistory] = ()

    async def list(self) -> Sequence[DeploymentHistory]:
        """Return all histories, by repository and environment; they are read again when one has changed."""
        await self._changes.check()
        async with self._reading:
            version = self._changes.version(Table.DEPLOYMENTS)
            if version != self._version:
                records = await self._store.list(Table.DEPLOYMENTS)
                # In a thread: a hundred thousand receipts take a second.
                self._known = await asyncio.to_thread(_histories_of, records, self._known)
                self._version = version
            return self._known

    async def running(self) -> Mapping[Repository, Collection[Digest]]:
        """Return the digests that run somewhere, by repository."""
        found: dict[Repository, set[Digest]] = {}
        for history in await self.list():
            if (running := history.running) is not None:
                found.setdefault(Repository(history.repository), set()).add(parse_digest(running.digest))
        return found

    async def report(
        self, given: DeploymentReport, reporter: Actor, *, must_be_known: bool = True
    ) -> tuple[DeploymentHistory, Receipt]:
        """Put a report on record, and its event into the outbox; return the history and the receipt.

        A report that says the same as the one before it is no event.

        Args:
            given: the report.
            reporter: the sender.
            must_be_known: whether a manifest that the repository does not hold is refused.

        Raises:
            InvalidError: with every fault of the report; where there is no room.
            NotFoundError: the repository does not hold the manifest.
            ImageUnavailableError: this cannot be known.
        """
        now = self._clock()
        if faults := _faults(given, now):
            raise InvalidError(faults)
        routed = self._find_route(given.repository)
        labels = await self._labels(routed, given, must_be_known=must_be_known)
        at = now if given.at is None else given.at
        receipt = Receipt(
            id=str(uuid.uuid4()),
            digest=given.digest,
            outcome=Outcome(given.outcome),
            tag=given.tag,
            at=at,
            since=at,
            subject=reporter.subject,
            **asdict(labels),
        )

        async def make(current: DeploymentHistory | None) -> Revised[tuple[DeploymentHistory, Receipt]]:
            room = None if current is not None else await self._make_room(given.repository, reporter.subject)
            before = current or DeploymentHistory(given.repository, given.environment)
            history, kept, is_repeated = before.with_receipt(receipt)
            event = None
            if not is_repeated:
                event = await self._outbox.entry(EventType.DEPLOYMENT, routed, reporter, **_event_fields(given, kept))
            stored = {"receipts": [each.stored() for each in history.receipts]}
            return Revised(stored, (history, kept), [each for each in (room, event) if each is not None])

        result, _ = await self._revise(_key(given.repository, given.environment), make)
        return result

    def _find_route(self, repository: str) -> RoutedRepository:
        try:
            return self._route(parse_repository(repository))
        except RegistryError as error:
            raise InvalidError([("repository", error.message)]) from error

    async def _labels(self, routed: RoutedRepository, given: DeploymentReport, *, must_be_known: bool) -> ImageLabels:
        try:
            return await self._read_labels(routed, parse_digest(given.digest))
        except RegistryError as error:
            if must_be_known and error.status == HTTPStatus.NOT_FOUND:
                raise NotFoundError(f"there is no manifest {given.digest} in {given.repository}") from error
            if must_be_known:
                raise ImageUnavailableError from error
        except (UpstreamUnavailableError, FillFailedError) as error:
            if must_be_known:
                raise ImageUnavailableError from error
        return ImageLabels()

    async def _make_room(self, repository: str, subject: str) -> Change | None:
        """Return the change that makes room for one more history; None where there is room.

        Raises:
            InvalidError: no room can be made.
        """
        histories = await self.list()
        own = [each for each in histories if each.repository == repository]
        sent = [each for each in histories if each.receipts[0].subject == subject]
        for those, limit, field, which in (
            (own, ENVIRONMENTS_MAX, "environment", f"environments of {repository}"),
            (sent, SHARE_MAX, "repository", f"deployments that {subject} has reported"),
            (histories, HISTORIES_MAX, "repository", "deployments"),
        ):
            if len(those) >= limit:
                ended = min((each for each in those if each.running is None), key=_last_at, default=None)
                if ended is None:
                    words = f"there are {limit} {which} already: report as removed where nothing runs any more"
                    raise InvalidError([(field, words)])
                return Change(Table.DEPLOYMENTS, _key(ended.repository, ended.environment), None, ended.revision)
        return None


class AnsweredDeployments:
    """Puts the deployments on record that receivers of events report (ports.deployments.DeploymentAnswers).

    Args:
        deployments: takes them.
        audit: receives each of them.
    """

    def __init__(self, deployments: Deployments, audit: AuditLog) -> None:
        self._deployments = deployments
        self._audit = audit

    async def take(self, report: DeploymentReport, subscription: str) -> None:
        reporter = Actor(f"subscription:{subscription}")
        event = AuditEvent(
            "deployments.answer",
            "ok",
            subject=reporter.subject,
            repository=report.repository,
            tag=report.tag,
            digest=report.digest,
            detail={"environment": report.environment[:_SHOWN_MAX], "outcome": report.outcome[:_SHOWN_MAX]},
            kind=AuditKind.ACCOUNT,
        )
        try:
            await self._deployments.report(report, reporter, must_be_known=False)
        except InvalidError as error:
            _log.info("the receiver of %s answered with a report that is not valid: %s", subscription, error)
            event = replace(event, outcome="failed", rule=str(error), kind=AuditKind.TRAFFIC)
        self._audit.record(event)


def _faults(given: DeploymentReport, now: float) -> Faults:
    is_past = given.at is None or 0 < given.at <= now + _AHEAD_MAX_SECONDS
    return faults_of(
        environment=None if is_name(given.environment) else f"{NAME_FAULT}, such as production",
        repository=None if is_repository(given.repository) else "expected the name of a repository, such as team/app",
        digest=None if _is_digest(given.digest) else "expected the digest of a manifest, such as sha256:…",
        outcome=None if given.outcome in list(Outcome) else f"expected one of {', '.join(Outcome)}",
        tag=None if not given.tag or _is_tag(given.tag) else "expected a tag, such as v1",
        at=None if is_past else "expected a time that is not in the future",
    )


def _event_fields(given: DeploymentReport, receipt: Receipt) -> Mapping[str, Any]:
    detail = {"environment": given.environment, "outcome": receipt.outcome.value, "deployed_at": receipt.at}
    labels = {"source": receipt.source, "revision": receipt.revision}
    return {
        "tag": receipt.tag,
        "digest": receipt.digest,
        "detail": {**detail, **{name: text for name, text in labels.items() if text}},
    }


def _key(repository: str, environment: str) -> str:
    return f"{repository}|{environment}"


def _history_of(record: Record) -> DeploymentHistory:
    repository, _, environment = record.key.partition("|")
    receipts = [Receipt.of(each) for each in record.value["receipts"]]
    return DeploymentHistory(repository, environment, receipts, record.revision)


def _histories_of(records: Sequence[Record], known: Sequence[DeploymentHistory]) -> Sequence[DeploymentHistory]:
    """Return the histories of records, those that have not changed as they are known."""
    before = {_key(each.repository, each.environment): each for each in known}
    found = []
    for record in records:
        history = before.get(record.key)
        found.append(history if history is not None and history.revision == record.revision else _history_of(record))
    return found


def _last_at(history: DeploymentHistory) -> float:
    return history.receipts[0].at


def _is_tag(text: str) -> bool:
    return is_tag(text) and not text.startswith(RESERVED_TAG_PREFIX)


def _is_digest(text: str) -> bool:
    try:
        parse_digest(text)
    except RegistryError:
        return False
    return True
