"""Lists of referrers over a real socket: the headers of each answer, and what becomes of a failure."""

from typing import Any

import pytest

from registry_proxy.ports.errors import UpstreamUnavailableError
from registry_proxy.protocol.descriptor import OCI_INDEX
from registry_proxy.protocol.reference import Digest, digest_of
from tests.support.fakes.public import PublicBench

SUBJECT = digest_of(b"subject")
PATH = f"/v2/team/app/referrers/{SUBJECT}"


async def get(public: PublicBench, path: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Return status, headers and body of an answer to somebody who may pull."""
    public.allow("pull")
    async with public.session.get(path, headers=public.bearer()) as response:
        return response.status, dict(response.headers), await response.json(content_type=None)


def asked(body: dict[str, Any]) -> list[object]:
    """Return what was asked of the list, as the fake notes it in its only entry."""
    [entry] = body["manifests"]
    return list(entry["asked"])


async def test_a_list_of_referrers_is_an_index(public: PublicBench) -> None:
    """Without a filter no filter is said to be applied, and at the end there is no Link."""
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
    """The filter is said to be applied where one was asked for."""
    _, headers, body = await get(public, f"{PATH}?{query}")
    assert asked(body)[2:] == expected
    assert headers.get("OCI-Filters-Applied") == ("artifactType" if expected[0] else None)


async def test_the_next_page_is_filtered_as_this_one(public: PublicBench) -> None:
    """The Link leads to it, with filter, size and place."""
    public.referrers.last = "sha256:abc"
    _, headers, _ = await get(public, f"{PATH}?artifactType=a%2Fb&n=7")
    link = headers["Link"]
    assert link.endswith('>; rel="next"')
    _, _, body = await get(public, link.partition(">")[0].removeprefix("<"))
    assert asked(body) == ["main/team/app", str(SUBJECT), "a/b", "sha256:abc", 7]


async def test_a_list_that_cannot_be_whole_is_503(public: PublicBench) -> None:
    """Never an empty one: an image would seem to have no signatures."""
    public.referrers.error = UpstreamUnavailableError("b: down")
    status, _, body = await get(public, PATH)
    assert status == 503
    assert "manifests" not in body


@pytest.mark.parametrize("subject", [None, SUBJECT])
async def test_a_push_is_told_what_its_manifest_refers_to(public: PublicBench, subject: Digest | None) -> None:
    """OCI-Subject says that the list of referrers has it, and that the client need not keep one."""
    public.push.manifest_subject = subject
    public.allow("push")
    async with public.session.put("/v2/team/app/manifests/1", data=b"{}", headers=public.bearer()) as response:
        assert response.status == 201
        assert response.headers.get("OCI-Subject") == (subject and str(subject))
