"""The promises of the product, seen from outside: real registries, the real service, one sentence a test."""

import hashlib
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.conftest import StartProxy, require_program
from tests.support.copied import Copies
from tests.support.product import (
    OCI_MANIFEST,
    Proxy,
    User,
    digest_of,
    make_image,
    proxy_server,
    push_directly,
    random_bytes,
)
from tests.support.servers import Server, docker_registry, running, wait_until

MIB = 1024 * 1024


@pytest.fixture
def proxy(start_proxy: StartProxy, registries: list[Server]) -> Proxy:
    """Start a proxy in front of both registries."""
    return start_proxy(registries)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """Start a proxy that shares no memory with the tests, in front of two registries."""
    root = tmp_path_factory.mktemp("measured")
    require_program("docker-registry")
    with ExitStack() as stack:
        registries = [stack.enter_context(running(docker_registry(root / name))) for name in ("first", "second")]
        proxy = proxy_server(root / "proxy", registries)
        stack.enter_context(running(proxy))
        yield proxy


@pytest.mark.parametrize("mebibytes", [128, pytest.param(1024, marks=pytest.mark.soak)])
def test_a_large_layer_passes_with_flat_memory(measured: Proxy, mebibytes: int) -> None:
    """A 1 GiB layer is pushed and pulled with the memory of all processes under 150 MiB."""
    proxy = measured
    chunk = random_bytes(MIB)
    hasher = hashlib.sha256()
    for i in range(mebibytes):
        hasher.update(i.to_bytes(4) + chunk[4:])
    digest = "sha256:" + hasher.hexdigest()
    peak = [0]

    def body() -> Iterator[bytes]:
        for i in range(mebibytes):
            yield i.to_bytes(4) + chunk[4:]
            if i % 32 == 31:
                peak[0] = max(peak[0], proxy.pss_bytes())

    user = proxy.add_user("ann", pull_push=["team/**"])
    user.timeout_seconds = 120
    answer = user.push_blob("team/big", body(), digest)
    assert answer.status_code == 201, answer.text
    pulled = hashlib.sha256()
    with user.client("team/big") as client, client.stream("GET", f"/blobs/{digest}") as stream:
        for i, part in enumerate(stream.iter_raw(4 * MIB)):
            pulled.update(part)
            if i % 8 == 7:
                peak[0] = max(peak[0], proxy.pss_bytes())
    assert "sha256:" + pulled.hexdigest() == digest
    assert peak[0] < 150 * MIB, f"{peak[0] / MIB:.0f} MiB"


def test_cached_bytes_of_another_repository_are_not_there(proxy: Proxy) -> None:
    """A request for b's cached blob or manifest under a/x, where pull is granted, gives a/x's true content: 404."""
    image = make_image(random_bytes(100_000), label="private")
    writer = proxy.add_user("bob", pull_push=["**"])
    writer.push("b/private", "1", image)
    writer.pull("b/private", "1")
    writer.push("a/x", "1", make_image(b"public"))
    reader = proxy.add_user("ann", pull=["a/**"])
    for digest in image.blobs:
        for answer in (reader.get("a/x", f"blobs/{digest}"), reader.head("a/x", f"blobs/{digest}")):
            assert answer.status_code == 404
            assert "X-Cache" not in answer.headers
            assert "Docker-Content-Digest" not in answer.headers
    answer = reader.get("a/x", f"manifests/{image.digest}")
    assert answer.status_code == 404
    assert answer.json()["errors"][0]["code"] == "MANIFEST_UNKNOWN"
    assert reader.get("b/private", "manifests/1").status_code == 401


def test_cached_images_are_served_without_any_registry_also_after_a_restart(
    proxy: Proxy, registries: list[Server]
) -> None:
    """With both registries gone, and the proxy restarted, a cached image is pulled by tag; rights still count."""
    user = proxy.add_user("ann", pull_push=["team/**"])
    image = make_image(random_bytes(100_000), random_bytes(200_000))
    for registry in registries:
        push_directly(registry, "team/app", "1", image)
    assert user.pull("team/app", "1") == image
    for registry in registries:
        registry.stop()
    assert user.pull("team/app", "1") == image
    proxy.stop()
    proxy.start()
    user.tokens.clear()
    assert user.pull("team/app", "1") == image
    assert proxy.add_user("eve").get("team/app", "manifests/1").status_code == 401
    missing = user.get("team/app", "manifests/absent")
    assert missing.status_code == 503
    assert "Retry-After" in missing.headers


def test_a_replica_that_missed_a_push_is_never_the_source_of_the_past(
    registries: list[Server], start_proxy: StartProxy
) -> None:
    """A replica that was down during a push, and is not repaired yet, gives neither the older tag nor a 404."""
    first, second = registries
    replicas = [{"url": server.url} for server in registries]
    proxy = start_proxy([], {"upstreams": {"main": {"replicas": replicas, "repair_rate": 1}}})
    user = proxy.add_user("ann", pull_push=["team/**"])
    old, new = make_image(random_bytes(1000), label="old"), make_image(random_bytes(1000), label="new")
    user.push("team/app", "1", old)
    second.stop()
    user.push("team/app", "1", new)
    user.push("team/app", "2", new)
    second.start()
    wait_until(
        lambda: proxy.metric("registry_proxy_replica_state", state="behind", replica=f"127.0.0.1:{second.port}") == 1,
        "the returned replica is known to be behind",
    )
    assert proxy.metric("registry_proxy_replica_pending", replica=f"127.0.0.1:{second.port}") > 0
    for tag in ("1", "2"):
        assert user.head("team/app", f"manifests/{tag}").headers["Docker-Content-Digest"] == new.digest
    proxy.stop()
    for entry in ("blobs", "repositories"):
        (proxy.cache / entry).rename(proxy.root / f"lost-{entry}")
    proxy.start()
    assert user.pull("team/app", "1") == new
    assert user.pull("team/app", "2") == new
    first.stop()
    proxy.stop()
    for entry in ("blobs", "repositories"):
        (proxy.cache / entry).rename(proxy.root / f"lost-again-{entry}")
    proxy.start()
    for path in ("manifests/1", "manifests/2", f"manifests/{new.digest}", *(f"blobs/{d}" for d in new.blobs)):
        answer = user.get("team/app", path)
        assert answer.status_code == 503, f"{path}: {answer.status_code} {answer.text}"


def test_a_kill_in_mid_fill_leaves_nothing_partial(proxy: Proxy, registries: list[Server]) -> None:
    """After kill -9 of everything during a fill and a restart there is no partial file, and the pull works."""
    blob = random_bytes(32 * MIB)
    digest = digest_of(blob)
    for registry in registries:
        push_directly(registry, "team/app", "1", make_image(blob))
    user = proxy.add_user("ann", pull=["team/**"])
    with user.client("team/app") as client, client.stream("GET", f"/blobs/{digest}") as answer:
        assert answer.status_code == 200
        next(answer.iter_raw(MIB))
        for registry in registries:
            registry.send_signal(signal.SIGSTOP)
        proxy.kill_everything()
    for registry in registries:
        registry.send_signal(signal.SIGCONT)
    proxy.start()
    assert proxy.temporary_files() == []
    assert digest_of(user.get("team/app", f"blobs/{digest}").content) == digest


def test_a_kill_in_mid_push_leaves_nothing_partial(proxy: Proxy, registries: list[Server]) -> None:
    """After kill -9 of everything during a PATCH and a restart nothing partial is left, and a new push works."""
    user = proxy.add_user("ann", pull_push=["team/**"])
    image = make_image(random_bytes(8 * MIB))
    layer = max(image.blobs.values(), key=len)

    def body() -> Iterator[bytes]:
        yield layer[: 4 * MIB]
        wait_until(lambda: any(f.stat().st_size for f in proxy.temporary_files()), "the upload has begun")
        proxy.kill_everything()
        yield layer[4 * MIB :]

    with pytest.raises(httpx.TransportError):
        user.push_blob("team/app", body(), digest_of(layer))
    proxy.start()
    assert proxy.temporary_files() == []
    assert user.head("team/app", f"blobs/{digest_of(layer)}").status_code == 404
    user.push("team/app", "1", image)
    assert user.pull("team/app", "1") == image


def test_a_manifest_of_one_gigabyte_is_refused_unread(measured: Proxy) -> None:
    """A "manifest" announced with 1 GB is refused with the spec's code; the memory stays flat."""
    proxy = measured
    user = proxy.add_user("bob", pull_push=["team/**"])
    token = user.token("repository:team/app:pull,push")
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=30) as connection:
        head = f"PUT /v2/team/app/manifests/1 HTTP/1.1\r\nHost: {proxy.host}\r\nAuthorization: Bearer {token}\r\n"
        head += f"Content-Type: {OCI_MANIFEST}\r\nContent-Length: {1 << 30}\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.recv(65536).decode()
    assert answer.startswith(("HTTP/1.1 400", "HTTP/1.1 413")), answer
    assert "MANIFEST_INVALID" in answer or "SIZE_INVALID" in answer
    assert proxy.pss_bytes() < 150 * MIB


def garbage_requests(token: str) -> Iterator[tuple[str, str, dict[str, str], bytes]]:
    """Yield requests that no client would send: method, path with query, headers, body."""
    auth = {"Authorization": f"Bearer {token}"}
    for name in ("../etc", "a//b", "A", "a%2Fb", "a%252Fb", "a%00b", "x" * 300, "a/../b", "%2e%2e/b", "a b", "ä"):
        yield "GET", f"/v2/{name}/manifests/1", auth, b""
        yield "POST", f"/v2/{name}/blobs/uploads/", auth, b""
    for digest in (
        "sha256:",
        "sha256:xyz",
        "md5:" + "0" * 32,
        "sha256:" + "A" * 64,
        "sha256:" + "0" * 65,
        ":",
        "sha512:0",
    ):
        yield "GET", f"/v2/team/app/blobs/{digest}", auth, b""
        yield "POST", f"/v2/team/app/blobs/uploads/?digest={digest}", auth, b"abc"
    for tag in (".", "-x", "x" * 129, "a%0ab", "a:b:c"):
        yield "PUT", f"/v2/team/app/manifests/{tag}", {**auth, "Content-Type": OCI_MANIFEST}, b"{}"
    for value in ("bytes=9-1", "bytes=-", "bytes=a-b", "bytes=1-2,4-5", "lines=1-2", "bytes=" + "9" * 400 + "-"):
        yield "GET", f"/v2/team/app/blobs/{'sha256:' + '0' * 64}", {**auth, "Range": value}, b""
    for bad in ("Bearer", "Bearer ", "Bearer a.b.c", "Bearer " + "x" * 7000, "Basic !!!", "Negotiate x", "Bearer \x7f"):
        yield "GET", "/v2/", {"Authorization": bad}, b""
        yield "GET", "/auth/token", {"Authorization": bad}, b""
    for body in (
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"schemaVersion":2}',
        b'{"layers":1,"config":2}',
    ):
        yield "PUT", "/v2/team/app/manifests/1", {**auth, "Content-Type": OCI_MANIFEST}, body
    for query in ("n=-1", "n=x", "n=" + "9" * 40, "n=0", "last=%ff", "n=1&n=2", "%zz", "n=1;2"):
        yield "GET", f"/v2/_catalog?{query}", auth, b""
        yield "GET", f"/v2/team/app/tags/list?{query}", auth, b""
    for state in ("", "x", "A" * 5000, "%00"):
        for method in ("GET", "PATCH", "PUT", "DELETE"):
            path = f"/v2/team/app/blobs/uploads/0123?_state={state}&digest=sha256:{'0' * 64}"
            yield method, path, {**auth, "Content-Range": "5-1"}, b"abc" if method[0] == "P" else b""
    yield "POST", "/v2/team/app/blobs/uploads/?mount=x&from=y", auth, b""
    yield "POST", f"/v2/team/app/blobs/uploads/?mount=sha256:{'0' * 64}&from=../x", auth, b""
    yield "TRACE", "/v2/", auth, b""
    yield "GET", "/v2/" + "a/" * 4000, auth, b""
    yield "GET", "/", {}, b""
    yield "GET", "/auth/token?scope=" + "x" * 3000 + "&scope=:::&scope=repository:a:", {}, b""
    yield "POST", "/auth/token", {"Content-Type": "application/x-www-form-urlencoded"}, b"grant_type=x&%zz"


def test_garbage_is_answered_with_the_specs_errors(proxy: Proxy) -> None:
    """No malformed name, digest, range, token, body, query or header gives a 5xx or a traceback, or loses anything."""
    user = proxy.add_user("ann", pull_push=["**"])
    image = make_image(random_bytes(1000))
    user.push("team/app", "1", image)
    token = user.token("repository:team/app:pull,push", "registry:catalog:*")
    wrong = []
    for method, path, headers, body in garbage_requests(token):
        lines = [
            f"{method} {path} HTTP/1.1",
            f"Host: {proxy.host}",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        lines += [f"{key}: {value}" for key, value in headers.items()]
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=15) as connection:
            connection.sendall("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body)
            answer = connection.makefile("rb").read().decode(errors="replace")
        status = int(answer.split(" ")[1]) if answer.startswith("HTTP/1.") else 0
        if not 200 <= status < 500 or (status >= 400 and '"errors"' not in answer):
            wrong.append((method, path[:100], headers, answer[:300]))
    assert wrong == [], "\n".join(map(repr, wrong))
    assert "Traceback" not in proxy.log_text()
    assert user.pull("team/app", "1") == image


def test_no_secret_is_logged(proxy: Proxy) -> None:
    """Neither a password nor a token nor an upload's state appears in the log, the audit log or the metrics."""
    user = proxy.add_user("ann", "a very secret password", pull_push=["**"])
    user.push("team/app", "1", make_image(random_bytes(1000)))
    user.pull("team/app", "1")
    httpx.get(f"{proxy.url}/auth/token", auth=("ann", "another secret word"), verify=False)
    with proxy.admin() as admin:
        admin.put("/robots/ci", json={}).raise_for_status()
        robot_secret = admin.post("/robots/ci/secrets", json={}).json()["secret"]
    metrics = httpx.get(f"{proxy.admin_url}/metrics", verify=False).text
    proxy.stop()
    audit = "".join(path.read_text() for path in proxy.audit.glob("*.jsonl"))
    assert "robots.secrets.post" in audit
    text = proxy.log_text() + metrics + audit
    for secret in ("a very secret password", "another secret word", robot_secret, "_state=", *user.tokens.values()):
        assert secret not in text


def test_ending_the_service_leaves_no_process(proxy: Proxy) -> None:
    """SIGTERM ends the supervisor and every worker within its 10 seconds."""
    processes = proxy.processes()
    assert len(processes) >= 2
    proxy.stop()
    assert not [process for process in processes if process.is_running()]


def test_two_nodes_on_one_redis_see_each_others_changes(
    start_proxy: StartProxy, registries: list[Server], redis: Server
) -> None:
    """A user, a grant and its removal made on one node are in force on the other within two seconds."""
    store = {"store": f"redis://127.0.0.1:{redis.port}/0"}
    one, other = start_proxy(registries, store, name="one"), start_proxy(registries, store, name="other")
    user = one.add_user("ann", pull_push=["team/**"])
    image = make_image(random_bytes(1000))
    elsewhere = User(other, user.name, user.password)
    user.push("team/app", "1", image)
    wait_until(lambda: elsewhere.get("team/app", "manifests/1").status_code == 200, "the grant is known", 2)
    moved = make_image(random_bytes(1000), label="moved")
    user.push("team/app", "1", moved)
    wait_until(lambda: elsewhere.get("team/app", "manifests/1").content == moved.manifest, "the moved tag is known", 2)
    with one.admin() as admin:
        for grant in admin.get("/grants").json()["items"]:
            admin.delete(f"/grants/{grant['id']}").raise_for_status()
    wait_until(lambda: elsewhere.get("team/app", "manifests/1").status_code == 401, "the removal is known", 2)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a real file system of 24 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "registry-proxy-test", str(path)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def test_a_full_disk_kills_no_worker(start_proxy: StartProxy, registries: list[Server], small_disk: Path) -> None:
    """A blob larger than the disk is pulled and pushed past it, and all workers live."""
    settings = {"workers": 2, "cache": {"path": str(small_disk / "cache"), "min_free": "0"}}
    proxy = start_proxy(registries, settings)
    workers = {worker.pid for worker in proxy.workers()}
    image = make_image(random_bytes(32 * MIB))
    for registry in registries:
        push_directly(registry, "team/app", "1", image)
    user = proxy.add_user("ann", pull_push=["team/**"])
    user.pull("team/app", "1")
    assert user.push_blob("team/app", random_bytes(32 * MIB)).status_code == 201
    user.push("team/app", "2", make_image(random_bytes(1000)))
    assert {worker.pid for worker in proxy.workers()} == workers


def test_a_blob_named_by_sha512_is_pushed_and_pulled(proxy: Proxy) -> None:
    """A registry that answers a push under sha512 with the sha256 of the bytes has stored the right content."""
    user = proxy.add_user("ann", pull_push=["team/**"])
    blob = random_bytes(100_000)
    digest = "sha512:" + hashlib.sha512(blob).hexdigest()
    answer = user.push_blob("team/app", blob, digest)
    assert answer.status_code == 201, answer.text
    assert user.get("team/app", f"blobs/{digest}").content == blob


@pytest.mark.parametrize(
    ("extra", "password", "text"),
    [
        ({}, "short", "REGISTRY_PROXY_ADMIN_PASSWORD cannot be the password of the first admin"),
        ({"store": "redis://127.0.0.1:1/0"}, "long enough to be one", "Redis at 127.0.0.1:1 cannot be used"),
    ],
)
def test_a_failed_start_is_reported_without_a_traceback(
    tmp_path: Path, copies: Copies, extra: dict[str, str], password: str, text: str
) -> None:
    """A password that is too short and a store that is away are named; no message calls it a defect."""
    proxy = proxy_server(tmp_path / "proxy", [Server([], 1, tmp_path / "none")], extra, copies=copies)
    proxy.environment = {"REGISTRY_PROXY_ADMIN_PASSWORD": password}
    proxy.launch()
    assert proxy.process is not None
    assert proxy.process.wait(60) == 1
    assert text in proxy.log_text()
    assert "Traceback" not in proxy.log_text()
    assert password not in proxy.log_text()
