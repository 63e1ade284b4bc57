"""A 404 whose JSON errors come as text is the registry's answer; a bare one, or a page, is not.

Reports: registries in Go that set no Content-Type (olareg, `crane registry`, ko), of which proxies say 502.
"""

import json

import pytest

from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Tag, digest_of
from registry_proxy.replica.client import HttpReplicaClient
from registry_proxy.replica.failure import BadUpstreamError
from tests.support.fakes.registry import FakeRegistry, Fault
from tests.support.fakes.upstream import REPOSITORY, open_client

ABSENT = digest_of(b"absent")
TEXT = {"Content-Type": "text/plain; charset=utf-8"}


async def codes(client: HttpReplicaClient) -> list[ErrorCode]:
    """Ask for absent objects in every way; return the codes of the errors, which all are 404."""
    found = []
    for question in (
        client.resolve_tag(REPOSITORY, Tag("1")),
        client.fetch_manifest(REPOSITORY, ABSENT),
        client.stat_blob(REPOSITORY, ABSENT),
        client.list_tags(REPOSITORY),
    ):
        with pytest.raises(RegistryError) as unknown:
            await question
        assert unknown.value.status == 404, unknown.value
        found.append(unknown.value.code)
    with pytest.raises(RegistryError) as unknown:
        async with client.open_blob(REPOSITORY, ABSENT):
            raise AssertionError("opened")
    return [*found, unknown.value.code]


@pytest.mark.parametrize("code", ["MANIFEST_UNKNOWN", "BLOB_UNKNOWN", "NAME_UNKNOWN", "NOT_FOUND", None])
@pytest.mark.parametrize("type_of", ["text/plain; charset=utf-8", "text/html", "application/json"])
async def test_errors_in_json_are_an_answer(code: str | None, type_of: str) -> None:
    """An error document means 404, whatever its type; a known code is kept."""
    error = {"status": 404, "message": "absent"} | ({} if code is None else {"code": code})
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        body = json.dumps({"errors": [error]}).encode()
        registry.inject(Fault(status=404, body=body, headers={"Content-Type": type_of}))
        found = await codes(client)
    manifest, blob, name = ErrorCode.MANIFEST_UNKNOWN, ErrorCode.BLOB_UNKNOWN, ErrorCode.NAME_UNKNOWN
    known = {one.value: one for one in (manifest, blob, name)}
    wanted = [known.get(str(code), default) for default in (manifest, manifest, blob, name, blob)]
    assert [*wanted[:3], name, wanted[4]] == found


@pytest.mark.parametrize(
    "body", [b"404 page not found", b"", b"{}", b'{"errors":{}}', b'{"errors":"x"}', b"[" * 100_000]
)
async def test_text_is_no_answer(body: bytes) -> None:
    """Text without errors is a load balancer's: it stays a 502."""
    async with FakeRegistry() as registry, open_client(registry.url) as client:
        registry.inject(Fault(status=404, body=body, headers=TEXT))
        for question in (
            client.resolve_tag(REPOSITORY, Tag("1")),
            client.fetch_manifest(REPOSITORY, ABSENT),
            client.stat_blob(REPOSITORY, ABSENT),
        ):
            with pytest.raises(BadUpstreamError):
                await question
