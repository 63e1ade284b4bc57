"""A node's copies for a replica stay pinned until the replica has them, and lost ones are reported."""

import pytest

from registry_proxy.ports.metrics import LostCopies
from registry_proxy.protocol.reference import Digest, digest_of
from registry_proxy.repair.kept import KeptCopies
from tests.support.fakes.images import image
from tests.support.fakes.memory import RecordingObserver
from tests.support.fakes.replicas import Bench


class Keeper:
    """The copies that the node of a bench keeps, and the reports about them."""

    def __init__(self, setting: Bench) -> None:
        self.observer = RecordingObserver()
        self.copies = KeptCopies(
            replica_set=setting.replicas,
            journal=setting.under_test.journal,
            pins=setting.spool,
            observer=self.observer,
            lease=lambda key: setting.under_test.store.lease(str(key)),
        )

    async def lost(self) -> int:
        """Look, and return the number of copies reported as lost."""
        await self.copies.look()
        return self.observer.found(LostCopies, "main")[-1].content_count


async def push_without_b(setting: Bench) -> set[Digest]:
    """Push an image while replica b is down; return all of its contents."""
    setting.replicas.down.add("b")
    app = image(b"layer")
    for blob in app.blobs:
        await setting.under_test.upload(blob)
    await setting.under_test.put("latest", app.manifest, app.media_type)
    return {app.digest, *map(digest_of, app.blobs)}


async def test_a_copy_that_is_gone_is_reported_until_nobody_misses_it(
    setting: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """The loss is counted, and logged once with the holder and the replica that misses it, until nothing misses it."""
    keeper, contents = Keeper(setting), await push_without_b(setting)
    assert (await keeper.lost(), keeper.copies.warnings()) == (0, [])
    for digest in list(setting.cache.files):
        setting.cache.drop(digest)
    assert await keeper.lost() == await keeper.lost() == len(contents)
    (warning,) = keeper.copies.warnings()
    assert f"{len(contents)} contents of upstream main that the cache kept for replica b are gone" in warning
    assert f"{len(contents)} are only on a" in warning
    assert caplog.text.count(warning) == 1
    for key, intent in await setting.under_test.journal.missed_contents("main"):
        assert await setting.under_test.journal.confirm(key, intent.digest, "b")
    assert (await keeper.lost(), keeper.copies.warnings()) == (0, [])


async def test_a_pin_of_what_nobody_misses_is_no_loss(setting: Bench) -> None:
    """A pin without its content, of a push that died between the two, is no loss: it was not acknowledged."""
    setting.spool.pin(digest_of(b"never came"))
    assert await Keeper(setting).lost() == 0


async def test_content_that_lost_its_pin_is_pinned_again(setting: Bench) -> None:
    """Without its entry in the list of pins a content is pinned again as long as a replica misses it."""
    contents = await push_without_b(setting)
    setting.spool.pins.clear()
    assert await Keeper(setting).lost() == 0
    assert setting.spool.pins == contents
