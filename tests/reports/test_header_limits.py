"""Every token of our endpoint, and every request for one, fits through all parts on its way.

Reports: BuildKit and containerd collect the scopes of a session in one token, and registries answer their own long one
with 400 or 431; ID tokens of several kilobytes as the password of Basic.
"""

import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
from yarl import URL

from registry_proxy.access.logins import LoginResult
from tests.nginx.shipped import nginx_server
from tests.support.fakes.public import PublicBench
from tests.support.servers import running

SCOPES_MAX = 200
ANN = aiohttp.encode_basic_auth("ann", "ann-password")
LONGEST = ["/".join("a" * 128)[:-4] + f"{i:04}" for i in range(SCOPES_MAX)]  # the most to escape
RANDOM_TAIL = [f"{i * 7919:05}{'registry' * 40}"[:255] for i in range(SCOPES_MAX)]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[PublicBench]:
    """A listener on which ann may do everything."""
    made = PublicBench(tmp_path)
    made.allow("pull", "push", repository="**")
    async with made.serving() as public:
        yield public


@contextmanager
def nginx(root: Path, port: int, way: str) -> Iterator[str]:
    """Give the address of the listener, or of a shipped nginx before it."""
    if way == "straight":
        yield f"http://127.0.0.1:{port}"
    else:
        ports = (port,) if way == "tls.conf" else (port, port)
        with running(nginx_server(root / "nginx", None, *ports)) as server:
            yield server.url


async def ask(url: str, method: str, names: Sequence[str]) -> tuple[int, Any]:
    """Ask for one token for all names, as docker (GET) or containerd (POST) does."""
    scopes = [("scope", f"repository:{name}:pull,push") for name in names]
    async with aiohttp.ClientSession() as session:
        if method == "GET":
            query = urlencode([("account", "ann"), *scopes, ("service", "registry-proxy")])
            to = URL(f"{url}/auth/token?{query}", encoded=True)
            async with session.get(to, headers={"Authorization": ANN}) as response:
                return response.status, await response.json()
        form = [("grant_type", "password"), ("username", "ann"), ("password", "ann-password")]
        scope = " ".join(value for _, value in scopes)
        async with session.post(f"{url}/auth/token", data=[*form, ("scope", scope)]) as response:
            return response.status, await response.json()


async def uses(url: str, token: str, names: Sequence[str]) -> set[int]:
    """Return the statuses of a push that begins in each repository."""
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as session:
        statuses = set()
        for name in names:
            async with session.post(f"{url}/v2/{name}/blobs/uploads/") as response:
                statuses.add(response.status)
        return statuses


@pytest.mark.parametrize("way", ["straight", "tls.conf", "two-nodes.conf"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_token_for_200_scopes_of_255_characters_is_usable(
    bench: PublicBench, tmp_path: Path, way: str, method: str
) -> None:
    """It is given for one request and used for each of its repositories, directly and through the shipped nginx."""
    assert {len(name) for name in LONGEST} == {255}
    with nginx(tmp_path, bench.port, way) as url:
        status, body = await ask(url, method, LONGEST)
        assert status == 200, body
        assert await uses(url, body["token"], LONGEST) == {202}
        assert await uses(url, body["token"], ["team/other"]) == {401}


@pytest.mark.parametrize("count", [1, 12, 13, 73, 100, SCOPES_MAX])
async def test_no_token_is_longer_than_others_take(bench: PublicBench, count: int) -> None:
    """A header line of 8 KB is the default limit of nginx, Apache and most balancers."""
    for names in (RANDOM_TAIL, LONGEST, [f"app-{i}" for i in range(count)]):
        _, body = await ask(f"http://127.0.0.1:{bench.port}", "POST", names[:count])
        assert len(f"Authorization: Bearer {body['token']}") < 8000
        assert await uses(f"http://127.0.0.1:{bench.port}", body["token"], names[:count:9]) == {202}


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_one_scope_more_is_refused_in_words(bench: PublicBench, method: str) -> None:
    """The answer is a 400 that names the limit, instead of a token that no server accepts."""
    names = [f"app-{i}" for i in range(SCOPES_MAX + 1)]
    status, body = await ask(f"http://127.0.0.1:{bench.port}", method, names)
    assert (status, body["errors"][0]["detail"]) == (400, {"scopes": 201, "limit": 200})
    assert "201 scopes" in body["errors"][0]["message"]


async def test_repeated_scopes_count_once(bench: PublicBench) -> None:
    """BuildKit asks for pull and for pull,push of the same repository; over 100 parameters are no fault either."""
    names = [f"app-{i % SCOPES_MAX}" for i in range(SCOPES_MAX * 2)]
    assert (await ask(f"http://127.0.0.1:{bench.port}", "GET", names))[0] == 200


async def test_a_session_that_collects_scopes_ends_with_100_images(bench: PublicBench) -> None:
    """Each image adds its scope to the token of the session, as in BuildKit; each new token opens all so far."""
    names = [f"company/department/team-{i:03}/service-with-a-long-name" for i in range(100)]
    for count in (*range(1, 100, 9), 100):
        _, body = await ask(f"http://127.0.0.1:{bench.port}", "POST", names[:count])
        assert await uses(f"http://127.0.0.1:{bench.port}", body["token"], [names[0], names[count - 1]]) == {202}


@pytest.mark.parametrize("size", [8 * 1024, 12_000])
@pytest.mark.parametrize("way", ["straight", "tls.conf"])
async def test_an_id_token_of_many_kilobytes_logs_in(bench: PublicBench, tmp_path: Path, size: int, way: str) -> None:
    """It is accepted as the password of Basic, where it is a third longer, and as bearer."""
    id_token = "x" * size
    bench.control.id_tokens[id_token] = LoginResult("user:ann")
    with nginx(tmp_path, bench.port, way) as url:
        for value in (aiohttp.encode_basic_auth("oidc", id_token), f"Bearer {id_token}"):
            headers = {"Authorization": value}
            async with aiohttp.ClientSession(headers=headers) as session, session.get(f"{url}/auth/token") as response:
                assert response.status == 200, await response.text()


@pytest.mark.parametrize(
    ("path", "field", "status", "word"),
    [("/auth/token?scope=" + "a" * 131_072, "a", 414, "URL"), ("/v2/", "a" * 16_385, 431, "header field")],
)
async def test_a_header_that_is_still_too_long_is_reported(
    bench: PublicBench, path: str, field: str, status: int, word: str
) -> None:
    """The answer names the part and its limit, in the form of errors, and the connection ends."""
    answer = await bench.raw(bench.request(f"GET {path}", [f"X-Field: {field}"], token=False))
    error = json.loads(answer.body)["errors"][0]
    assert answer.status == status
    assert f"a {word} of the request is longer than {error['detail']['limit']} bytes" in error["message"]


async def test_too_many_fields_are_refused_with_the_number(bench: PublicBench) -> None:
    """The answer is a 431 with the limit; as many fields as that are no fault."""
    answers = []
    for count in (60, 70):
        fields = [f"X-{number}: 1" for number in range(count)]
        answers.append(await bench.raw(bench.request("GET /v2/", fields, token=False)))
    assert [answer.status for answer in answers] == [401, 431]
    assert "more than 64 header fields" in json.loads(answers[-1].body)["errors"][0]["message"]
