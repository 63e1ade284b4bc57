"""The repair duty: one worker of a node looks after the replicas of all upstreams."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial

from registry_proxy.operations.fallback_tags import FallbackTags
from registry_proxy.ports.names import ContentKind
from registry_proxy.repair.copies import Copies, Pace
from registry_proxy.repair.fallback_tags import FallbackTagComparison
from registry_proxy.repair.inspection import Inspection
from registry_proxy.repair.maintenance import Maintenance
from registry_proxy.repair.recovery import Recovery, loss_warnings
from registry_proxy.repair.repair import Repairer
from registry_proxy.repair.tag_findings import TagFindings
from registry_proxy.repair.verify import Verifier
from registry_proxy.replication.open import ReplicaTools
from registry_proxy.tasks import running


class RepairDuty:
    """Verification and repair of the replicas, by upstream; it works by itself in ``running`` only.

    Args:
        bytes_per_second: the pace of repair, by upstream; 0 for no limit.
        tools: the collaborators.
        inspection: keeps the sentinels.
        referrers: merges the unlike lists of referrers of several replicas.
    """

    def __init__(
        self,
        bytes_per_second: Mapping[str, int],
        tools: ReplicaTools,
        inspection: Inspection,
        referrers: FallbackTags,
    ) -> None:
        options = tools.records.options
        store, journal = tools.records.store, tools.records.journal
        self._records = tools.records
        self._inspection = inspection
        self._replica_sets = replica_sets = tools.replica_sets
        self.tags = TagFindings(replica_sets=replica_sets, store=store, journal=journal, inspection=inspection)
        self.verifiers = {
            name: Verifier(replica_set=each, store=store, journal=journal, referrers=referrers)
            for name, each in replica_sets.items()
        }
        self.maintenances = {
            name: Maintenance(replica_set=each, store=store, journal=journal) for name, each in replica_sets.items()
        }
        self.repairers = {
            name: Repairer(
                replica_set=each,
                store=store,
                journal=journal,
                copies=Copies(
                    replica_sets=replica_sets,
                    readers=tools.impatient_readers,
                    cache=tools.cache,
                    holdings=tools.holdings,
                    pace=Pace(bytes_per_second[name]),
                    observer=tools.observer,
                ),
                verifier=self.verifiers[name],
                pins=tools.pins,
                observer=tools.observer,
            )
            for name, each in replica_sets.items()
        }
        self._comparisons = {
            name: FallbackTagComparison(
                replica_set=replica_sets[name], store=store, journal=journal, verifier=self.verifiers[name]
            )
            for name in options.recorded
            if len(options.replicas[name]) > 1
        }
        self._recoveries = {
            name: Recovery(
                replica_set=replica_sets[name],
                store=store,
                journal=journal,
                verifier=self.verifiers[name],
                upstreams=options.guarded,
                inspection=inspection,
                known=partial(tools.holdings.contents_of, kind=ContentKind.MANIFEST),
            )
            for name in options.guarded
        }

    async def warnings(self) -> Sequence[str]:
        """Return, in words, that the store came back without its content; see ``loss_warnings``."""
        return await loss_warnings(self._records.store, self._records.options.guarded)

    @contextlib.asynccontextmanager
    async def running(self, *, repairs: bool) -> AsyncIterator[None]:
        """Look after the replicas for the length of a with block.

        Args:
            repairs: a cache in memory has none of the copies kept for replicas: it must not report them as lost.
        """
        work = {f"repair of {name}": repairer.run() for name, repairer in self.repairers.items() if repairs}
        work |= {f"comparison of {name}": comparison.run() for name, comparison in self._comparisons.items()}
        for name, recovery in self._recoveries.items():
            work[f"recovery of {name}"] = recovery.run()
            work[f"sentinels of {name}"] = self._inspection.keep_sentinels(self._replica_sets[name])
        async with contextlib.AsyncExitStack() as stack:
            for name, coroutine in work.items():
                await stack.enter_async_context(running(coroutine, name))
            yield
