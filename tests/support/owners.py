"""An admin listener with owners of namespaces."""

import time
from typing import Any

from aiohttp.test_utils import TestClient
from aiohttp.web import Application, Request

from registry_proxy.access.grant import GrantInput
from tests.support.admin_bench import Contract, Node


class Owners:
    """An admin listener with ann, the owner of team/**, and each user, the owner of home/NAME/**."""

    def __init__(self, node: Node, http: TestClient[Request, Application], contract: Contract) -> None:
        self.node = node
        self._http = http
        self._contract = contract

    async def grant(self, subject: str, repository: str, *actions: str, expires_at: float | None = None) -> str:
        """Create a grant as an administrator; return its id."""
        given = GrantInput(subject=subject, repository=repository, actions=actions, expires_at=expires_at)
        return (await self.node.directory.grants.add(given)).id

    async def call(self, method: str, path: str, body: Any = None, *, caller: str = "user:ann") -> tuple[int, Any]:
        """Send a request with a token of the caller; return status and document."""
        token = self.node.signer.issue(caller, 0, (), time.time()).token
        headers = {"Authorization": f"Bearer {token}"}
        async with self._http.request(method, f"/admin/v1{path}", json=body, headers=headers) as response:
            document = None if response.status == 204 else await response.json()
            self._contract.check(
                method, f"/admin/v1{path}".partition("?")[0], response.status, response.content_type, document
            )
            return response.status, document

    async def seen(self, caller: str = "user:ann") -> set[str]:
        """Return the patterns of the grants that the caller sees."""
        return {each["repository"] for each in (await self.call("GET", "/grants", caller=caller))[1]["items"]}
