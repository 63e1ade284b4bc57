"""The public listener: /v2/, the token endpoint, the keys and the health check."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aiohttp.web import BaseRequest, StreamResponse

from registry_proxy.access.control import AccessControl
from registry_proxy.access.directory.directory import Directory
from registry_proxy.access.tokens import TokenSigner
from registry_proxy.edge.authenticate import Authenticator
from registry_proxy.edge.exchange import Exchange, Handler, json_response, make_exchange
from registry_proxy.edge.fast_path import HotPulls
from registry_proxy.edge.middleware import LogRequest, Measure, RequestIds, with_errors, with_measure, with_request_id
from registry_proxy.edge.origin import Origins
from registry_proxy.edge.registry import API_VERSION, Registry
from registry_proxy.edge.token import TokenEndpoint
from registry_proxy.operations.discover import Discover
from registry_proxy.operations.manage import Manage
from registry_proxy.operations.pull import Pull
from registry_proxy.operations.push import Push
from registry_proxy.operations.warm import Prefetch
from registry_proxy.ports.events import AuditLog
from registry_proxy.ports.metrics import Observer
from registry_proxy.ports.names import Router
from registry_proxy.protocol.addresses import Network
from registry_proxy.protocol.errors import ErrorCode, RegistryError


@dataclass(frozen=True, slots=True)
class PublicOptions:
    """The options of the public listener.

    Args:
        service: the name of this registry in tokens.
        public_url: how clients reach it; None takes it from each request.
        trusted_proxies: networks whose X-Forwarded-* headers are believed.
        refresh_lifetime_seconds: how long a new refresh token is valid; None gives none to anybody.
    """

    service: str
    public_url: str | None = None
    trusted_proxies: Sequence[Network] = ()
    refresh_lifetime_seconds: float | None = None


class PublicApp:
    """One handler for the low-level server.

    Args:
        pull: the verbs of pulling.
        push: the verbs of pushing.
        discover: the lists.
        manage: deletes.
        router: names and upstreams.
        control: logins, tokens and the policy.
        directory: makes refresh tokens.
        signer: signs tokens.
        observer: is told what happens.
        audit: is told what shall be known later.
        log_request: is given each request that has ended.
        options: names and addresses.
        prefetch: fetches ahead; None for not at all.
    """

    def __init__(
        self,
        *,
        pull: Pull,
        push: Push,
        discover: Discover,
        manage: Manage,
        router: Router,
        control: AccessControl,
        directory: Directory,
        signer: TokenSigner,
        observer: Observer,
        audit: AuditLog,
        log_request: LogRequest,
        options: PublicOptions,
        prefetch: Prefetch | None = None,
    ) -> None:
        self._origins = Origins(options.public_url, options.trusted_proxies)
        self._control = control
        authenticator = Authenticator(
            control=control,
            router=router,
            observer=observer,
            audit=audit,
            origins=self._origins,
            service=options.service,
        )
        self._registry = Registry(
            authenticator=authenticator,
            router=router,
            pull=pull,
            push=push,
            discover=discover,
            manage=manage,
            observer=observer,
            audit=audit,
            prefetch=prefetch,
        )
        token = TokenEndpoint(
            control=control,
            directory=directory,
            signer=signer,
            observer=observer,
            audit=audit,
            refresh_lifetime_seconds=options.refresh_lifetime_seconds,
        )
        self.beside_registry: Mapping[str, Handler] = {
            "/auth/token": token.handle,
            "/auth/keys": self._keys,
            "/healthz": self._healthz,
        }
        ids, measure = RequestIds(self._origins), Measure(observer, log_request)
        self._handler = with_request_id(with_measure(with_errors(self._dispatch), measure), ids)
        self.hot = HotPulls(
            authenticator=authenticator,
            pull=pull,
            observer=observer,
            origins=self._origins,
            ids=ids,
            measure=measure,
            prefetch=prefetch,
        )

    async def handle(self, request: BaseRequest) -> StreamResponse:
        """Answer a request. Raises ConnectionError when there is nobody to answer."""
        return await self._handler(make_exchange(request, self._origins.client_address(request)))

    async def _dispatch(self, exchange: Exchange) -> StreamResponse:
        path = exchange.path
        if path == "/v2" or path.startswith("/v2/"):
            exchange.answer_headers.update(API_VERSION)
            return await self._registry.handle(exchange)
        handler = self.beside_registry.get(path)
        if handler is not None:
            exchange.route = path.rpartition("/")[2]
            return await handler(exchange)
        raise RegistryError(ErrorCode.NAME_UNKNOWN, "there is nothing here: the registry API is under /v2/")

    async def _keys(self, exchange: Exchange) -> StreamResponse:
        _only_read(exchange)
        return json_response(await self._control.public_keys())

    async def _healthz(self, exchange: Exchange) -> StreamResponse:
        _only_read(exchange)
        return json_response({"status": "ok"})


def _only_read(exchange: Exchange) -> None:
    if exchange.request.method not in {"GET", "HEAD"}:
        raise RegistryError(ErrorCode.UNSUPPORTED, "this takes GET", headers={"Allow": "GET, HEAD"})
