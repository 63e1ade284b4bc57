"""Lists of referrers over a real socket: the headers of each answer, and the answer to each failure."""

from typing import Any

import pytest

from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.protocol.descriptor import OCI_INDEX
from registry_proxy.protocol.reference import Digest, digest_of
from tests.support.fakes.public import PublicBench

SUBJECT = digest_of(b"subject")
PATH = f"/v2/team/app/referrers/{SUBJECT}"


async def get(public: PublicBench, path: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Return status, headers and body of an answer to a caller that may pull."""
    public.allow("pull")
    async with public.session.get(path, headers=public.bearer()) as response:
        return response.status, dict(response.headers), await response.json(content_type=None)


def asked(body: dict[str, Any]) -> list[object]:
    """Return the question for the list, which the fake notes in its only entry."""
    [entry] = body["manifests"]
    return list(entry["asked"])


async def test_a_list_of_referrers_is_an_index(public: PublicBench) -> None:
    """Without a filter no filter is marked as applied, and at the end there is no Link."""
    status, headers, body = await get(public, PATH)
    assert (status, headers["Content-Type"]) == (200, OCI_INDEX)
    assert (body["schemaVersion"], body["mediaType"]) == (2, OCI_INDEX)
    assert asked(body) == ["main/team/app", str(SUBJECT), None, None, None]
    assert {"Link", "OCI-Filters-Applied"} & headers.keys() == set()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("artifactType=a%2Fb%2Bjson", ["a/b+json", None, None]),
        ("artifactType=", [None, None, None]),
        ("n=7&last=x", [None, "x", 7]),
    ],
)
async def test_a_filter_and_a_page_are_asked_for(public: PublicBench, query: str, expected: list[object]) -> None:
    """A requested filter is marked as applied."""
    _, headers, body = await get(public, f"{PATH}?{query}")
    assert asked(body)[2:] == expected
    assert headers.get("OCI-Filters-Applied") == ("artifactType" if expected[0] else None)


async def test_the_next_page_is_filtered_as_this_one(public: PublicBench) -> None:
    """The Link leads to the next page with filter, size and place."""
    public.referrers.last = "sha256:abc"
    _, headers, _ = await get(public, f"{PATH}?artifactType=a%2Fb&n=7")
    link = headers["Link"]
    assert link.endswith('>; rel="next"')
    _, _, body = await get(public, link.partition(">")[0].removeprefix("<"))
    assert asked(body) == ["main/team/app", str(SUBJECT), "a/b", "sha256:abc", 7]


async def test_a_list_that_cannot_be_whole_is_503(public: PublicBench) -> None:
    """A partial list is never an empty one: an image would seem to have no signatures."""
    public.referrers.error = UpstreamUnavailableError("b: down")
    status, _, body = await get(public, PATH)
    assert status == 503
    assert "manifests" not in body


@pytest.mark.parametrize("subject", [None, SUBJECT])
async def test_a_push_names_the_subject_of_its_manifest(public: PublicBench, subject: Digest | None) -> None:
    """OCI-Subject says that the list of referrers has the manifest, and that the client need not keep one."""
    public.push.manifest_subject = subject
    public.allow("push")
    async with public.session.put("/v2/team/app/manifests/1", data=b"{}", headers=public.bearer()) as response:
        assert response.status == 201
        assert response.headers.get("OCI-Subject") == (subject and str(subject))


async def test_pulls_are_noted_only_where_they_are_wanted(public: PublicBench) -> None:
    """A GET of a manifest by tag or digest is a pull; a HEAD, a blob, and an answer without the manifest are none."""
    body, layer = b'{"schemaVersion":2}', b"a layer"
    digest = public.reader.add_manifest("team/app", body, "v1")
    public.reader.add_blob("team/app", layer)
    public.allow("pull")
    base, bearer = "/v2/team/app", public.bearer()

    async def ask(method: str, path: str, **headers: str) -> int:
        async with public.session.request(method, f"{base}/{path}", headers=bearer | headers) as response:
            await response.read()
            return response.status

    assert await ask("GET", "manifests/v1") == 200
    assert public.pulls.notes == []
    public.pulls.is_wanted = True
    assert await ask("HEAD", "manifests/v1") == 200
    assert await ask("GET", f"blobs/{digest_of(layer)}") == 200
    assert await ask("GET", "manifests/v1", **{"If-None-Match": f'"{digest}"'}) == 304
    assert await ask("GET", "manifests/v2") == 404
    assert public.pulls.notes == []
    assert await ask("GET", "manifests/v1", **{"User-Agent": "docker/27"}) == 200
    assert await ask("GET", f"manifests/{digest}", **{"User-Agent": "docker/27"}) == 200
    assert [note[:3] for note in public.pulls.notes] == [("main/team/app", tag, digest) for tag in ("v1", "")]
    actor = public.pulls.notes[1][3]
    assert (actor.subject, actor.user_agent, actor.scheme) == ("user:ann", "docker/27", "http")
    assert actor.host == f"127.0.0.1:{public.port}"
    assert actor.request_id
