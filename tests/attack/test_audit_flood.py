"""Garbage of strangers never fills the audit log: administrators' acts stay, and retention reports its removals."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.copied import Copies
from tests.support.product import Proxy, proxy_server
from tests.support.servers import Server, free_port, running

GARBAGE = 600


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, copies: Copies) -> Iterator[Proxy]:
    """Start a proxy whose audit log has room for some hundred lines."""
    root = tmp_path_factory.mktemp("flood")
    absent = Server([], free_port(), root / "log")
    extra = {"audit": {"file_size": "4KiB", "max_size": "32KiB", "changes": {"max_size": "64KiB"}}}
    proxy = proxy_server(root / "proxy", [absent], extra, copies=copies)
    with running(proxy):
        yield proxy


def events(proxy: Proxy, **query: str) -> list[dict[str, Any]]:
    """Return the last thousand events that match the query."""
    with proxy.admin() as admin:
        found: list[dict[str, Any]] = admin.get("/audit", params={"last": "1000", **query}).json()["items"]
        return found


def count_events(found: list[dict[str, Any]]) -> int:
    """Return the number of events: a line stands for one, or gives the number that it stands for."""
    return sum(event.get("detail", {}).get("folded", 1) for event in found)


def flood(proxy: Proxy) -> Counter[int]:
    """Send garbage as nobody, tokens and logins under a made-up name; count the answers by status."""
    answers: Counter[int] = Counter()
    with httpx.Client(base_url=proxy.url, verify=False, timeout=60) as client:
        for number in range(GARBAGE):
            if number % 2 == 0:
                answers[client.get("/auth/token", auth=("nobody", f"wrong {number}")).status_code] += 1
                continue
            bad = {"Authorization": f"Bearer garbage-{number}-{'x' * 200}"}
            answers[client.get(f"/v2/secret/{number}/manifests/v1", headers=bad).status_code] += 1
    return answers


def test_an_administrator_is_never_folded(proxy: Proxy) -> None:
    """A hundred changes in a row are a hundred lines: none stands for another one."""
    with proxy.admin() as admin:
        for number in range(100):
            assert admin.put(f"/groups/g{number}", json={}).status_code == 201
    paths = [event["detail"]["path"] for event in events(proxy, action="groups.put")]
    assert paths == [f"/admin/v1/groups/g{number}" for number in range(100)]


def test_garbage_pushes_no_act_out(proxy: Proxy) -> None:
    """Garbage of several times the log's size leaves an administrator's change in it, and every request is counted."""
    proxy.add_user("ann")
    assert set(flood(proxy)) == {401, 429}
    assert len(events(proxy, action="token") + events(proxy, action="login", outcome="refused")) <= 20
    assert count_events(events(proxy, action="users.put")) == 1
    proxy.stop()  # counts are written at the end of a minute, or of the process
    proxy.start()
    refused = [*events(proxy, action="token"), *events(proxy, action="login", outcome="refused")]
    refused += events(proxy, action="login", outcome="limited")
    assert count_events(refused) == GARBAGE
    assert {event["address"] for event in refused} == {"127.0.0.1"}
    assert count_events(events(proxy, action="users.put")) == 1
    with proxy.admin() as admin:
        assert admin.post("/audit/verify").json()["intact"] is True
    assert "more events since" in proxy.command("audit", "search", "--action", "token").stdout


def test_repetitions_of_a_user_are_folded(proxy: Proxy) -> None:
    """Users who may change only their own account cannot fill the log with refusals or with their own changes."""
    eve = proxy.add_user("eve")
    assert eve.password is not None
    with httpx.Client(base_url=f"{proxy.admin_url}/admin/v1", auth=("eve", eve.password), verify=False) as client:
        for _ in range(50):
            made = client.post("/me/tokens", json={}).raise_for_status().json()
            assert client.delete(f"/me/tokens/{made['id']}").status_code == 204
            assert client.get("/users").status_code == 403
    assert len(events(proxy, subject="user:eve")) <= 40
    assert count_events(events(proxy, action="users.put")) == 2


def test_retention_is_reported(proxy: Proxy) -> None:
    """`audit verify` and the log itself name what retention has removed; the log counts as intact."""
    with proxy.admin() as admin:
        for number in range(150):
            admin.put(f"/groups/g{number % 100}", json={"members": []}).raise_for_status()
        document = admin.post("/audit/verify").raise_for_status().json()
    (acts,) = [chain for chain in document["processes"] if chain["process"] == "0"]
    assert document["intact"] is True
    assert acts["removed"] == acts["first"] - 1 > 0
    newest = events(proxy, action="audit.file")[-1]
    assert 0 < newest["detail"]["removed_lines"] <= acts["removed"]
    assert newest["detail"]["removed_before"] <= acts["begins_at"]
    verification = proxy.command("audit", "verify")
    assert (verification.exit_code, f"{acts['removed']} lines before" in verification.stdout) == (0, True)
