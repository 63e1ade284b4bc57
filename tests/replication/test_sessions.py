"""The signed state of upload Locations."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.store import Change, Store, Table
from registry_proxy.ports.uploads import UPLOAD_LIFETIME_SECONDS, Uploader, UploadSession
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Repository
from registry_proxy.replication.sessions import SignedSessions
from registry_proxy.store.open import open_store
from tests.support.fakes.replicas import ANN, ROUTED

WEEK = 7 * 24 * 3600
LOCATIONS = {"a": "/v2/team/app/blobs/uploads/1?_state=x%3D%3D"}
SESSION = UploadSession("id", 5, "ab" * 32, LOCATIONS, opened_at=1_800_000_000)


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """Open a store."""
    async with open_store(f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path / "page")) as (store, _):
        yield store


class Clock:
    """A clock that a test sets."""

    now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def never_lost() -> int:
    """Report no loss of the store."""
    return 0


async def is_refused(sessions: SignedSessions, state: str | None) -> bool:
    """Tell whether the answer to a state is that of an absent upload."""
    with pytest.raises(RegistryError) as caught:
        await sessions.verify(ROUTED, ANN, "id", state)
    return caught.value.code is ErrorCode.BLOB_UPLOAD_UNKNOWN and caught.value.status == 404


async def test_any_node_reads_what_another_wrote(store: Store) -> None:
    """Two nodes over one store share the key, whichever made it; nothing else is needed."""
    state = await SignedSessions(store, never_lost, Clock()).sign(ROUTED, ANN, SESSION)
    assert await SignedSessions(store, never_lost, Clock()).verify(ROUTED, ANN, "id", state) == SESSION


@pytest.mark.parametrize("noticed_first", ["old", "new"])
async def test_after_the_loss_of_the_store_all_sign_with_one_key(store: Store, noticed_first: str) -> None:
    """A process that remembers the key restores it; if a new process has made another one, that one counts."""
    losses = 0
    old, new = (SignedSessions(store, lambda: losses, Clock()) for _ in range(2))
    before = await old.sign(ROUTED, ANN, SESSION)
    for record in await store.list(Table.LOCATION_KEYS):
        await store.commit([Change(Table.LOCATION_KEYS, record.key, None)])
    losses = 1
    signing = [old, new] if noticed_first == "old" else [new, old]
    states = [await each.sign(ROUTED, ANN, SESSION) for each in signing]
    for sessions in signing:
        for state in states:
            assert await sessions.verify(ROUTED, ANN, "id", state) == SESSION
    if noticed_first == "old":
        assert await new.verify(ROUTED, ANN, "id", before) == SESSION


async def test_every_changed_character_is_refused(store: Store) -> None:
    """Tampering anywhere, cutting and nonsense give 404, and never another error."""
    sessions = SignedSessions(store, never_lost, Clock())
    state = await sessions.sign(ROUTED, ANN, SESSION)
    for position, character in enumerate(state[:-1]):  # the last one carries bits that base64 does not use
        other = "B" if character != "B" else "C"
        assert await is_refused(sessions, state[:position] + other + state[position + 1 :])
    for nonsense in (None, "", ".", "..", "...", "1.2.3", "x.y.z", "٣.a.b", "9" * 9000, "\ud800.a.b", state + "A"):
        assert await is_refused(sessions, nonsense)


async def test_it_ends_a_day_after_its_opening(store: Store) -> None:
    """Each request makes a new state, none of them with a longer life."""
    clock = Clock()
    sessions = SignedSessions(store, never_lost, clock)
    state = await sessions.sign(ROUTED, ANN, replace(SESSION, opened_at=0))
    clock.now += UPLOAD_LIFETIME_SECONDS - 1
    session = await sessions.verify(ROUTED, ANN, "id", state)
    assert session == SESSION
    renewed = await sessions.sign(ROUTED, ANN, session)
    assert await sessions.verify(ROUTED, ANN, "id", renewed) == SESSION
    clock.now += 2
    assert await is_refused(sessions, state)
    assert await is_refused(sessions, renewed)


async def test_it_ends_with_the_generation_of_its_subject(store: Store) -> None:
    """After a revocation a state is refused, also from a subject that logged in again."""
    sessions = SignedSessions(store, never_lost, Clock())
    state = await sessions.sign(ROUTED, Uploader(ANN.subject, 1), SESSION)
    assert await sessions.verify(ROUTED, Uploader(ANN.subject, 1), "id", state) == SESSION
    for other in (Uploader(ANN.subject, 0), Uploader(ANN.subject, 2), Uploader("user:bob", 1)):
        with pytest.raises(RegistryError):
            await sessions.verify(ROUTED, other, "id", state)


async def test_keys_change_every_week_and_uploads_go_on(store: Store) -> None:
    """A state from before the change is still good; keys that no state needs are removed."""
    clock = Clock()
    sessions, new = SignedSessions(store, never_lost, clock), replace(SESSION, opened_at=0)
    await sessions.sign(ROUTED, ANN, new)
    clock.now = (clock.now // WEEK + 1) * WEEK - 60
    state = await sessions.sign(ROUTED, ANN, new)
    clock.now += 120
    assert (await sessions.sign(ROUTED, ANN, new)).partition(".")[0] != state.partition(".")[0]
    assert (await SignedSessions(store, never_lost, clock).verify(ROUTED, ANN, "id", state)).locations == LOCATIONS
    assert len(await store.list(Table.LOCATION_KEYS)) == 2
    clock.now += 3 * WEEK
    await sessions.sign(ROUTED, ANN, new)
    assert len(await store.list(Table.LOCATION_KEYS)) == 1


async def test_five_replicas_fit_into_a_location(store: Store) -> None:
    """With five Locations of docker-registry's length the state stays below 4 KiB and needs no escaping."""
    locations = {f"replica-{number}.example.com:5000": "/v2/" + "x" * 290 for number in range(5)}
    state = await SignedSessions(store, never_lost, Clock()).sign(
        ROUTED, ANN, UploadSession("id", 1 << 40, "ab" * 32, locations)
    )
    assert len(state) < 4096
    assert set(state) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")


async def test_names_cannot_be_shifted_into_each_other(store: Store) -> None:
    """Upstream and repository are signed apart: ``a`` + ``b/c`` is not ``a/b`` + ``c``."""
    sessions = SignedSessions(store, never_lost, Clock())
    state = await sessions.sign(RoutedRepository("a", Repository("b/c")), ANN, SESSION)
    with pytest.raises(RegistryError):
        await sessions.verify(RoutedRepository("a/b", Repository("c")), ANN, "id", state)
