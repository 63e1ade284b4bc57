"""A run: clients in a thread of their own, faults in this one, and the verdict."""

import asyncio
import re
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from tests.chaos.cluster import PASSWORD, USER, Cluster
from tests.chaos.docker import BrokenError, Docker, RefusedError
from tests.chaos.events import event_faults, lost_events
from tests.chaos.history import History, Kind, Operation, Outcome, Window
from tests.chaos.plan import HARMS_OF_ALL, HARMS_TO_COMPARE, REPOSITORIES, Fault, Harm, Step, Verb, faults, steps
from tests.support.product import OCI_MANIFEST, digest_of
from tests.support.servers import Server

_SCOPES = {
    Verb.PUSH: "repository:{}:pull,push",
    Verb.PULL: "repository:{}:pull",
    Verb.PULL_OLD: "repository:{}:pull",
    Verb.DELETE: "repository:{}:delete",
    Verb.LIST: "repository:{}:pull",
    Verb.CATALOG: "registry:catalog:*",
    Verb.ATTACH: "repository:{}:pull,push",
    Verb.REFERRERS: "repository:{}:pull",
}
_KINDS = {
    Verb.PUSH: Kind.PUSH,
    Verb.PULL: Kind.READ,
    Verb.PULL_OLD: Kind.PULL,
    Verb.DELETE: Kind.DELETE,
    Verb.LIST: Kind.LIST,
    Verb.CATALOG: Kind.CATALOG,
    Verb.ATTACH: Kind.ATTACH,
    Verb.REFERRERS: Kind.REFERRERS,
}
FORGETTING_SECONDS = 2.0
"""Time within which all nodes forget a deleted digest (docs/operations.md)."""

_COMING_BACK_SECONDS = 5.0
"""Time after which all replicas are known to be up again, and a user that was created again is known to all."""

_REPAIRING_SECONDS, _COMPARING_SECONDS = 60.0, 180.0
"""Time without a repair before all is well; a comparison asks for each content, and repairs nothing."""

_EVENTS_SECONDS = 90.0
"""Time within which all events arrive: that of a push whose node died is delivered after a minute."""

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
_GATEWAY_ERRORS = frozenset({502, 504})


@dataclass
class _Harmed:
    """A fault that has not ended."""

    fault: Fault
    began: float
    ends_at: float


@dataclass
class Run:
    """One run of the plan of a seed against a cluster.

    Args:
        cluster: running.
        seed: of clients and faults.
        seconds: the length of faults and traffic.
        clients: their number.
        pace_seconds: average time between two steps of a client.
        heals: each fault waits until the last one has healed.
        lull: factor by which planned times between faults grow where a fault does not wait.
        further: use faults of data, of single objects and of disks, and nodes that hang for long, too.
        repairs: replicas receive missed writes by themselves; without, only one replica fails.
    """

    cluster: Cluster
    seed: int
    seconds: float
    clients: int = 4
    pace_seconds: float = 0.2
    heals: bool = True
    lull: float = 1.0
    further: Collection[Harm] = ()
    repairs: bool = True
    history: History = field(default_factory=lambda: History(forgetting_seconds=FORGETTING_SECONDS))
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _began: float = field(default_factory=time.monotonic)
    _epoch: float = field(default_factory=time.time)
    _waited_seconds: float = 0.0

    def now(self) -> float:
        """Return the seconds since the run began."""
        return time.monotonic() - self._began

    def execute(self) -> None:
        """Run it to its end; everything is up and healed on return, or ``failures`` says what is not."""
        self.history.may_be_unavailable = not self.heals
        with self._traffic():
            if self.heals:
                self._one_by_one()
            else:
                self._overlapping()
        ailments = self.cluster.wait_until_healed(_REPAIRING_SECONDS, mind_pending=self.repairs)
        self.failures += [f"after the end, idle for {_REPAIRING_SECONDS:g} s: {one}" for one in ailments]

    # ------------------------------------------------------------ faults

    @property
    def _targets(self) -> tuple[str, ...]:
        return self.cluster.targets if self.repairs else self.cluster.targets[1:]

    def _one_by_one(self) -> None:
        for fault in faults(self.seed, self._targets, self.further):
            if self.now() + fault.after_seconds + fault.for_seconds > self.seconds:
                break
            time.sleep(fault.after_seconds)
            began = self.now()
            self.cluster.do_harm(fault)
            time.sleep(fault.for_seconds)
            self.cluster.end_harm(fault)
            if fault.harm in {Harm.SWAP, Harm.EMPTY}:
                until = self.now() + _COMING_BACK_SECONDS
                self.history.windows.append(
                    Window("nobody is answered", began, until, stops_writes=True, stops_reads=True)
                )
            patience = _COMPARING_SECONDS if fault.harm in HARMS_TO_COMPARE else _REPAIRING_SECONDS
            ailments = self.cluster.wait_until_healed(patience, mind_pending=self.repairs)
            self._note(fault, began)
            if ailments:
                self.failures.append(f"not healed after {fault}, idle for {patience:g} s: {'; '.join(ailments)}")
                break
        time.sleep(max(0.0, self.seconds - self.now()))

    def _overlapping(self) -> None:
        harmed: list[_Harmed] = []
        for fault in faults(self.seed, self._targets):
            self._let_pass(harmed, min(self.seconds, self.now() + fault.after_seconds * self.lull))
            if self.now() >= self.seconds:
                break
            if all(one.fault.target != fault.target for one in harmed):
                began = self.now()
                self.cluster.do_harm(fault)
                harmed.append(_Harmed(fault, began, began + fault.for_seconds))
        self._let_pass(harmed, max([self.now(), *(one.ends_at for one in harmed)]))

    def _let_pass(self, harmed: list[_Harmed], until: float) -> None:
        """Sleep, and end the faults whose time is over meanwhile."""
        while harmed and (first := min(harmed, key=lambda one: one.ends_at)).ends_at <= until:
            time.sleep(max(0.0, first.ends_at - self.now()))
            self.cluster.end_harm(first.fault)
            self._note(first.fault, first.began)
            harmed.remove(first)
        time.sleep(max(0.0, until - self.now()))
        self.cluster.tend()

    def _note(self, fault: Fault, began: float) -> None:
        is_of_node = fault.target in self.cluster.nodes
        window = Window(str(fault), began, self.now(), stops_writes=fault.target == "redis", repeats=is_of_node)
        self.history.windows.append(window)

    # ------------------------------------------------------------ traffic

    @contextmanager
    def _traffic(self) -> Iterator[None]:
        """Run clients while the block runs; they finish their last step."""
        with ThreadPoolExecutor(1) as pool:
            work = pool.submit(lambda: asyncio.run(self._work()))
            try:
                yield
            finally:
                self._stop.set()
            work.result()

    async def _work(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self.clients)))

    async def _client(self, number: int) -> None:
        for turn, step in enumerate(steps(self.seed, number, self.pace_seconds)):
            await asyncio.sleep(step.pause_seconds)
            if self._stop.is_set():
                return
            # Each time from another machine: nginx, as shipped, chooses the node by the client's address.
            docker = self._docker(f"127.{number + 1}.{turn // 250 % 250 + 1}.{turn % 250 + 1}")
            try:
                await self.perform(docker, f"client-{number}", step)
            finally:
                await docker.aclose()

    def _docker(self, address: str) -> Docker:
        return Docker(self.cluster.url, USER, PASSWORD, address=address)

    def _begin(self, kind: Kind, client: str, repository: str, tag: str = "", digest: str = "") -> Operation:
        operation = Operation(kind, client, repository, self.now(), tag, digest)
        self.history.operations.append(operation)
        return operation

    async def perform(self, docker: Docker, client: str, step: Step) -> None:
        """Do one step and record its outcome."""
        kind = _KINDS[step.verb]
        repository = "" if kind is Kind.CATALOG else step.repository
        tag = step.tag if kind in {Kind.PUSH, Kind.READ} else ""
        digest = "" if step.image is None else step.image.digest
        operation = self._begin(kind, client, repository, tag, digest)
        operation.subject = step.subject
        if not await self._end(operation, self._attempt(docker, step, operation)):
            return
        if step.verb is Verb.PULL:
            pull = self._begin(Kind.PULL, client, step.repository, digest=operation.digest)
            await self._end(pull, self._pull(docker, pull))

    async def _end(self, operation: Operation, work: Awaitable[bool]) -> bool:
        """Do the work of an operation; return whether the requested object existed."""
        try:
            found = await work
            operation.outcome = Outcome.DONE if found else Outcome.ABSENT
        except RefusedError as error:
            operation.outcome = Outcome.BROKEN if error.status in _GATEWAY_ERRORS else Outcome.REFUSED
            operation.says = str(error)
        except BrokenError as error:
            operation.outcome, operation.says = Outcome.BROKEN, str(error)
        operation.ended_at = self.now()
        return operation.outcome is Outcome.DONE

    async def _attempt(self, docker: Docker, step: Step, operation: Operation) -> bool:
        await docker.login(_SCOPES[step.verb].format(step.repository))
        match step.verb:
            case Verb.PUSH:
                assert step.image is not None
                await docker.push(step.repository, step.tag, step.image)
            case Verb.PULL:
                found = await docker.resolve(step.repository, step.tag)
                operation.digest = found or ""
                return found is not None
            case Verb.PULL_OLD:
                return await self._pull(docker, operation)
            case Verb.DELETE:
                return await docker.delete(step.repository, operation.digest)
            case Verb.LIST:
                operation.names = frozenset(await docker.tags(step.repository))
            case Verb.CATALOG:
                operation.names = frozenset(await docker.catalog())
            case Verb.ATTACH:
                assert step.image is not None
                await docker.push(step.repository, step.image.digest, step.image)
            case Verb.REFERRERS:
                operation.names = frozenset(await docker.referrers(step.repository, step.subject))
        return True

    @staticmethod
    async def _pull(docker: Docker, operation: Operation) -> bool:
        try:
            await docker.pull(operation.repository, operation.digest)
        except RefusedError as error:
            if error.status != 404:
                raise
            operation.says = str(error)
            return False
        return True

    # ------------------------------------------------------------ verdict

    def pull_everything(self) -> None:
        """Read every tag and every pushed image once more, with everything up, through nginx."""
        puts = {Kind.PUSH, Kind.ATTACH}
        known = {(one.repository, one.digest) for one in self.history.operations if one.kind in puts}

        async def pull() -> None:
            docker = self._docker("127.0.0.1")
            try:
                for repository in REPOSITORIES:
                    for tag in sorted(self.history.tags(repository)):
                        step = Step(Verb.PULL, 0, repository, tag)
                        await self.perform(docker, "verifier", step)
                for repository, digest in sorted(known):
                    await docker.login(_SCOPES[Verb.PULL].format(repository))
                    operation = self._begin(Kind.PULL, "verifier", repository, digest=digest)
                    await self._end(operation, self._pull(docker, operation))
            finally:
                await docker.aclose()

        asyncio.run(pull())

    def list_referrers(self) -> None:
        """List the referrers of each subject once more, with everything up, through each node."""

        async def ask(url: str) -> None:
            docker = Docker(url, USER, PASSWORD)
            try:
                for repository, subject in self._subjects():
                    step = Step(Verb.REFERRERS, 0, repository, subject=subject)
                    await self.perform(docker, "verifier", step)
                    last = self.history.operations[-1]
                    if last.outcome is not Outcome.DONE:
                        self.failures.append(f"with everything up: {last}")
            finally:
                await docker.aclose()

        for node in self.cluster.nodes.values():
            asyncio.run(ask(node.url))

    def _subjects(self) -> Sequence[tuple[str, str]]:
        attached = (one for one in self.history.operations if one.kind is Kind.ATTACH)
        return sorted({(one.repository, one.subject) for one in attached})

    def fallback_differences(self) -> list[str]:
        """Return the faults in the replicas' indexes of referrers, missing and extra entries; asked past the proxy."""
        found = []
        for repository, subject in self._subjects():
            for name, server in self.cluster.replicas.items():
                names = _fallback_entries(server.url, repository, subject)
                at = Operation(
                    Kind.REFERRERS, name, repository, self.now(), ended_at=self.now(), names=names, subject=subject
                )
                found += [f"{name}, {repository}@{subject}: {rule}" for rule in self.history.judge_referrers(at)]
        return found

    def differences(self) -> list[str]:
        """Return the differences of the replicas, and acknowledged objects that are missing; asked past the proxy."""
        found = []
        operations = self.history.operations
        at = Operation(Kind.PULL, "verifier", "", self.now(), ended_at=self.now())
        for repository in REPOSITORIES:
            tags = {name: _tags_at(one.url, repository) for name, one in self.cluster.replicas.items()}
            first, second = tags.values()
            found += [
                f"{repository}:{tag} is {first.get(tag)} and {second.get(tag)}"
                for tag in sorted(first.keys() | second.keys())
                if first.get(tag) != second.get(tag)
            ]
            for digest in sorted({one.digest for one in operations if one.repository == repository and one.digest}):
                for name, server in self.cluster.replicas.items():
                    problem = _look_for(server.url, repository, digest)
                    if problem and self.history.must_hold(repository, digest, at):
                        story = self._story(server, repository, digest)
                        found.append(f"{name} misses {problem} of {repository}@{digest}{story}")
                    if not problem and not self.history.may_hold(repository, digest, at):
                        story = self._story(server, repository, digest)
                        found.append(f"{name} still has {repository}@{digest}, which was deleted{story}")
        return found

    def _story(self, server: Server, repository: str, digest: str) -> str:
        """Return the pushes and deletes of an image, and each logged write of a manifest at a registry."""
        lines = [
            str(one)
            for one in self.history.operations
            if (one.repository, one.digest) == (repository, digest)
            and one.kind in {Kind.PUSH, Kind.ATTACH, Kind.DELETE}
        ]
        write = re.compile(rf'"(PUT|DELETE) /v2/{repository}/manifests/')
        lines += [line for line in server.log_text().splitlines() if write.search(line)]
        return "".join(f"\n    {line}" for line in lines)

    def verify(self, timeout_seconds: float = 60) -> list[str]:
        """Return [] once the product itself finds no difference between the replicas, or the last findings."""
        deadline = time.monotonic() + timeout_seconds
        node = next(iter(self.cluster.nodes.values()))
        with node.admin() as admin:
            while True:
                comparison = admin.post("/upstreams/main/verify", json={}).raise_for_status().json()
                while not comparison["done"]:
                    time.sleep(0.2)
                    comparison = admin.get("/upstreams/main/verify").json()
                if not comparison["error"] and not comparison["differing"]:
                    return []
                if time.monotonic() > deadline:
                    return [f"verify finds after {timeout_seconds:g} s: {comparison}"]
                time.sleep(1)

    def event_faults(self) -> list[str]:
        """Return the missing and wrong events of the receiver, once no more can arrive."""
        operations, emptied = self.history.operations, self.cluster.emptied
        began = time.monotonic()
        deadline = began + _EVENTS_SECONDS
        while any(lost_events(self.cluster.arrivals, operations, self._epoch, emptied)) and time.monotonic() < deadline:
            time.sleep(0.2)
        self._waited_seconds = time.monotonic() - began
        return list(event_faults(self.cluster.arrivals, operations, self._epoch, emptied))

    def _failed_pushes(self) -> list[Operation]:
        return [one for one in self.history.operations if one.kind is Kind.PUSH and one.outcome is not Outcome.DONE]

    def pushes_and_unexcused(self) -> tuple[int, int]:
        """Return the number of pushes, and of those that failed while Redis and the quorum were there."""
        pushes = sum(one.kind is Kind.PUSH for one in self.history.operations)
        return pushes, sum(not self.history.in_write_window(one) for one in self._failed_pushes())

    def _made(self) -> Counter[str]:
        """Return the number of faults by server and kind."""
        return Counter(window.name.rpartition(" for ")[0] or window.name for window in self.history.windows)

    def report(self) -> str:
        """Return the report for a person: seed, table, faults, and each violation with its story."""
        violations, failed = self.history.violations(), self._failed_pushes()
        pushes, unexcused = self.pushes_and_unexcused()
        arrivals = self.cluster.arrivals
        parts = [
            f"seed {self.seed}, {self.seconds:g} s, {self.clients} clients, {len(self.history.windows)} faults, "
            + ("each after the last has healed" if self.heals else "one over the other"),
            f"possible: {', '.join(sorted({*HARMS_OF_ALL, *self.further}))}",
            f"made: {', '.join(f'{count} {name}' for name, count in sorted(self._made().items()))}",
            self.history.summary(),
            f"pushes: {pushes}, failed {len(failed)}, of these while Redis and the quorum were there {unexcused}",
            *(f"  {one}" for one in failed),
            f"events: {len({one.id for one in arrivals})}, delivered {len(arrivals)} times",
            f"waited for the last one for {self._waited_seconds:.1f} s",
            f"violations: {len(violations)}",
            *(self.history.timeline(one) for one in violations[:10]),
            *(f"*** {failure}" for failure in self.failures),
        ]
        if violations or self.failures:
            parts += ["all faults:", *(str(window) for window in self.history.windows), self.cluster.logs()]
        return "\n".join(parts)


def _tags_at(url: str, repository: str) -> dict[str, str]:
    """Return the tags of a repository at one registry with their digests."""
    answer = httpx.get(f"{url}/v2/{repository}/tags/list", timeout=30, verify=False)
    names = answer.json().get("tags") or [] if answer.status_code == 200 else []
    tags = {}
    for name in names:
        head = httpx.head(
            f"{url}/v2/{repository}/manifests/{name}", headers={"Accept": OCI_MANIFEST}, timeout=30, verify=False
        )
        if head.status_code == 200:
            tags[name] = head.headers["Docker-Content-Digest"]
    return tags


def _fallback_entries(url: str, repository: str, subject: str) -> frozenset[str]:
    """Return the entries of a registry under the tag of a subject (spec, "Referrers Tag Schema")."""
    address = f"{url}/v2/{repository}/manifests/{subject.replace(':', '-')}"
    answer = httpx.get(address, headers={"Accept": OCI_INDEX}, timeout=30, verify=False)
    return frozenset(one["digest"] for one in answer.json()["manifests"]) if answer.status_code == 200 else frozenset()


def _look_for(url: str, repository: str, digest: str) -> str:
    """Return what a registry misses of an image; "" when it has all of it, with the right bytes."""
    with httpx.Client(base_url=f"{url}/v2/{repository}", timeout=30, verify=False) as client:
        answer = client.get(f"/manifests/{digest}", headers={"Accept": OCI_MANIFEST})
        if answer.status_code != 200 or digest_of(answer.content) != digest:
            return "the manifest"
        manifest = answer.json()
        for blob in (manifest["config"], *manifest["layers"]):
            answer = client.get(f"/blobs/{blob['digest']}")
            if answer.status_code != 200 or digest_of(answer.content) != blob["digest"]:
                return f"the blob {blob['digest']}"
    return ""
