"""Deployments of the directory: the stored receipts, the events that they cause, and their bound."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from registry_proxy.access.faults import InvalidError
from registry_proxy.directory import deployments
from registry_proxy.directory.deployments import AnsweredDeployments, Deployments, ImageUnavailableError
from registry_proxy.directory.revise import NotFoundError
from registry_proxy.events.outbox import StoreOutbox
from registry_proxy.events.subscription import Subscription
from registry_proxy.events.subscriptions import CurrentSubscriptions
from registry_proxy.ports.deployments import HISTORY_MAX, DeploymentReport, ImageLabels
from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.outbox import Actor, EventType, OutboxEntry, RegistryEvent
from registry_proxy.ports.store import Change, Store, Table
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, digest_of
from registry_proxy.store.open import open_store
from registry_proxy.upstream.routing import PrefixRouter, Route
from tests.support.fakes.memory import MemoryAudit

LABELS = ImageLabels("https://git.example/team/app", "0123abcd")
ROBOT = Actor("robot:deployer")
NOW = 1_700_000_000.0
FIRST, SECOND = (str(digest_of(content)) for content in (b"first", b"second"))


@dataclass
class Bench:
    """Deployments over an empty store; ``failure`` is the answer for the image."""

    store: Store
    deployments: Deployments
    failure: Exception | None = None
    audit: MemoryAudit = field(default_factory=MemoryAudit)

    async def report(self, digest: Any = FIRST, at: Any = NOW, **fields: Any) -> str:
        """Report a deployment; return the id of the receipt."""
        report = DeploymentReport(
            **{
                "environment": "production",
                "repository": "team/app",
                "outcome": "succeeded",
                "digest": digest,
                "at": at,
                **fields,
            }
        )
        _, receipt = await self.deployments.report(report, ROBOT)
        return receipt.id

    async def events(self) -> list[RegistryEvent]:
        """Return the events in the outbox."""
        return [OutboxEntry.of(record.value).event for record in await self.store.list(Table.OUTBOX)]

    async def running(self) -> list[str]:
        """Return the running digests."""
        return [str(digest) for digests in (await self.deployments.running()).values() for digest in digests]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Deployments with a subscription to their events."""
    router = PrefixRouter([Route("team", "main")])

    async def read_labels(_: RoutedRepository, __: Digest) -> ImageLabels:
        if made.failure is not None:
            raise made.failure
        return LABELS

    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "page")) as (store, changes):
        subscription = Subscription(name="ci", url="https://ci.example/", events=["deployment"])
        await store.commit([Change(Table.SUBSCRIPTIONS, "ci", subscription.stored())])
        outbox = StoreOutbox(CurrentSubscriptions(store, changes), router.local_name)
        known = Deployments(
            store=store,
            changes=changes,
            outbox=outbox,
            route=router.route,
            read_labels=read_labels,
            clock=lambda: NOW,
        )
        made = Bench(store, known)
        yield made


async def test_a_report_becomes_a_receipt_and_an_event(bench: Bench) -> None:
    """The receipt has the reporter, the time and the image's commit; the event is in the outbox with it."""
    receipt_id = await bench.report(tag="1.2")
    (history,) = await bench.deployments.list()
    (receipt,) = history.receipts
    assert (receipt.id, receipt.subject, receipt.revision) == (receipt_id, "robot:deployer", "0123abcd")
    assert history.running == receipt
    (event,) = await bench.events()
    assert (event.type, event.repository, event.tag, event.digest) == (EventType.DEPLOYMENT, "team/app", "1.2", FIRST)
    assert event.detail == {
        "environment": "production",
        "outcome": "succeeded",
        "deployed_at": NOW,
        "source": "https://git.example/team/app",
        "revision": "0123abcd",
    }


async def test_the_same_report_again_is_no_event_and_displaces_nothing(bench: Bench) -> None:
    """A deployer that reports each minute leaves one receipt, with the time of the first report."""
    await bench.report(FIRST, NOW - 100)
    for minute in range(20):
        await bench.report(SECOND, NOW - 50 + minute)
    (history,) = await bench.deployments.list()
    assert [(each.digest, each.since, each.at) for each in history.receipts] == [
        (SECOND, NOW - 50, NOW - 31),
        (FIRST, NOW - 100, NOW - 100),
    ]
    assert len(await bench.events()) == 2


async def test_a_failure_leaves_running_what_ran(bench: Bench) -> None:
    """No number of failures displaces a running image; a removal ends it; a late report changes only the past."""
    await bench.report(FIRST, NOW - 100)
    for number in range(HISTORY_MAX + 5):
        await bench.report(str(digest_of(bytes([number]))), NOW - 50 + number, outcome="failed")
    (history,) = await bench.deployments.list()
    assert len(history.receipts) == HISTORY_MAX + 1
    assert await bench.running() == [FIRST]
    await bench.report(SECOND, NOW - 200)
    assert await bench.running() == [FIRST]
    await bench.report(FIRST, NOW, outcome="removed")
    assert await bench.running() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("environment", ""),
        ("environment", "a|b"),
        ("repository", "Team/App"),
        ("repository", "elsewhere/app"),
        ("digest", "1.2"),
        ("outcome", "perhaps"),
        ("tag", "a/b"),
        ("tag", "rp-keep-1"),
        ("at", NOW + 3600),
        ("at", -1.0),
    ],
)
async def test_a_report_that_cannot_be_is_refused(bench: Bench, field: str, value: object) -> None:
    """The fault names its field, and nothing is stored."""
    with pytest.raises(InvalidError) as refused:
        await bench.report(**{field: value})
    assert [name for name, _ in refused.value.faults] == [field]
    assert await bench.store.count(Table.DEPLOYMENTS) == 0


async def test_an_image_that_the_repository_does_not_hold_is_refused(bench: Bench) -> None:
    """An absent image differs from an unknown one; a receiver's answer needs neither, as its event names the image."""
    bench.failure = RegistryError(ErrorCode.MANIFEST_UNKNOWN, "no such manifest")
    with pytest.raises(NotFoundError):
        await bench.report()
    bench.failure = UpstreamUnavailableError("down")
    with pytest.raises(ImageUnavailableError):
        await bench.report()
    assert await bench.store.count(Table.DEPLOYMENTS) == 0
    answered = AnsweredDeployments(bench.deployments, bench.audit)
    report = DeploymentReport(environment="qa", repository="team/app", digest=FIRST, outcome="succeeded")
    await answered.take(report, "ci")
    await answered.take(replace(report, environment="no such name!"), "ci")
    assert await bench.running() == [FIRST]
    (history,) = await bench.deployments.list()
    assert (history.environment, history.receipts[0].subject) == ("qa", "subscription:ci")
    assert [(each.action, each.outcome, each.subject) for each in bench.audit.events] == [
        ("deployments.answer", "ok", "subscription:ci"),
        ("deployments.answer", "failed", "subscription:ci"),
    ]


@pytest.mark.parametrize(
    ("limit", "fields"),
    [
        ("ENVIRONMENTS_MAX", {"environment": "another"}),
        ("SHARE_MAX", {"repository": "team/other"}),
        ("HISTORIES_MAX", {"repository": "team/other"}),
    ],
)
async def test_a_bound_is_named_and_ended_deployments_make_room(
    bench: Bench, limit: str, fields: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One beyond the bound is refused while all run; a removed one gives way. A known deployment may always report."""
    monkeypatch.setattr(deployments, limit, 2)
    await bench.report(environment="first")
    await bench.report(environment="second")
    with pytest.raises(InvalidError, match="there are 2"):
        await bench.report(**fields)
    await bench.report(SECOND, environment="second")
    await bench.report(environment="first", outcome="removed")
    await bench.report(**fields)
    assert "first" not in {each.environment for each in await bench.deployments.list()}
    assert await bench.store.count(Table.DEPLOYMENTS) == 2
