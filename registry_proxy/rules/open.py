"""Opening the image rules of a worker."""

from collections.abc import Callable

from registry_proxy.operations.pull import Pull
from registry_proxy.ports.metrics import Observer
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.outbox import Outbox
from registry_proxy.ports.store import Store, StoreChanges
from registry_proxy.protocol.reference import Repository
from registry_proxy.rules.bases import KnownImages
from registry_proxy.rules.current import CurrentRules
from registry_proxy.rules.judge import RuleJudge
from registry_proxy.rules.reading import PushedImages
from registry_proxy.rules.registering import RegisteredBases


def open_rules(  # noqa: PLR0917 - the parts of a worker, in the order in which they are made
    store: Store,
    changes: StoreChanges,
    images: PushedImages,
    outbox: Outbox,
    local_name: Callable[[RoutedRepository], Repository | None],
    observer: Observer,
) -> RuleJudge:
    """Return the judge of a worker's writes; see ``RuleJudge``."""
    rules, known = CurrentRules(store, changes), KnownImages(store)
    return RuleJudge(
        rules,
        known,
        images,
        readers=images.readers,
        store=store,
        outbox=outbox,
        local_name=local_name,
        observer=observer,
    )


def open_bases(store: Store, pull: Pull, images: PushedImages) -> RegisteredBases:
    """Return what registers images as bases; see ``RegisteredBases``."""
    return RegisteredBases(pull, images, KnownImages(store))
