"""The keys of the admin API that tokens are signed with."""

from collections.abc import Awaitable, Callable

from aiohttp import web

from registry_proxy.api.models import Document
from registry_proxy.api.openapi import Endpoint
from registry_proxy.api.requests import read_query


class KeyDocument(Document):
    """The key that signs tokens from now on."""

    kid: str


class KeyResource:
    """The handler of keys; ``rotate`` has the node sign with a new key, and returns its ``kid``."""

    def __init__(self, rotate: Callable[[], Awaitable[str]]) -> None:
        self._rotate = rotate

    @Endpoint("POST /keys/rotate", "Sign tokens with a new key", statuses=(201,))
    async def rotate_key(self, request: web.Request) -> KeyDocument:
        read_query(request)
        return KeyDocument(kid=await self._rotate())
