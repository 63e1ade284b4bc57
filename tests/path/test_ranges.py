"""Ranges and conditions, compared with a real registry's answers to the same requests, cold and hot."""

import httpx
import pytest

from tests.conftest import StartProxy, StartRegistry
from tests.support.product import digest_of, make_image, push_directly, random_bytes
from tests.support.relay import Relay
from tests.support.servers import Server, wait_until

SIZE = 300_000
SATISFIABLE = [
    "bytes=0-0",
    "bytes=0-99",
    "bytes=1000-1999",
    "bytes=299999-",
    "bytes=0-",
    "bytes=-1",
    "bytes=-300000",
    "bytes=-9999999",
    "bytes=299999-9999999",
    "bytes=100000-299999",
]
UNSATISFIABLE = ["bytes=300000-", "bytes=300000-300001", "bytes=9999999999-", "bytes=9-1"]
IGNORED = [
    "bytes=99999999999999999999-",
    "bytes=0-1,4-5",
    "bytes=0-99,-1",
    "lines=0-1",
    "bytes=",
    "bytes=a-b",
]
"""A server may ignore a Range that it does not support (RFC 9110, 14.2): the whole, never anything else."""


def test_a_range_is_what_the_registry_itself_answers(start_proxy: StartProxy, start_registry: StartRegistry) -> None:
    """Status, Content-Range, length and bytes are those of the registry, for new contents and for hits."""
    registry = start_registry()
    proxy = start_proxy([registry], {"workers": 2})
    user = proxy.add_user("ann", pull=["team/**"])
    for wanted in SATISFIABLE + UNSATISFIABLE + IGNORED:
        blob = random_bytes(SIZE)
        push_directly(registry, "team/app", "1", make_image(blob))
        path = f"blobs/{digest_of(blob)}"
        with httpx.stream(
            "GET", f"{registry.url}/v2/team/app/{path}", headers={"Range": wanted}, verify=False
        ) as theirs:
            # For a 416 the registry announces the length of the whole, and sends less: it cannot be read to the end.
            expected = theirs.read() if theirs.status_code == 206 else b""
        for state in ("cold", "again", "hot"):
            ours = user.get("team/app", path, Range=wanted)
            where = f"{wanted}, {state}"
            if wanted in IGNORED:
                assert (ours.status_code, ours.content) == (200, blob), where
                assert "Content-Range" not in ours.headers, where
            elif wanted in SATISFIABLE:
                assert (ours.status_code, theirs.status_code) == (206, 206), where
                assert ours.content == expected, where
                for header in ("Content-Range", "Content-Length", "Docker-Content-Digest"):
                    assert ours.headers[header] == theirs.headers[header], where
            else:
                assert (ours.status_code, theirs.status_code) == (416, 416), where
                assert ours.headers["Content-Range"] == f"bytes */{SIZE}", where
            if state == "again":
                assert user.get("team/app", path).content == blob, where


def test_if_range_and_if_none_match_go_by_the_digest(start_proxy: StartProxy, start_registry: StartRegistry) -> None:
    """The ETag is the digest, for HEAD and GET, from every worker; nobody gets a 304 without the right to pull."""
    registry = start_registry()
    proxy = start_proxy([registry], {"workers": 2})
    user, stranger = proxy.add_user("ann", pull=["team/**"]), proxy.add_user("bob", pull=["other/**"])
    blob = random_bytes(SIZE)
    push_directly(registry, "team/app", "1", make_image(blob))
    path, tag = f"blobs/{digest_of(blob)}", f'"{digest_of(blob)}"'
    for _ in range(8):  # over both workers
        assert user.head("team/app", path).headers["ETag"] == tag
        assert user.get("team/app", path).headers["ETag"] == tag
        same = user.get("team/app", path, **{"Range": "bytes=5-9", "If-Range": tag})
        assert (same.status_code, same.content) == (206, blob[5:10])
        for other in ('"other"', f"W/{tag}", "Tue, 24 Nov 2026 10:00:00 GMT"):
            whole = user.get("team/app", path, **{"Range": "bytes=5-9", "If-Range": other})
            assert (whole.status_code, whole.content) == (200, blob)
        for method in ("GET", "HEAD"):
            with user.client("team/app") as client:
                assert client.request(method, path, headers={"If-None-Match": tag}).status_code == 304
            with stranger.client("team/app") as client:
                assert client.request(method, path, headers={"If-None-Match": tag}).status_code == 401


def test_a_cold_head_costs_one_head_and_no_body(start_proxy: StartProxy, start_registry: StartRegistry) -> None:
    """HEADs of a blob that nobody has fetched: one HEAD in the registry's log, and no GET."""
    registry = start_registry()
    proxy = start_proxy([registry])
    user = proxy.add_user("ann", pull=["team/**"])
    blob = random_bytes(SIZE)
    push_directly(registry, "team/app", "1", make_image(blob))
    path = f"blobs/{digest_of(blob)}"
    before = len(_methods(registry, path))
    for _ in range(3):
        head = user.head("team/app", path)
        assert (head.status_code, head.headers["Content-Length"]) == (200, str(SIZE))
    assert _methods(registry, path)[before:] == ["HEAD"]


@pytest.mark.parametrize("wanted", ["bytes=1000-1999", "bytes=-1000", "bytes=15000000-"])
def test_a_range_of_what_is_being_fetched(start_proxy: StartProxy, start_registry: StartRegistry, wanted: str) -> None:
    """A range that has arrived is answered immediately; another one waits for its bytes. Nothing is fetched twice."""
    registry = start_registry()
    blob = random_bytes(16 * 1024 * 1024)
    push_directly(registry, "team/app", "1", make_image(blob))
    path = f"blobs/{digest_of(blob)}"
    with Relay(registry.port, pause_after=len(blob) // 2).running() as relay:
        proxy = start_proxy([Server([], relay.port, registry.log)], {"workers": 2})
        user = proxy.add_user("ann", pull=["team/**"])
        with user.client("team/app") as client, client.stream("GET", path) as whole:
            assert relay.paused.wait(30)
            is_here = wanted == "bytes=1000-1999"
            if not is_here:
                relay.resume()
            part = user.get("team/app", path, Range=wanted)
            relay.resume()
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            expected = blob[int(first) : int(last) + 1 if last else None] if first else blob[-int(last) :]
            assert (part.status_code, part.content) == (206, expected)
            assert whole.read() == blob
    wait_until(lambda: "GET" in _methods(registry, path), "it is logged")
    assert _methods(registry, path).count("GET") == 1


def _methods(registry: Server, path: str) -> list[str]:
    """Return the methods of the requests for a path, as the registry's log has them."""
    return [line.split('"')[1].split(" ")[0] for line in registry.log_text().splitlines() if f"/{path} HTTP" in line]
