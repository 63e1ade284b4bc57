"""The audit log from outside: who did what, by which rule, from where; a change of it is detected."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import StartProxy, StartRegistry
from tests.support.copied import Copies
from tests.support.product import ADMIN_PASSWORD, Proxy, make_image, proxy_server, random_bytes
from tests.support.servers import Server, running, wait_until


@pytest.fixture
def registry(start_registry: StartRegistry) -> Server:
    """Start a registry."""
    return start_registry("only")


@pytest.fixture
def proxy(start_proxy: StartProxy, registry: Server) -> Proxy:
    """Start a proxy with two workers."""
    return start_proxy([registry], {"workers": 2})


def events(proxy: Proxy, **query: str) -> list[dict[str, Any]]:
    """Return the events that the API finds."""
    found: list[dict[str, Any]] = []
    with proxy.admin() as admin:
        while True:
            page = admin.get("/audit", params=query).raise_for_status().json()
            found += page["items"]
            if page["next"] is None or "last" in query:
                return found
            query["after"] = page["next"]


def the_one(proxy: Proxy, **query: str) -> dict[str, Any]:
    """Wait until there is exactly one matching event, and return it."""
    wait_until(lambda: bool(events(proxy, **query)), f"an event {query}")
    (event,) = events(proxy, **query)
    return event


def verify(proxy: Proxy) -> dict[str, Any]:
    """Return the result of a verification."""
    with proxy.admin() as admin:
        document: dict[str, Any] = admin.post("/audit/verify").raise_for_status().json()
        return document


def faults(proxy: Proxy) -> list[str]:
    """Return the faults that a verification finds."""
    return [fault["text"] for chain in verify(proxy)["processes"] for fault in chain["faults"]]


def wait_until_signed(proxy: Proxy) -> None:
    """Wait until a part of each process's log is signed, and all but the latest logins."""
    wait_until(lambda: all(chain["signed_at"] for chain in verify(proxy)["processes"]), "signatures")


def log_files(proxy: Proxy) -> list[Path]:
    """Return the files of the audit log."""
    return sorted(path for path in proxy.audit.glob("*.jsonl") if path.name[0].isdigit())


def test_each_event_says_who_did_what_by_which_rule_from_where(proxy: Proxy) -> None:
    """Logins, denials, pushes, deletes and changes are each there once, with subject, rule, address and request."""
    user = proxy.add_user("ann", "the password of ann", pull_push=["team/**"])
    image = make_image(random_bytes(1000))
    user.push("team/app", "v1", image)
    refused = user.get("other/app", "manifests/v1")
    assert refused.status_code == 401
    wrong = httpx.get(f"{proxy.url}/auth/token", auth=("ann", "not the password of ann"), verify=False)
    assert wrong.status_code == 401
    user.pull("team/app", "v1")
    with user.client("team/app", "pull,push,delete") as client:
        assert client.delete(f"/manifests/{image.digest}").status_code == 401
    with proxy.admin() as admin:
        (grant,) = admin.get("/grants", params={"subject": "user:ann"}).json()["items"]
        changed = admin.post("/grants", json={"subject": "user:ann", "repository": "team/**", "actions": ["delete"]})
        deletes = changed.json()["id"]
        user.tokens.clear()
        with user.client("team/app", "delete") as client:
            deleted = client.delete(f"/manifests/{image.digest}")
        assert deleted.status_code in {202, 405}
        grouped = admin.put("/groups/dev", json={"members": ["ann"]}).raise_for_status()
        admin.put("/robots/ci", json={}).raise_for_status()
        secret = admin.post("/robots/ci/secrets", json={"label": "one"}).json()
        admin.post("/keys/rotate").raise_for_status()
        admin.post("/revocations", json={"subject": "user:ann"}).raise_for_status()
        admin.post("/cache/purge", json={"repository": "team/app"}).raise_for_status()
        admin.delete(f"/grants/{deletes}").raise_for_status()
        assert admin.post("/grants", json={"subject": "nobody", "repository": "a", "actions": []}).status_code == 400

    wait_until(lambda: len(events(proxy, action="push", outcome="ok")) == 3, "the push of two blobs and of a manifest")
    pushes = events(proxy, action="push", subject="user:ann", outcome="ok")
    assert {each["digest"] for each in pushes if not each.get("tag")} == image.blobs.keys()
    (push,) = (each for each in pushes if each.get("tag"))
    assert (push["repository"], push["tag"], push["digest"]) == ("team/app", "v1", image.digest)
    assert (push["rule"], push["address"]) == (grant["id"], "127.0.0.1")
    denied = the_one(proxy, action="pull", outcome="denied")
    assert (denied["subject"], denied["repository"], denied["tag"]) == ("user:ann", "other/app", "v1")
    assert "no grant lets user:ann pull other/app" in denied["rule"]
    assert denied["request_id"] == refused.headers["X-Request-ID"]
    login = the_one(proxy, action="login", outcome="refused")
    assert (login["subject"], login["request_id"]) == ("user:ann", wrong.headers["X-Request-ID"])
    assert the_one(proxy, action="delete", outcome="denied")["digest"] == image.digest
    done = the_one(proxy, request_id=deleted.headers["X-Request-ID"])
    assert (done["action"], done["digest"]) == ("delete", image.digest)
    assert done["rule"] == deletes if deleted.status_code == 202 else done["outcome"] == "failed"
    for action in ("groups.put", "robots.put", "keys.rotate.post", "revocations.post", "cache.purge.post"):
        event = the_one(proxy, action=action)
        assert (event["subject"], event["outcome"], event["address"]) == ("user:admin", "ok", "127.0.0.1")
        assert event["request_id"]
    assert the_one(proxy, action="groups.put")["request_id"] == grouped.headers["X-Request-ID"]
    assert the_one(proxy, action="robots.secrets.post")["detail"]["id"] == secret["id"]
    assert the_one(proxy, action="grants.delete")["detail"]["path"].endswith(deletes)
    assert the_one(proxy, action="grants.post", outcome="failed")["detail"]["status"] == 400
    made = the_one(proxy, action="users.put")["detail"]
    assert made["asked"] == {"password": "***"}
    assert events(proxy, action="pull", outcome="ok") == []
    text = "".join(path.read_text() for path in proxy.audit.glob("*.jsonl"))
    for word in ("the password of ann", secret["secret"], ADMIN_PASSWORD, "_state", *user.tokens.values()):
        assert word not in text
    assert faults(proxy) == []


def test_it_is_read_in_pages_and_by_command(proxy: Proxy) -> None:
    """Pages give each event once in the order of time; the commands find the same, and refuse a time without a zone."""
    for number in range(5):
        proxy.add_user(f"user{number}")
    wait_until(lambda: len(events(proxy, action="users.put")) == 5, "five events")
    paged = events(proxy, action="users", limit="2")
    assert [event["detail"]["path"][-1] for event in paged] == ["0", "1", "2", "3", "4"]
    assert [event["seq"] for event in events(proxy, action="users.put", last="2")] == [e["seq"] for e in paged[-2:]]
    found = proxy.command("audit", "search", "--action", "users.put", "--since", paged[3]["time"], "--json")
    assert [json.loads(line)["seq"] for line in found.stdout.splitlines()] == [e["seq"] for e in paged[3:]]
    assert "/admin/v1/users/user4" in proxy.command("audit", "tail", "-n", "1", "--action", "users").stdout
    wrong = proxy.command("audit", "search", "--since", "yesterday")
    assert (wrong.exit_code, "expected a time with its zone" in wrong.stderr) == (2, True)


def test_pulls_are_recorded_where_that_is_wanted(start_proxy: StartProxy, registry: Server) -> None:
    """With audit.pulls each allowed pull is an event with its rule, also one answered from memory."""
    proxy = start_proxy([registry], {"audit": {"pulls": True}})
    user = proxy.add_user("ann", pull_push=["team/**"])
    image = make_image(random_bytes(1000))
    user.push("team/app", "v1", image)
    user.get("team/app", f"manifests/{image.digest}")
    answer = user.get("team/app", f"manifests/{image.digest}")
    event = the_one(proxy, action="pull", request_id=answer.headers["X-Request-ID"])
    assert (event["subject"], event["digest"], event["detail"]["operation"]) == (
        "user:ann",
        image.digest,
        "get_manifest",
    )
    assert event["rule"]


def test_a_change_of_the_log_is_found_out(start_proxy: StartProxy, registry: Server) -> None:
    """An edited line is named, and verify ends with 1; before the change, and without signatures, it ends with 0."""
    proxy = start_proxy([registry])
    proxy.add_user("ann")
    the_one(proxy, action="users.put")
    assert proxy.command("audit", "verify").exit_code == 0
    (path,) = log_files(proxy)
    changed = path.read_bytes().replace(b"/admin/v1/users/ann", b"/admin/v1/users/eve")
    with path.open("r+b") as file:
        file.write(changed)
    number = events(proxy, action="users.put")[0]["seq"]
    result = proxy.command("audit", "verify")
    assert (result.exit_code, f"line {number} was changed" in result.stderr) == (1, True), result.stderr


def test_a_cut_end_is_not_covered_up_by_a_restart(start_proxy: StartProxy, registry: Server) -> None:
    """When signed lines are cut off while the service is down, the log says so for as long as it is kept."""
    proxy = start_proxy([registry])
    for number in range(2):
        proxy.add_user(f"user{number}")
    wait_until_signed(proxy)
    proxy.stop()
    (path,) = log_files(proxy)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-3]))
    proxy.start()
    the_one(proxy, action="audit.gap")
    before = verify(proxy)["processes"][0]["signed_at"]
    wait_until(lambda: verify(proxy)["processes"][0]["signed_at"] not in {None, before}, "a new signature")
    assert any("signed lines were missing" in text for text in faults(proxy))


def test_the_log_goes_on_after_kill_and_over_rotation(start_proxy: StartProxy, registry: Server) -> None:
    """After kill -9 in the middle of a line, restarts and rotation that removes old files, verify finds nothing."""
    proxy = start_proxy([registry], {"audit": {"file_size": "4KiB", "changes": {"max_size": "12KiB"}}})
    for number in range(20):
        proxy.add_user(f"user{number}")
    wait_until_signed(proxy)
    proxy.kill_everything()
    newest = log_files(proxy)[-1]
    with newest.open("ab") as file:
        file.write(newest.read_bytes().splitlines(keepends=True)[-1][:100])
    proxy.start()
    for number in range(20, 30):
        proxy.add_user(f"user{number}")
    proxy.stop()
    proxy.start()
    wait_until_signed(proxy)
    assert faults(proxy) == []
    assert int(log_files(proxy)[0].stem.split("-")[1]) > 1
    assert sum(path.stat().st_size for path in log_files(proxy)) <= 16 * 1024
    log_files(proxy)[0].unlink()
    assert any("a file was removed, not by retention" in text for text in faults(proxy))


def test_a_disk_that_stands_still_holds_up_nobody(
    start_registry: StartRegistry, copies: Copies, tmp_path: Path
) -> None:
    """While the disk of the log hangs, pulls, pushes and changes go on, and a stop is not delayed."""
    settings = {"audit": {"path": str(tmp_path / "audit")}}
    proxy = proxy_server(tmp_path / "proxy", [start_registry("only")], settings, copies=copies)
    (tmp_path / "audit").mkdir()
    for chain in ("0", "0traffic"):
        os.mkfifo(tmp_path / "audit" / f"{chain}-000000000001.jsonl")  # opening it waits for a reader
    os.mkfifo(tmp_path / "audit" / "decisions-0.jsonl")
    with running(proxy):
        user = proxy.add_user("ann", pull_push=["team/**"])
        image = make_image(random_bytes(1000))
        user.push("team/app", "v1", image)
        user.pull("team/app", "v1")
        assert user.get("other/app", "manifests/v1").status_code == 401
        assert proxy.metric("registry_proxy_audit_dropped_total") == 0
        assert events(proxy) == []


def test_nothing_is_dropped_under_load(proxy: Proxy) -> None:
    """With eight clients that are refused as fast as they can send, every refusal is logged, and none dropped."""
    user = proxy.add_user("ann", pull=["team/**"])
    user.token("repository:other/app:pull")

    def ask() -> None:
        with user.client("other/app") as client:
            for _ in range(50):
                assert client.get("/manifests/v1").status_code == 401

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert proxy.metric("registry_proxy_audit_dropped_total") == 0
    proxy.stop()  # counts are written at the end of a minute, or of the process
    proxy.start()
    denied = events(proxy, action="pull", outcome="denied", limit="1000")
    assert sum(event["detail"].get("folded", 1) for event in denied) == 400
    assert faults(proxy) == []


def test_a_proposed_policy_is_tried_on_what_was_asked(start_proxy: StartProxy, registry: Server) -> None:
    """Replay names subjects that would newly be refused and newly allowed, and changes nothing."""
    proxy = start_proxy([registry])
    proxy.add_user("ann", pull_push=["team/**"]).push("team/app", "v1", make_image(random_bytes(1000)))
    bob = proxy.add_user("bob")
    assert bob.get("team/app", "manifests/v1").status_code == 401
    with proxy.admin() as admin:
        (grant,) = admin.get("/grants", params={"subject": "user:ann"}).json()["items"]
        proposed = {"subject": "user:bob", "repository": "team/*", "actions": ["pull"]}

        def replayed() -> dict[str, Any]:
            body = {"add": [proposed], "remove": [grant["id"]]}
            document: dict[str, Any] = admin.post("/policy/replay", json=body).raise_for_status().json()
            return document

        def denied() -> set[tuple[str, str | None]]:
            return {(question["action"], question["tag"]) for question in replayed()["newly_denied"]}

        wait_until(lambda: denied() >= {("push", "v1"), ("push", None)}, "the questions of ann")
        wait_until(lambda: bool(replayed()["newly_allowed"]), "the question of bob")
        result = replayed()
        assert (result["subjects_newly_denied"], result["subjects_newly_allowed"]) == (["user:ann"], ["user:bob"])
        assert result["newly_allowed"][0]["reason"].startswith("grant proposed-1 lets user:bob pull")
        assert len(admin.get("/grants").json()["items"]) == 1
        wrong = admin.post("/policy/replay", json={"add": [{**proposed, "actions": ["fly"]}], "remove": ["none"]})
        assert wrong.status_code == 400
        assert {fault["pointer"] for fault in wrong.json()["errors"]} == {"#/add/0/actions", "#/remove/0"}
    shown = proxy.command("grant", "replay", "--remove", grant["id"], "--add", "user:bob team/* pull")
    assert "Newly denied: 1 subject, user:ann" in shown.stderr
    assert "Newly allowed: 1 subject, user:bob" in shown.stderr
