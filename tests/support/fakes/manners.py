"""Third-party registries, described by their differences from docker-registry."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from tests.support.fakes.registry import FakeRegistry, Fault, TokenService

_SIGNED_FOR_GET = Fault(method="HEAD", status=403)


@dataclass(frozen=True)
class Manners:
    """The peculiarities of one registry.

    Args:
        tokens: its token service, which serves anybody.
        quirks: its deviations; one with ``redirect_to`` goes to its storage.
        of_storage: the same of the storage.
        page_size: the number of entries on a page of a list.
        has_catalog: whether anybody gets its list of repositories.
    """

    tokens: TokenService
    quirks: Sequence[Fault] = ()
    of_storage: Sequence[Fault] = ()
    page_size: int = 100
    has_catalog: bool = True


def _aws(repository: str | None, actions: str) -> str:
    return "aws"


def _placeholder(repository: str | None, actions: str) -> str:
    return f"repository:{repository or 'user/image'}:{actions}"


def _errors(*errors: dict[str, object]) -> bytes:
    return json.dumps({"errors": errors}).encode()


_TO_STORAGE = Fault("/blobs/sha256", redirect_to="storage", only_found=True)
_JSON = {"Content-Type": "application/json"}

MANNERS = {
    # Challenges of /v2/ and the catalog name a repository that does not exist, for which there is no token.
    "ghcr": Manners(
        TokenService(service="ghcr.io", scope=_placeholder, refused=("user/image|catalog", 403)),
        quirks=[_TO_STORAGE],
        of_storage=[_SIGNED_FOR_GET],
        has_catalog=False,
    ),
    # One scope for everything; 401 to each HEAD of a blob, whatever the token.
    "ecr-public": Manners(
        TokenService("/token/", "public.ecr.aws", scope=_aws),
        quirks=[
            Fault(
                "/blobs/",
                "HEAD",
                status=401,
                headers={"WWW-Authenticate": 'Bearer realm="{url}/token/",service="public.ecr.aws",scope="aws"'},
            ),
            Fault("_catalog", status=404, body=b"404 page not found", headers={"Content-Type": "text/plain"}),
            _TO_STORAGE,
        ],
        of_storage=[_SIGNED_FOR_GET],
        page_size=1000,
        has_catalog=False,
    ),
    # A proxy project does not know a blob before somebody has pulled it; its codes are its own.
    "harbor": Manners(
        TokenService("/service/token", "harbor-registry"),
        quirks=[
            Fault("/blobs/", "HEAD", status=404, headers=_JSON),
            Fault(
                "manifests/absent",
                status=404,
                body=_errors({"code": "NOT_FOUND", "message": "artifact not found"}),
                headers=_JSON,
            ),
        ],
    ),
    # Pages have a hundred names whatever is requested; blobs lie at a CDN, which sends no digests in its headers.
    "quay": Manners(
        TokenService("/v2/auth", "quay.io"),
        quirks=[replace(_TO_STORAGE, method="GET")],
        of_storage=[Fault(omit=("Docker-Content-Digest",))],
    ),
    # Chunked while it fetches from elsewhere; errors without codes.
    "artifactory": Manners(
        TokenService("/v2/token", "artifactory"),
        quirks=[
            Fault(
                "manifests/absent",
                status=404,
                body=_errors({"status": 404, "message": "The named manifest is not known to the registry."}),
                headers=_JSON,
            ),
            Fault("/blobs/", omit=("Content-Length",)),
        ],
    ),
}


@asynccontextmanager
async def registry_with(manners: Manners) -> AsyncIterator[FakeRegistry]:
    """Start a registry with some peculiarities, and the storage to which it redirects."""
    async with AsyncExitStack() as stack:
        registry = FakeRegistry(tokens=manners.tokens, page_size=manners.page_size)
        storage = FakeRegistry()
        storage.repositories = registry.repositories
        for server in (registry, storage):
            await stack.enter_async_context(server)
        storage.faults = list(manners.of_storage)
        for quirk in manners.quirks:
            headers = {key: value.replace("{url}", registry.url) for key, value in quirk.headers.items()}
            target = None if quirk.redirect_to is None else storage.url
            registry.faults.append(replace(quirk, headers=headers, redirect_to=target))
        yield registry
