"""Push and pull as docker does: its requests in its order, a connection for each, and its own retries.

Layers are sent up to five times and fetched up to five times, by Range from where they broke off, with pauses of 5, 10,
15, 20 s; a manifest and the config are sent once; a manifest is read by HEAD and then by GET, each once.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from yarl import URL

from tests.support.product import OCI_MANIFEST, Image, digest_of

TRIES = 5
PAUSE_SECONDS = 5.0
_CHUNK_BYTES = 32 * 1024
_ABSENT = 404


class RefusedError(Exception):
    """The registry answered with an error; ``status`` is that of HTTP."""

    def __init__(self, step: str, status: int, text: str) -> None:
        super().__init__(f"{step}: {status} {text[:300] if text.startswith('{') else ''}".rstrip())
        self.status = status


class BrokenError(Exception):
    """No answer, half an answer, or wrong bytes."""


@dataclass(frozen=True)
class Answer:
    """An answer to a request."""

    status: int
    headers: dict[str, str]
    body: bytes


class Docker:
    """A docker engine that is logged in.

    Args:
        url: of the registry.
        user: the name of the user.
        password: of the user.
        address: of the machine on which it runs; "" for any.
        patience_seconds: time after which an answer counts as a hang; docker itself waits without a limit.
    """

    def __init__(
        self,
        url: str,
        user: str,
        password: str,
        *,
        address: str = "",
        patience_seconds: float = 90.0,
    ) -> None:
        self._url = url
        self._basic = aiohttp.encode_basic_auth(user, password)
        self._patience_seconds = patience_seconds
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=True, limit=0, local_addr=(address, 0) if address else None),
            timeout=aiohttp.ClientTimeout(total=None),
        )
        self._token = ""

    async def aclose(self) -> None:
        """Close its connections."""
        await self._session.close()

    # ------------------------------------------------------------ requests

    @asynccontextmanager
    async def _request(
        self, step: str, method: str, url: str, content: bytes | AsyncIterator[bytes] | None = None, **headers: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        address = URL(url if "://" in url else self._url + url, encoded=True)
        try:
            async with (
                asyncio.timeout(self._patience_seconds),
                self._session.request(method, address, data=content, headers=headers) as response,
            ):
                yield response
        except TimeoutError:
            raise BrokenError(f"{step}: no answer within {self._patience_seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise BrokenError(f"{step}: {error!r}") from error

    async def _ask(
        self, step: str, method: str, url: str, content: bytes | AsyncIterator[bytes] | None = None, **headers: str
    ) -> Answer:
        async with self._request(step, method, url, content, **headers) as response:
            return Answer(response.status, dict(response.headers), await response.read())

    async def _expect(
        self, status: int, step: str, method: str, url: str, content: bytes | AsyncIterator[bytes] | None = None
    ) -> Answer:
        answer = await self._ask(step, method, url, content)
        if answer.status != status:
            raise RefusedError(step, answer.status, answer.body.decode(errors="replace"))
        return answer

    async def login(self, *scopes: str) -> None:
        """Ask ``/v2/`` for the login service, and get a token for some scopes."""
        self._token = ""
        await self._expect(401, "ping", "GET", "/v2/")
        query = [("service", "registry-proxy"), *(("scope", scope) for scope in scopes)]
        url = URL(self._url + "/auth/token").with_query(query)
        try:
            async with (
                asyncio.timeout(self._patience_seconds),
                self._session.get(url, headers={"Authorization": self._basic}) as response,
            ):
                text = await response.text()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise BrokenError(f"token: {error!r}") from error
        if response.status != 200:
            raise RefusedError("token", response.status, text)
        self._token = json.loads(text)["token"]

    # ------------------------------------------------------------ pull

    async def resolve(self, repository: str, tag: str) -> str | None:
        """Return the digest of a tag: by HEAD, and where that fails once by GET; None for "not found"."""
        url = f"/v2/{repository}/manifests/{tag}"
        try:
            answer = await self._ask("HEAD tag", "HEAD", url, Accept=OCI_MANIFEST)
            if answer.status == 200:
                return answer.headers["Docker-Content-Digest"]
        except BrokenError:
            pass
        answer = await self._ask("GET tag", "GET", url, Accept=OCI_MANIFEST)
        if answer.status == _ABSENT:
            return None
        if answer.status != 200:
            raise RefusedError("GET tag", answer.status, answer.body.decode(errors="replace"))
        return digest_of(answer.body)

    async def pull(self, repository: str, digest: str) -> None:
        """Pull an image by digest: manifest, config and layers, each compared with its digest."""
        answer = await self._ask("GET manifest", "GET", f"/v2/{repository}/manifests/{digest}", Accept=OCI_MANIFEST)
        if answer.status != 200:
            raise RefusedError("GET manifest", answer.status, answer.body.decode(errors="replace"))
        if digest_of(answer.body) != digest:
            raise BrokenError("GET manifest: wrong bytes")
        manifest = json.loads(answer.body)
        blobs = [manifest["config"], *manifest["layers"]]
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._pull_blob(repository, one["digest"])) for one in blobs]
        for task in tasks:
            if (error := task.result()) is not None:
                raise error

    async def _pull_blob(self, repository: str, digest: str) -> RefusedError | BrokenError | None:
        """Fetch a blob with docker's patience; return the last error."""
        done = bytearray()
        failure: RefusedError | BrokenError | None = None
        for number in range(TRIES):
            if number > 1:
                await asyncio.sleep(PAUSE_SECONDS * (number - 1))
            try:
                await self._fetch(repository, digest, done)
            except RefusedError as error:
                failure = error
                if error.status == _ABSENT and number:
                    return error
            except BrokenError as error:
                if "wrong bytes" in str(error):
                    return error
                failure = error
            else:
                return None
        return failure

    async def _fetch(self, repository: str, digest: str, done: bytearray) -> None:
        step = f"GET blob {digest[7:17]} from {len(done)}"
        url = f"/v2/{repository}/blobs/{digest}"
        rest = f"bytes={len(done)}-"
        request = self._request(step, "GET", url, Range=rest) if done else self._request(step, "GET", url)
        async with request as response:
            if response.status not in {200, 206}:
                raise RefusedError(step, response.status, await response.text())
            if response.status == 200:
                done.clear()
            async for chunk in response.content.iter_any():
                done += chunk
        if "sha256:" + hashlib.sha256(done).hexdigest() != digest:
            raise BrokenError(f"{step}: wrong bytes")

    # ------------------------------------------------------------ push

    async def push(self, repository: str, tag: str, image: Image) -> None:
        """Push layers, config and manifest; for one with a subject the registry must confirm the subject."""
        config = json.loads(image.manifest)["config"]["digest"]
        for digest, blob in image.blobs.items():
            if digest != config:
                await self._push_layer(repository, digest, blob)
        await self._push_blob(repository, config, image.blobs[config])
        answer = await self._ask(
            "PUT manifest",
            "PUT",
            f"/v2/{repository}/manifests/{tag}",
            image.manifest,
            **{"Content-Type": image.media_type},
        )
        if answer.status != 201:
            raise RefusedError("PUT manifest", answer.status, answer.body.decode(errors="replace"))
        subject = json.loads(image.manifest).get("subject", {}).get("digest")
        if answer.headers.get("OCI-Subject") != subject:
            raise BrokenError(f"PUT manifest: wrong bytes: OCI-Subject is {answer.headers.get('OCI-Subject')}")

    async def _push_layer(self, repository: str, digest: str, blob: bytes) -> None:
        for number in range(1, TRIES + 1):
            try:
                return await self._push_blob(repository, digest, blob)
            except (RefusedError, BrokenError) as error:
                if number == TRIES or (isinstance(error, RefusedError) and error.status in {401, 403, 429}):
                    raise
            await asyncio.sleep(PAUSE_SECONDS * number)
        raise AssertionError("not reached")

    async def _push_blob(self, repository: str, digest: str, blob: bytes) -> None:
        url = f"/v2/{repository}/blobs/{digest}"
        answer = await self._ask("HEAD blob", "HEAD", url)
        if answer.status == 200:
            return
        answer = await self._expect(202, "POST upload", "POST", f"/v2/{repository}/blobs/uploads/")
        answer = await self._expect(202, "PATCH upload", "PATCH", answer.headers["Location"], _chunks(blob))
        location = answer.headers["Location"]
        await self._expect(201, "PUT upload", "PUT", f"{location}{'&' if '?' in location else '?'}digest={digest}")
        answer = await self._ask("HEAD blob", "HEAD", url)
        if answer.status != 200:
            raise RefusedError("HEAD blob after its commit", answer.status, "")

    # ------------------------------------------------------------ the rest

    async def delete(self, repository: str, digest: str) -> bool:
        """Delete a manifest; False when it is absent."""
        answer = await self._ask("DELETE", "DELETE", f"/v2/{repository}/manifests/{digest}")
        if answer.status not in {202, _ABSENT}:
            raise RefusedError("DELETE", answer.status, answer.body.decode(errors="replace"))
        return answer.status == 202

    async def tags(self, repository: str) -> list[str]:
        """Return the tags of a repository; none when it is unknown."""
        answer = await self._ask("tags", "GET", f"/v2/{repository}/tags/list")
        if answer.status == _ABSENT:
            return []
        if answer.status != 200:
            raise RefusedError("tags", answer.status, answer.body.decode(errors="replace"))
        return list(json.loads(answer.body)["tags"] or [])

    async def catalog(self) -> list[str]:
        """Return the repositories."""
        answer = await self._expect(200, "catalog", "GET", "/v2/_catalog")
        return list(json.loads(answer.body)["repositories"])

    async def referrers(self, repository: str, subject: str) -> list[str]:
        """Return the digests of the referrers of a manifest."""
        answer = await self._expect(200, "referrers", "GET", f"/v2/{repository}/referrers/{subject}")
        return [one["digest"] for one in json.loads(answer.body)["manifests"]]


async def _chunks(blob: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(blob), _CHUNK_BYTES):
        yield blob[begin : begin + _CHUNK_BYTES]
