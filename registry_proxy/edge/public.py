"""The public listener: /v2/, the token endpoint, the keys and the health check."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from aiohttp.web import BaseRequest, StreamResponse

from registry_proxy.access.control import AccessControl
from registry_proxy.access.tokens import TokenSigner
from registry_proxy.directory.directory import Directory
from registry_proxy.edge.answer import Answer, error_answer, json_answer
from registry_proxy.edge.authenticate import Authenticator
from registry_proxy.edge.exchange import Exchange, as_registry_error
from registry_proxy.edge.fast_path import FastPath, HandedOn
from registry_proxy.edge.incoming import Incoming, make_exchange
from registry_proxy.edge.middleware import Frame, LogRequest, RequestIds
from registry_proxy.edge.origin import Origins
from registry_proxy.edge.reads import Reads
from registry_proxy.edge.registry import Registry
from registry_proxy.edge.send import AnswerWriter
from registry_proxy.edge.token import TokenEndpoint
from registry_proxy.edge.writes import Writes
from registry_proxy.http.guarded import connection_of
from registry_proxy.operations.discover import Discover
from registry_proxy.operations.manage import Manage
from registry_proxy.operations.pull import Pull
from registry_proxy.operations.push import Push
from registry_proxy.operations.referrers import Referrers
from registry_proxy.operations.warm import Prefetch
from registry_proxy.ports.events import AuditLog
from registry_proxy.ports.metrics import Observer
from registry_proxy.ports.names import Router
from registry_proxy.ports.outbox import PullLog
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
        scheme: of the listener itself.
    """

    service: str
    public_url: str | None = None
    trusted_proxies: Sequence[Network] = ()
    refresh_lifetime_seconds: float | None = None
    scheme: Literal["http", "https"] = "http"


class PublicApp:
    """One handler for the low-level server.

    Args:
        pull: the verbs of pulling.
        push: the verbs of pushing.
        discover: the lists.
        referrers: the lists of referrers.
        manage: deletes.
        router: names and upstreams.
        control: logins, tokens and the policy.
        directory: makes refresh tokens.
        signer: signs tokens.
        observer: receives an event for each request.
        audit: receives the events for the audit log.
        pulls: receives the manifests that are sent, where that is wanted.
        log_request: receives each finished request.
        options: names and addresses.
        prefetch: fetches ahead; None for not at all.
    """

    def __init__(
        self,
        *,
        pull: Pull,
        push: Push,
        discover: Discover,
        referrers: Referrers,
        manage: Manage,
        router: Router,
        control: AccessControl,
        directory: Directory,
        signer: TokenSigner,
        observer: Observer,
        audit: AuditLog,
        pulls: PullLog,
        log_request: LogRequest,
        options: PublicOptions,
        prefetch: Prefetch | None = None,
    ) -> None:
        self._origins = Origins(options.public_url, options.trusted_proxies, options.scheme)
        self._control = control
        authenticator = Authenticator(
            control=control,
            router=router,
            observer=observer,
            audit=audit,
            origins=self._origins,
            service=options.service,
        )
        reads = Reads(
            authenticator=authenticator,
            pull=pull,
            push=push,
            discover=discover,
            referrers=referrers,
            prefetch=prefetch,
            pulls=pulls,
        )
        writes = Writes(
            authenticator=authenticator, router=router, push=push, manage=manage, audit=audit, origins=self._origins
        )
        self._registry = Registry(authenticator=authenticator, router=router, reads=reads, writes=writes)
        token = TokenEndpoint(
            control=control,
            directory=directory,
            signer=signer,
            observer=observer,
            audit=audit,
            refresh_lifetime_seconds=options.refresh_lifetime_seconds,
        )
        self.beside_registry: Mapping[str, Callable[[Exchange], Awaitable[Answer]]] = {
            "/auth/token": token.handle,
            "/auth/keys": self._keys,
            "/healthz": self._healthz,
        }
        self._frame = Frame(RequestIds(self._origins), observer, log_request)
        self.fast_path = FastPath(self._registry, self._frame, self._origins)

    async def handle(self, request: BaseRequest) -> StreamResponse:
        """Answer a request, and count and log it however it ends.

        Raises:
            ConnectionError: there is nobody to answer.
        """
        connection, client = connection_of(request), Incoming(request)
        found = None if connection is None else connection.handed_on
        if connection is not None and isinstance(found, HandedOn):
            connection.handed_on, found.exchange.client = None, client
            exchange, answering = found.exchange, found.ask.ask
        else:
            exchange = make_exchange(request, client, self._origins)
            answering = partial(self._dispatch, exchange)
        begun = self._frame.begin(exchange)
        writer = AnswerWriter(request, exchange, client)
        try:
            try:
                return await writer.write(await answering())
            except ConnectionError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the client gets our body and the log the rest
                return await writer.write(error_answer(as_registry_error(error)))
        finally:
            self._frame.end(exchange, begun)

    async def _dispatch(self, exchange: Exchange) -> Answer:
        path = exchange.path
        if path == "/v2" or path.startswith("/v2/"):
            return await self._registry.handle(exchange)
        handler = self.beside_registry.get(path)
        if handler is not None:
            exchange.route = path.rpartition("/")[2]
            return await handler(exchange)
        raise RegistryError(ErrorCode.NAME_UNKNOWN, "there is nothing here: the registry API is under /v2/")

    async def _keys(self, exchange: Exchange) -> Answer:
        _only_read(exchange)
        return json_answer(await self._control.public_keys())

    async def _healthz(self, exchange: Exchange) -> Answer:
        _only_read(exchange)
        return json_answer({"status": "ok"})


def _only_read(exchange: Exchange) -> None:
    if exchange.method not in {"GET", "HEAD"}:
        raise RegistryError(ErrorCode.UNSUPPORTED, "this takes GET", headers={"Allow": "GET, HEAD"})
