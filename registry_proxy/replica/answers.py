"""Answers of a replica to requests for contents: what they state, and the errors they stand for."""

import time

import aiohttp

from registry_proxy.protocol.byterange import parse_content_range
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import Digest, parse_digest
from registry_proxy.replica.failure import (
    BadUpstreamError,
    ReplicaFailedError,
    WrongBytesError,
    has_errors,
    parse_errors,
    refusal,
)
from registry_proxy.replica.transport import Transport


class Answers:
    """Reads the answers of one replica."""

    def __init__(self, name: str, transport: Transport) -> None:
        self._name = name
        self._transport = transport

    def extent(self, response: aiohttp.ClientResponse, offset: int) -> tuple[int, int | None]:
        """Return (offset, size of the whole) of the bytes in an answer; a part is never taken for a whole."""
        if response.status == 200:
            return 0, response.content_length
        part = parse_content_range(response.headers.get("Content-Range"))
        if response.status != 206 or offset == 0 or part is None or part[0].first != offset:
            raise self.mismatch(
                "GET", f"it answers {response.status} with another range than requested", time.monotonic()
            )
        if response.content_length not in {None, part[0].size_bytes}:
            raise self.mismatch("GET", "its Content-Range and Content-Length differ", time.monotonic())
        return offset, part[1]

    def location(self, response: aiohttp.ClientResponse) -> str:
        """Return where an upload goes on."""
        location = response.headers.get("Location")
        if not location:
            raise BadUpstreamError(self._name, "it starts an upload without a Location")
        return self._transport.local_target(location, response.url.raw_path_qs)

    async def check_found(self, response: aiohttp.ClientResponse, unknown: ErrorCode, detail: dict[str, str]) -> None:
        """Raise unless the answer has what was asked for."""
        if response.status in {200, 206}:
            return
        if response.status != 404:
            raise self.mismatch(response.method, f"it answers {response.status}", time.monotonic())
        body = b"" if response.method == "HEAD" else await self._transport.read_error(response)
        if response.content_type in {"text/html", "text/plain"} and not has_errors(body):
            # A load balancer without its registry says so, too: that is not the registry's word.
            raise BadUpstreamError(self._name, f"it answers 404 with {response.content_type}, as no registry does")
        code = next((code for code, _ in parse_errors(body) if code.status == 404), unknown)
        raise not_found(code, detail)

    async def check_blob(self, response: aiohttp.ClientResponse, digest: Digest) -> None:
        """Raise unless the answer has the blob, as its bytes are stored."""
        await self.check_found(response, ErrorCode.BLOB_UNKNOWN, {"digest": str(digest)})
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise self.mismatch(response.method, "it sends a blob compressed", time.monotonic())
        if names_another(response, digest):
            self._transport.count(response.method, "mismatch", time.monotonic())
            raise WrongBytesError(f"{self._name}: it names another digest")
        if response.content_type == "text/html" and "Docker-Content-Digest" not in response.headers:
            raise BadUpstreamError(self._name, "it sends a page of HTML as a blob")

    async def check_deleted(self, response: aiohttp.ClientResponse, unknown: ErrorCode) -> None:
        """Raise unless the content is gone: UNSUPPORTED where the registry does not delete."""
        if response.status in {200, 202, 204, 404}:
            return
        if response.status == 405:
            raise RegistryError(
                ErrorCode.UNSUPPORTED, "the upstream registry does not delete", detail={"replica": self._name}
            )
        raise await self.refusal(response, unknown)

    async def refusal(self, response: aiohttp.ClientResponse, default: ErrorCode) -> RegistryError:
        """Return the refusal of a request, with the code ``default`` where the answer has none."""
        return refusal(self._name, response.status, await self._transport.read_error(response), default)

    def mismatch(self, method: str, reason: str, started_at: float) -> ReplicaFailedError:
        """Count an answer that does not fit its request, and return its error."""
        self._transport.count(method, "mismatch", started_at)
        return ReplicaFailedError(f"{self._name}: {reason}", "mismatch")


def stated_digest(response: aiohttp.ClientResponse) -> Digest | None:
    """Return the digest that an answer names; None where it names none that is known here."""
    try:
        return parse_digest(response.headers.get("Docker-Content-Digest", ""))
    except RegistryError:
        return None


def not_found(code: ErrorCode, detail: dict[str, str]) -> RegistryError:
    """Return the 404 of a content."""
    return RegistryError(code, "no such content in the upstream registry", detail=detail)


def names_another(response: aiohttp.ClientResponse, digest: Digest) -> bool:
    """Tell whether a registry names other content; distribution names what was pushed as sha512 by its sha256."""
    stated = stated_digest(response)
    return stated is not None and stated.algorithm == digest.algorithm and stated != digest
