"""Receivers over HTTP: an event reaches its receiver alone, and an attempt has a time limit."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from registry_proxy.events import receivers
from registry_proxy.events.delivery import Delivery
from registry_proxy.events.receivers import Endpoint, HttpSender, ReceiverLimits, receiver_doubt
from registry_proxy.events.sender import ReceiverAnswer
from registry_proxy.events.subscription import Subscription
from tests.events.support import pushed

SECRET, OLD = "a secret of 16 characters", "the one before it, still live"


@dataclass
class Receiver:
    """A receiver on loopback that records its requests."""

    server: TestServer
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answers: list[web.Response] = field(default_factory=list)
    hangs: bool = False

    def url(self, host: str = "127.0.0.1") -> str:
        """Return its URL under a name or notation of the host."""
        return f"http://{host}:{self.server.port}/hook"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver that answers 200, or as the test says."""

    async def take(request: web.Request) -> web.Response:
        found.requests.append((dict(request.headers), await request.read()))
        if found.hangs:
            await asyncio.Event().wait()
        return found.answers.pop(0) if found.answers else web.Response(text="thanks")

    app = web.Application()
    app.router.add_post("/hook", take)
    server = TestServer(app, host="127.0.0.1")
    async with server:
        found = Receiver(server)
        yield found


async def send(
    url: str,
    *,
    allowed_hosts: tuple[str, ...] = ("127.0.0.1",),
    services: tuple[Endpoint, ...] = (),
    allows_private: bool = True,
    **fields: object,
) -> ReceiverAnswer:
    """Try one delivery."""
    sender = HttpSender(ReceiverLimits(allows_private, allowed_hosts, services), lambda: 1_700_000_000.0)
    try:
        subscription = Subscription(name="ci", url=url, **fields)  # type: ignore[arg-type]  # fields of a subscription
        return await sender.send(subscription, 7, Delivery(event=pushed(1), queued_at=0.0))
    finally:
        await sender.aclose()


async def test_an_event_arrives_as_a_signed_cloudevent(receiver: Receiver) -> None:
    """The body is a CloudEvent with its number; each live secret signs id, time and body (Standard Webhooks)."""
    answer = await send(receiver.url(), secrets=[SECRET, OLD], headers={"Authorization": "Bearer x"})
    assert (answer.status, answer.text, answer.is_accepted) == (200, "thanks", True)
    ((headers, body),) = receiver.requests
    event = json.loads(body)
    assert (event["specversion"], event["id"], event["type"]) == ("1.0", "event-1", "registry-proxy.image.push")
    assert (event["sequence"], event["subject"], event["data"]["tag"]) == ("000000000007", "team/app", "v1")
    assert headers["Authorization"] == "Bearer x"
    assert headers["webhook-id"] == "event-1"
    signed = f"event-1.{headers['webhook-timestamp']}.".encode() + body
    wanted = [base64.b64encode(hmac.new(each.encode(), signed, hashlib.sha256).digest()) for each in (SECRET, OLD)]
    assert headers["webhook-signature"] == " ".join(f"v1,{each.decode()}" for each in wanted)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "0x7f000001", "2130706433", "0177.0.0.1", "[::ffff:127.0.0.1]"]
)
async def test_loopback_receives_nothing_unless_it_is_listed(receiver: Receiver, host: str) -> None:
    """In no notation of this machine's address an event is sent to it; the reason names the setting."""
    answer = await send(receiver.url(host), allowed_hosts=())
    assert answer.status is None
    assert "events.allowed_hosts" in answer.text or "not a canonical" in answer.text
    assert receiver.requests == []


@pytest.mark.parametrize("host", ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]", "0xa9fea9fe", "0.0.0.0"])
async def test_metadata_services_are_never_asked(host: str) -> None:
    """Metadata services get no request, even where the host is listed."""
    answer = await send(f"http://{host}/latest/meta-data", allowed_hosts=(host.strip("[]"),))
    assert (answer.status, "events.private" in answer.text) == (None, True)


async def test_private_networks_can_be_excluded() -> None:
    """With ``events.private`` false, an address of a private network gets nothing."""
    answer = await send("http://10.0.0.1:9/hook", allows_private=False)
    assert "events.private" in answer.text


async def test_our_own_services_receive_nothing(receiver: Receiver) -> None:
    """Redis, replicas and the admin listener get nothing, also on a listed host and by another name."""
    assert receiver.server.port is not None
    services = (("localhost", receiver.server.port),)
    answer = await send(receiver.url(), services=services)
    assert (answer.status, receiver.requests) == (None, [])


async def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    """A receiver cannot redirect an event to another host."""
    receiver.answers = [web.Response(status=302, headers={"Location": receiver.url()})]
    answer = await send(receiver.url())
    assert (answer.status, answer.is_accepted, len(receiver.requests)) == (302, False, 1)
    assert "redirect" in answer.text


async def test_of_a_long_answer_the_beginning_is_kept(receiver: Receiver) -> None:
    """The record of an answer keeps 1,024 characters, whatever the bytes are."""
    receiver.answers = [web.Response(status=500, body=b"\xff" + b"x" * 100_000, headers={"Retry-After": "120"})]
    answer = await send(receiver.url())
    assert (len(answer.text), answer.retry_after_seconds) == (1024, 120.0)


async def test_a_receiver_that_hangs_is_left(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt has one limit for its whole length."""
    monkeypatch.setattr(receivers, "TRY_SECONDS", 0.2)
    receiver.hangs = True
    answer = await send(receiver.url())
    assert (answer.status, answer.text) == (None, "no answer within 0.2 s")


@pytest.mark.parametrize(
    ("host", "resolves", "is_doubted"),
    [
        ("127.0.0.1", False, True),
        ("0x7f000001", True, True),
        ("localhost", True, True),
        ("localhost", False, False),
        ("10.0.0.1", False, False),
        ("ci.internal", True, False),
    ],
)
async def test_a_receiver_out_of_reach_is_known_beforehand(host: str, *, resolves: bool, is_doubted: bool) -> None:
    """A name is looked up only where the caller may learn its place; allowed hosts and zones raise no doubt."""
    limits = ReceiverLimits(allows_private=True, allowed_hosts=("ci.internal",), services=())
    assert (await receiver_doubt(limits, f"http://{host}:80/", resolves=resolves) is not None) == is_doubted
