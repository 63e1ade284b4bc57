"""Ordinary clients beside one abuser of each kind, and beside a well-behaved caller with an equal load.

Part of `make bench`. Ten clients log in, pull and push through two workers over two real registries; of their requests
none may fail, and the slowest hundredth is compared. Abusers call from another address of loopback.

The well-behaved caller of an abuser makes the same load as far as the node can see it beforehand:

- a list without an end: as many lists a second, of a repository whose list ends;
- withheld bodies: as many connections, which last as long and each send one login; but its body comes whole;
- all others: as many requests a second, which pull a manifest.

The registries' fronts, which are the malicious upstream, run in a separate process: their cost is no delay of
the measured clients.
"""

import argparse
import asyncio
import base64
import itertools
import multiprocessing
import random
import re
import signal
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import httpx

from benchmarks.load import describe_machine
from tests.support.fakes.malice import Asked, Malice, answer
from tests.support.product import OCI_MANIFEST, Image, Proxy, digest_of, make_image, proxy_server, random_bytes
from tests.support.servers import Server, docker_registry, running

CLIENTS = 10
PAUSE_SECONDS = 0.15
ABUSER_ADDRESS = "127.0.0.2"
CLIENT_ADDRESS = "127.0.0.3"
WITHHELD_CONNECTIONS = 2000
WITHHELD_SECONDS = (10, 15)
"""The time limit of a withheld body: ``registry_proxy.edge.exchange.SMALL_BODY_SECONDS``, scattered."""
POISON = "poison/app"
LISTED = "endless/app"
PASSWORD = "password of a user"
FORK = multiprocessing.get_context("fork")

Step = Callable[[aiohttp.ClientSession, int], Awaitable[None]]
"""One request, or several, of an abuser or of its well-behaved twin; receives a number that grows."""


@dataclass
class Outcome:
    """Requests of the ordinary clients: the seconds of each, and the failures."""

    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def p99_ms(self) -> float:
        """The slowest hundredth, in milliseconds."""
        return statistics.quantiles(self.seconds, n=100)[98] * 1e3 if len(self.seconds) > 1 else 0.0


@dataclass(frozen=True)
class Place:
    """The running proxy, and the data of its clients."""

    proxy: Proxy
    image: Image
    tokens: dict[str, str]
    refresh_token: str

    def bearer(self, name: str) -> dict[str, str]:
        """Return the header with a token of a user."""
        return {"Authorization": f"Bearer {self.tokens[name]}"}


def basic(name: str, password: str) -> dict[str, str]:
    """Return the header of a login."""
    return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}


def session(address: str) -> aiohttp.ClientSession:
    """Return a client that calls from an address of loopback."""
    connector = aiohttp.TCPConnector(local_addr=(address, 0), limit=0)
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=60))


# The ordinary clients


async def read(http: aiohttp.ClientSession, url: str, headers: dict[str, str], *, wanted: int = 200) -> bytes:
    """GET a URL; raise unless the status is the expected one."""
    async with http.get(url, headers=headers) as got:
        body = await got.read()
        if got.status != wanted:
            raise RuntimeError(f"{url}: {got.status} {body[:200]!r}")
        return body


async def pull_manifest(http: aiohttp.ClientSession, place: Place) -> None:
    """Pull a manifest by its tag."""
    url = f"{place.proxy.url}/v2/team/app/manifests/1"
    await read(http, url, {**place.bearer("ann"), "Accept": OCI_MANIFEST})


async def pull_blob(http: aiohttp.ClientSession, place: Place) -> None:
    """Pull a small blob that is in the cache."""
    digest = next(iter(place.image.blobs))
    await read(http, f"{place.proxy.url}/v2/team/app/blobs/{digest}", place.bearer("ann"))


async def log_in(http: aiohttp.ClientSession, place: Place) -> None:
    """Ask for a token by password."""
    url = f"{place.proxy.url}/auth/token?service=registry-proxy&scope=repository:team/app:pull"
    await read(http, url, basic("ann", PASSWORD))


async def push_blob(http: aiohttp.ClientSession, place: Place) -> None:
    """Push a new small blob in one request."""
    content = random_bytes(2048)
    url = f"{place.proxy.url}/v2/team/app/blobs/uploads/"
    headers = place.bearer("ann")
    async with http.post(url, params={"digest": digest_of(content)}, data=content, headers=headers) as pushed:
        body = await pushed.read()
        if pushed.status != 201:
            raise RuntimeError(f"push: {pushed.status} {body[:200]!r}")


ORDINARY = (pull_manifest, pull_blob, pull_manifest, pull_blob, pull_manifest, pull_blob, log_in, push_blob)


async def be_ordinary(place: Place, requests: int) -> Outcome:
    """Make ordinary requests from ten clients, a little apart; none is repeated."""
    outcome = Outcome()
    left = iter(range(requests))

    async def one(offset: int) -> None:
        kinds = itertools.islice(itertools.cycle(ORDINARY), offset, None)
        async with session(CLIENT_ADDRESS) as http:
            for _ in left:
                began = time.perf_counter()
                try:
                    await next(kinds)(http, place)
                except (RuntimeError, aiohttp.ClientError, TimeoutError) as error:
                    outcome.failures.append(f"{type(error).__name__}: {error}")
                outcome.seconds.append(time.perf_counter() - began)
                await asyncio.sleep(PAUSE_SECONDS)

    await asyncio.gather(*(one(number) for number in range(CLIENTS)))
    return outcome


# The abusers; each in a separate process


async def ask(http: aiohttp.ClientSession, method: str, url: str, **options: Any) -> None:
    """Send a request and read its answer, whatever the status is."""
    async with http.request(method, url, **options) as got:
        await got.read()


def steps_of(place: Place) -> dict[str, Step]:
    """Return the request of each abuser that sends many."""
    url = place.proxy.url
    eve = place.bearer("eve")

    async def guess(http: aiohttp.ClientSession, number: int) -> None:
        await ask(http, "GET", f"{url}/auth/token?service=registry-proxy", headers=basic("eve", f"guess {number}"))

    async def guess_a_refresh_token(http: aiohttp.ClientSession, number: int) -> None:
        form = {"grant_type": "refresh_token", "service": "registry-proxy", "refresh_token": f"rpr_{number}"}
        await ask(http, "POST", f"{url}/auth/token", data=form)

    async def abandon(http: aiohttp.ClientSession, number: int) -> None:
        async with http.post(f"{url}/v2/home/eve/{number % 5}/blobs/uploads/", headers=eve) as opened:
            location = opened.headers.get("Location", "")
        if location:
            await ask(http, "PATCH", location, data=bytes(1 << 20), headers=eve)

    async def poison(http: aiohttp.ClientSession, _: int) -> None:
        digest = "sha256:" + "0" * 64
        await ask(http, "GET", f"{url}/v2/{POISON}/manifests/{digest}", headers={**eve, "Accept": OCI_MANIFEST})

    async def list_without_end(http: aiohttp.ClientSession, _: int) -> None:
        await ask(http, "GET", f"{url}/v2/{LISTED}/tags/list", headers=eve)

    async def list_everything(http: aiohttp.ClientSession, _: int) -> None:
        await ask(http, "GET", f"{url}/v2/_catalog?n=1", headers=eve)

    async def push_without_a_right(http: aiohttp.ClientSession, number: int) -> None:
        await ask(http, "PUT", f"{url}/v2/team/app/manifests/{number}", data=b"{}", headers=eve)

    return {
        "wrong passwords": guess,
        "dead refresh tokens": guess_a_refresh_token,
        "abandoned uploads": abandon,
        "a poisoned object": poison,
        "a list without an end": list_without_end,
        "the catalog, page by page": list_everything,
        "pushes without a right": push_without_a_right,
    }


async def withhold(port: int, path: str) -> None:
    """Hold connections open whose bodies come a byte a second."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 60000\r\n"
    form = "Content-Type: application/x-www-form-urlencoded\r\n\r\na"

    async def one() -> None:
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(ABUSER_ADDRESS, 0))
                try:
                    writer.write((head + form).encode())
                    while not reader.at_eof():
                        writer.write(b"a")
                        await writer.drain()
                        with suppress(TimeoutError):
                            await asyncio.wait_for(reader.read(1000), 1)
                finally:
                    writer.close()
            await asyncio.sleep(0.5)

    await asyncio.gather(*(one() for _ in range(WITHHELD_CONNECTIONS)))


async def log_in_and_rest(place: Place) -> None:
    """Hold as many connections open for as long as withheld bodies do; on each a whole login is sent."""
    fields = {"grant_type": "refresh_token", "service": "registry-proxy", "refresh_token": place.refresh_token}
    form = urlencode(fields)
    head = f"POST /auth/token HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(form)}\r\n"
    request = f"{head}Content-Type: application/x-www-form-urlencoded\r\n\r\n{form}".encode()

    async def one() -> None:
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", place.proxy.port, local_addr=(ABUSER_ADDRESS, 0)
                )
                try:
                    writer.write(request)
                    await reader.read(10_000)
                    await asyncio.sleep(random.uniform(*WITHHELD_SECONDS))
                finally:
                    writer.close()
            await asyncio.sleep(0.5)

    await asyncio.gather(*(one() for _ in range(WITHHELD_CONNECTIONS)))


async def send_garbage(port: int) -> None:
    """Send bytes without a meaning behind a whole request."""
    request = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(ABUSER_ADDRESS, 0))
            try:
                writer.write(request + b"\x00" * (1 << 20))
                await asyncio.wait_for(writer.drain(), 5)
                await asyncio.wait_for(reader.read(), 5)
            except TimeoutError:
                pass
            finally:
                writer.close()
        await asyncio.sleep(0.02)


async def repeat(step: Step, rate: float) -> None:
    """Take a step a number of times a second, without waiting for the one before."""
    async with session(ABUSER_ADDRESS) as http:
        running_steps: set[asyncio.Task[None]] = set()
        for number in itertools.count():
            if len(running_steps) < rate * 10:

                async def one(number: int = number) -> None:
                    with suppress(aiohttp.ClientError, TimeoutError):
                        await step(http, number)

                task = asyncio.ensure_future(one())  # noqa: TID251 - ends with the process
                running_steps.add(task)
                task.add_done_callback(running_steps.discard)
            await asyncio.sleep(1 / rate)


async def list_tags(http: aiohttp.ClientSession, place: Place) -> None:
    """List the tags of a repository."""
    await read(http, f"{place.proxy.url}/v2/team/app/tags/list", place.bearer("ann"))


PULLS, LISTS, LOGINS = "a caller who pulls", "a caller who lists", "a caller who logs in"
TWINS = {"a list without an end": LISTS, "withheld bodies": LOGINS}
"""The well-behaved caller whose load is equal; ``PULLS`` for all other abusers."""


def abuse(place: Place, kind: str, rate: float) -> None:
    """Be one abuser, or one well-behaved caller, until the process is ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    calls: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
        "withheld bodies": lambda: withhold(place.proxy.port, "/auth/token"),
        "garbage behind a request": lambda: send_garbage(place.proxy.port),
        LOGINS: lambda: log_in_and_rest(place),
        PULLS: lambda: repeat(lambda http, _: pull_manifest(http, place), rate),
        LISTS: lambda: repeat(lambda http, _: list_tags(http, place), rate),
    }
    asyncio.run(calls[kind]() if kind in calls else repeat(steps_of(place)[kind], rate))


def beside(place: Place, kind: str | None, rate: float, requests: int) -> Outcome:
    """Return the outcome of the ordinary clients beside an abuser, a well-behaved caller, or nobody (None)."""
    if kind is None:
        return asyncio.run(be_ordinary(place, requests))
    process = FORK.Process(target=abuse, args=(place, kind, rate), daemon=True)
    process.start()
    try:
        time.sleep(3)  # the abuse is under way
        return asyncio.run(be_ordinary(place, requests))
    finally:
        process.kill()
        process.join()
        time.sleep(2)  # its leftovers end


def answers(asked: Asked) -> bytes | None:
    """Break off in a poisoned object, list tags without an end, and pass on all else."""
    if asked.target.startswith(f"/v2/{POISON}/manifests/"):
        return b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nbroken"
    if asked.target.startswith(f"/v2/{LISTED}/tags/list"):
        last = re.search(r"last=(\d+)", asked.target)
        number = int(last[1]) + 1 if last else 0
        link = f"</v2/{LISTED}/tags/list?last={number}>; rel=next"
        body = b'{"name":"%b","tags":["t%d"]}' % (LISTED.encode(), number)
        return answer(200, {"Link": link, "Content-Type": "application/json"}, body)
    return None


@contextmanager
def front(behind: int) -> Iterator[int]:
    """Answer before a registry, in a separate process; give the port."""
    ours, theirs = FORK.Pipe()

    def serve() -> None:
        with Malice(answers, behind) as malice:
            theirs.send(malice.port)
            signal.pause()

    process = FORK.Process(target=serve, daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.kill()
        process.join()


def prepare(proxy: Proxy) -> Place:
    """Make the users, the image, and a token for each user."""
    image = make_image(random_bytes(32 * 1024))
    grants = {
        "ann": {"pull_push": ["team/**"]},
        "eve": {"pull_push": ["home/eve/**"], "pull": [POISON, LISTED]},
    }
    users = {name: proxy.add_user(name, PASSWORD, **rights) for name, rights in grants.items()}
    users["ann"].push("team/app", "1", image)
    users["ann"].pull("team/app", "1")
    scopes = {
        "ann": ["repository:team/app:pull,push"],
        "eve": [
            *(f"repository:home/eve/{number}:pull,push" for number in range(5)),
            *(f"repository:{name}:pull" for name in (POISON, LISTED)),
            "registry:catalog:*",
        ],
    }
    tokens = {name: user.token(*scopes[name]) for name, user in users.items()}
    parameters = {"service": "registry-proxy", "offline_token": "true", "client_id": "bench"}
    answer_of_login = httpx.get(f"{proxy.url}/auth/token", params=parameters, auth=("eve", PASSWORD))
    return Place(proxy, image, tokens, answer_of_login.json()["refresh_token"])


def measure(place: Place, kinds: Sequence[str], rate: float, requests: int) -> None:
    """Print a table, a row for each abuser and each well-behaved caller."""
    print(
        f"\n### {requests} requests of {CLIENTS} ordinary clients beside one abuser ({rate:g} requests a second)\n\n"
        "| beside | failed | p50 ms | p99 ms | compared with | p99 x that |\n|---|---|---|---|---|---|"
    )
    twins: dict[str, Outcome] = {}
    failures: dict[str, list[str]] = {}

    def show(name: str, outcome: Outcome, twin: str) -> None:
        p50 = statistics.median(outcome.seconds) * 1e3
        ratio = f"{twin} | {outcome.p99_ms / twins[twin].p99_ms:.2f}" if twin else "|"
        print(f"| {name} | {len(outcome.failures)} | {p50:.1f} | {outcome.p99_ms:.1f} | {ratio} |", flush=True)
        failures[name] = sorted(set(outcome.failures))[:5]

    show("nobody", beside(place, None, rate, requests), "")
    for kind in kinds:
        twin = TWINS.get(kind, PULLS)
        if twin not in twins:
            twins[twin] = beside(place, twin, rate, requests)
            show(twin, twins[twin], "")
        show(kind, beside(place, kind, rate, requests), twin)
    for name, texts in failures.items():
        for text in texts:
            print(f"{name}: {text}")


def main() -> None:
    """Measure and print; the exit status is 0 whatever the figures are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--requests", type=int, default=500, help="requests of the ordinary clients a row (default 500)"
    )
    parser.add_argument("--rate", type=float, default=50, help="requests of an abuser a second (default 50)")
    parser.add_argument("--only", default="", help="only abusers whose name has this in it")
    options = parser.parse_args()
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        registries = [stack.enter_context(running(docker_registry(root / name))) for name in "ab"]
        ports = [stack.enter_context(front(registry.port)) for registry in registries]
        replicas = [{"name": f"r{number}", "url": f"http://127.0.0.1:{port}"} for number, port in enumerate(ports)]
        settings = {
            "workers": 2,
            "trusted_proxies": [],
            "auth": {"refresh_tokens": True},
            "cache": {"max_size": "256MiB"},
            "upstreams": {"main": {"replicas": replicas}},
        }
        proxy = proxy_server(root / "proxy", [Server([], port, root / "none") for port in ports], settings)
        stack.enter_context(running(proxy))
        place = prepare(proxy)
        kinds = [*steps_of(place), "withheld bodies", "garbage behind a request"]
        print(f"{describe_machine()}; one round; clients and abuser on the same cores")
        measure(place, [kind for kind in kinds if options.only in kind], options.rate, options.requests)


if __name__ == "__main__":
    main()
