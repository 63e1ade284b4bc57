"""A faulty upstream behind the whole product: no fault becomes a complete wrong body, and nothing is left behind."""

import asyncio
import collections
import hashlib
import json
import os
import random
from pathlib import Path

import aiohttp
import httpx
import psutil
import pytest

from tests.conftest import StartProxy
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.product import Proxy, User, digest_of, own_descriptors
from tests.support.servers import Server
from tests.support.waiting import until

REPOSITORY = "team/app"
AT_ONCE = 8
SIZES = (0, 1, 1000, 65_536, 65_537, 200_000, 1_500_000)


def wrong(content: bytes, chance: random.Random) -> bytes:
    """Return other bytes of about the same size."""
    match chance.randrange(4):
        case 0 if content:
            at = chance.randrange(len(content))
            return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        case 1:
            return content + b"more"
        case 2 if content:
            return content[:-1]
        case _:
            return chance.randbytes(len(content) + 1)


def make_fault(content: bytes, chance: random.Random) -> Fault:
    """Return one fault of an upstream at a content."""
    times = chance.choice([1, 2, None])
    at = chance.randrange(len(content) + 1)
    return chance.choice(
        [
            Fault(times=times, body=wrong(content, chance)),
            Fault(times=times, body=wrong(content, chance), omit=("Docker-Content-Digest",)),
            Fault(times=times, cut_after=at),
            Fault(times=chance.choice([1, 2]), stall_after=at),  # each lasts until its deadline
            Fault(times=1, stall=True),
            Fault(times=times, html=True),
            Fault(times=times, gzip=True),
            Fault(times=times, ignore_range=True, cut_after=at),
            Fault(times=times, status=chance.choice([204, 206, 301, 304, 400, 401, 403, 404, 429, 500, 503])),
            Fault(times=times, status=206, body=content[: at or 1], headers={"Content-Range": f"bytes 0-{at}/*"}),
            Fault(times=times, status=200, body=b""),
            Fault(times=times, headers={"Docker-Content-Digest": digest_of(b"something else")}),
            Fault(times=times, headers={"Content-Type": "text/html"}, body=wrong(content, chance)),
        ]
    )


class Sweep:
    """Puts contents into two registries, makes them answer wrongly, and judges the answers to clients."""

    def __init__(self, proxy: Proxy, registries: list[FakeRegistry], session: aiohttp.ClientSession) -> None:
        self.proxy = proxy
        self.registries = registries
        self.session = session
        self.wrong: list[str] = []
        self.outcomes: collections.Counter[str] = collections.Counter()

    async def trial(self, number: int, chance: random.Random) -> None:
        """Make one content and one fault, and ask for it in several ways at once, twice."""
        is_manifest = chance.random() < 0.3
        if is_manifest:
            content = json.dumps({"schemaVersion": 2, "number": number, "pad": "x" * chance.choice(SIZES[:4])}).encode()
        else:
            content = number.to_bytes(4) + chance.randbytes(chance.choice(SIZES))
        path = f"{'manifests' if is_manifest else 'blobs'}/{digest_of(content)}"
        faulty = chance.choice([self.registries, self.registries[:1], self.registries[1:]])
        for registry in self.registries:
            if is_manifest:
                registry.add_manifest(REPOSITORY, content)
            else:
                registry.add_blob(REPOSITORY, content)
            if registry in faulty:
                fault = make_fault(content, chance)
                fault.target = path
                registry.inject(fault)
        for _ in range(2):
            await asyncio.gather(*(self.ask(path, content, chance.random(), chance) for _ in range(4)))

    async def ask(self, path: str, content: bytes, kind: float, chance: random.Random) -> None:
        """Send one request, and note a complete body that is wrong."""
        method, headers = "GET", {}
        expected, whole = content, True
        if kind < 0.15:
            method = "HEAD"
        elif kind < 0.35 and len(content) > 1 and path.startswith("blobs"):
            first = chance.randrange(len(content))
            headers["Range"] = f"bytes={first}-"
            expected, whole = content[first:], False
        try:
            async with self.session.request(method, f"/v2/{REPOSITORY}/{path}", headers=headers) as answer:
                if kind > 0.9:
                    self.outcomes["left"] += 1
                    answer.close()
                    return
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            self.outcomes[type(error).__name__] += 1
            return
        self.outcomes[str(answer.status)] += 1
        if answer.status in {200, 206}:
            if answer.status == 200:
                expected, whole = content, True
            label = answer.headers.get("Content-Length"), answer.headers["Docker-Content-Digest"]
            # A HEAD of a content that was never fetched repeats the length from the upstream: there is no other.
            length = label[0] if method == "HEAD" else str(len(expected))
            if label != (length, digest_of(content)) and whole:
                self.wrong.append(f"{method} {path}: answered {label}")
            # A range of a content that is still being fetched may be sent unverified: its client verifies the whole.
            if method == "GET" and whole and body != expected:
                self.wrong.append(f"{method} {path}: {len(body)} bytes that are not the content")
        elif answer.status == 500 or answer.content_type != "application/json":
            self.wrong.append(f"{method} {path}: {answer.status} {body[:300]!r}")


def wrong_files(cache: Path) -> list[Path]:
    """Return the committed files whose content does not match their digest."""
    files = [file for file in (cache / "blobs").rglob("*") if file.is_file()]
    return [file for file in files if hashlib.sha256(file.read_bytes()).hexdigest() != file.name]


def held_locks(workers: list[psutil.Process], cache: Path) -> int:
    """Return the number of locks that the workers hold on files of fills and uploads."""
    inodes = {os.stat(file).st_ino for folder in ("fills", "spool") for file in (cache / folder).rglob("*")}
    pids = {str(worker.pid) for worker in workers}
    lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return sum(1 for line in lines if line[4] in pids and int(line[5].rpartition(":")[2]) in inodes)


@pytest.mark.parametrize(
    "faults", [15, pytest.param(500, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])], ids=str
)
async def test_no_fault_of_the_upstream_becomes_a_wrong_body(
    start_proxy: StartProxy, tmp_path: Path, faults: int
) -> None:
    """No complete wrong body, no wrong entry, no leaked file, descriptor or lock, no lost worker, no traceback."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    async with FakeRegistry() as one, FakeRegistry() as other:
        servers = [Server([], registry.port, tmp_path / "none") for registry in (one, other)]
        timeouts = {"connect": "1s", "first_byte": "300ms", "stall": "300ms", "probe": "1s"}
        settings = {"workers": 2, "upstreams": {"main": {"timeouts": timeouts}}}
        proxy = await asyncio.to_thread(start_proxy, servers, settings)
        user = await asyncio.to_thread(lambda: proxy.add_user("ann", pull=["team/**"]))
        headers = {"Authorization": f"Bearer {await asyncio.to_thread(user.token, f'repository:{REPOSITORY}:pull')}"}
        workers = proxy.workers()
        ports = {one.port, other.port}
        before = [own_descriptors(worker, ports) for worker in workers]
        async with aiohttp.ClientSession(
            proxy.url,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=30),
            connector=aiohttp.TCPConnector(force_close=True),
        ) as session:
            sweep = Sweep(proxy, [one, other], session)
            for begin in range(0, faults, AT_ONCE):
                numbers = range(begin, min(begin + AT_ONCE, faults))
                await asyncio.gather(*(sweep.trial(n, random.Random(chance.random())) for n in numbers))
        print(dict(sweep.outcomes))
        assert sweep.wrong == []
        assert sweep.outcomes["200"] > faults, "the sweep saw too little"
        fills = proxy.cache / "fills"
        await until(lambda: not list(fills.iterdir()), 30)
        assert wrong_files(proxy.cache) == []
        assert list((proxy.cache / "temp").iterdir()) == []
        allowed = [
            count + 4 for count in before
        ]  # opened at their first use, such as the watch of other workers' fills
        await until(
            lambda: all(own_descriptors(worker, ports) <= most for worker, most in zip(workers, allowed, strict=True)),
            30,
        )
        assert held_locks(workers, proxy.cache) == 0
        assert {worker.pid for worker in proxy.workers()} == {worker.pid for worker in workers}
        assert "Traceback" not in proxy.log_text()
        one.faults.clear()
        other.faults.clear()
        good = one.add_blob(REPOSITORY, b"good" * 100_000)
        other.add_blob(REPOSITORY, b"good" * 100_000)
        answer = await asyncio.to_thread(pull_when_up, user, f"blobs/{good}")
        assert answer == b"good" * 100_000


async def test_a_registry_that_lies_is_named_and_left_alone(start_proxy: StartProxy, tmp_path: Path) -> None:
    """With one lying registry the other serves clients; with two it is a 502 with the reason, and no more requests."""
    async with FakeRegistry() as one, FakeRegistry() as other:
        servers = [Server([], registry.port, tmp_path / "none") for registry in (one, other)]
        proxy = await asyncio.to_thread(start_proxy, servers, {"workers": 1})
        user = await asyncio.to_thread(lambda: proxy.add_user("ann", pull=["team/**"]))

        def pull(path: str) -> tuple[int, bytes]:
            try:
                answer = user.get(REPOSITORY, path)
            except httpx.TransportError:
                return 0, b""  # the body was cut: its bytes were on their way when their digest turned out wrong
            return answer.status_code, answer.content

        content = os.urandom(300_000)
        digest = one.add_blob(REPOSITORY, content)
        other.add_blob(REPOSITORY, content)
        lies = [registry.inject(Fault("blobs", body=content[:-1] + b"?")) for registry in (one, other)]
        answers = [await asyncio.to_thread(pull, f"blobs/{digest}") for _ in range(3)]
        assert all(status in {0, 502} for status, _ in answers)
        status, body = answers[-1]
        assert status == 502
        assert b"it sent other bytes than those of this digest" in body
        assert [registry.count("GET", "/blobs/") for registry in (one, other)] == [1, 1]
        assert proxy.metric("registry_proxy_wrong_content_total") == 2
        assert proxy.metric("registry_proxy_wrong_content_total", replica=f"127.0.0.1:{one.port}") == 1
        names = [file.name for file in (proxy.cache / "quarantine").iterdir()]
        assert sum(f".main_127_0_0_1_{one.port}." in name for name in names) == 1
        assert len(names) == 2
        assert all(str(digest).replace(":", "-") in name for name in names)
        one.faults.remove(lies[0])
        good = os.urandom(300_000)
        path = f"blobs/{one.add_blob(REPOSITORY, good)}"
        other.add_blob(REPOSITORY, good)
        assert {await asyncio.to_thread(pull, path) for _ in range(3)} <= {(0, b""), (200, good)}
        assert await asyncio.to_thread(pull, path) == (200, good)


def pull_when_up(user: User, path: str) -> bytes:
    """Pull a content as soon as a replica counts as up again."""
    answers = []
    for _ in range(10):
        answers.append(user.get(REPOSITORY, path))
        if answers[-1].status_code == 200:
            return answers[-1].content
    raise AssertionError([answer.text for answer in answers])
