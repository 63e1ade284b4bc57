"""The registry API: from a request to its answer, by one row an operation (``protocol.endpoints``)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from registry_proxy.access.control import PerhapsTooNewError
from registry_proxy.edge.answer import Answer
from registry_proxy.edge.authenticate import Authenticator
from registry_proxy.edge.call import Call
from registry_proxy.edge.exchange import Exchange
from registry_proxy.edge.reads import ABSENT, Reads
from registry_proxy.edge.writes import Writes
from registry_proxy.operations.ask import Ask, answer_of
from registry_proxy.ports.errors import AbsenceUnknownError
from registry_proxy.ports.names import ContentKind, Router
from registry_proxy.protocol.endpoints import ManifestRequest, Operation, RegistryRequest, parse_request
from registry_proxy.protocol.errors import ErrorCode, RegistryError
from registry_proxy.protocol.reference import RESERVED_TAG_PREFIX, Digest

_ABSENT_BEFORE_PUSH = {
    Operation.HEAD_BLOB: ABSENT[ContentKind.BLOB],
    Operation.HEAD_MANIFEST: ABSENT[ContentKind.MANIFEST],
}
_API_VERSION = {"Docker-Distribution-API-Version": "registry/2.0"}


class Registry:
    """Answers requests to /v2/: parses, authorizes, and hands to the handler of the operation.

    Args:
        authenticator: decides.
        router: knows where names of our own are reserved.
        reads: the handlers of the operations that read.
        writes: the handlers of the others.
    """

    def __init__(self, *, authenticator: Authenticator, router: Router, reads: Reads, writes: Writes) -> None:
        self._authenticator = authenticator
        self._router = router
        self._handlers: Mapping[Operation, Callable[[Call[Any]], Answer | Ask[Answer]]] = {
            operation: getattr(reads, operation.label, None) or partial(_ask, getattr(writes, operation.label))
            for operation in Operation
        }

    async def handle(self, exchange: Exchange) -> Answer:
        """Answer a request.

        Raises:
            RegistryError, and the errors of the ports: the client gets these instead.
            ConnectionError: there is nobody to answer.
        """
        exchange.answer_headers.update(_API_VERSION)
        try:
            request = parse_request(exchange.method, exchange.path, exchange.raw_query)
        except RegistryError:
            # Only callers with a valid token learn the fault of a request.
            await self._authenticator.authenticate(exchange)
            raise
        exchange.route = request.operation.label
        return await answer_of(
            self._answer(Call(exchange, request, await self._authenticator.authorize(exchange, request)))
        )

    def answer_now(self, exchange: Exchange, request: RegistryRequest) -> Answer | Ask[Answer] | None:
        """Answer a request where nobody has to be waited for; else return the way to the answer.

        None where not even the policy is at hand. But for an answer nothing was counted.

        Raises:
            RegistryError: the client gets this instead.
        """
        policy = self._authenticator.policy_now()
        if policy is None:
            return None
        exchange.answer_headers.update(_API_VERSION)
        exchange.route = request.operation.label
        try:
            authorized = self._authenticator.decide(exchange, request, policy)
        except PerhapsTooNewError:
            return None
        return self._answer(Call(exchange, request, authorized))

    def _answer(self, call: Call[RegistryRequest]) -> Answer | Ask[Answer]:
        found: Answer | Ask[Answer] | None = None
        try:
            found = self._find(call)
        finally:
            if not isinstance(found, Ask):
                self._authenticator.count(call.exchange, call.request, call.authorized)
        return Ask(partial(self._ask, call, found)) if isinstance(found, Ask) else found

    async def _ask(self, call: Call[RegistryRequest], found: Ask[Answer]) -> Answer:
        self._authenticator.count(call.exchange, call.request, call.authorized)
        try:
            return await found.ask()
        except AbsenceUnknownError as error:
            code = _ABSENT_BEFORE_PUSH.get(call.request.operation)
            if code is None or not self._authenticator.may_push(call.authorized, call.request):
                raise
            # Clients ask before they push. A false "absent" costs an upload, a 503 would cost the push.
            raise RegistryError(code, str(error)) from error

    def _find(self, call: Call[RegistryRequest]) -> Answer | Ask[Answer]:
        if call.exchange.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise RegistryError(ErrorCode.UNSUPPORTED, "a body with a Content-Encoding is not accepted", status=415)
        self._check_tag(call)
        if call.request.source_host is not None and call.authorized.routed is not None:
            # spec, "Registry Proxying": names the source that answers.
            call.exchange.answer_headers["OCI-Namespace"] = call.request.source_host
        return self._handlers[call.request.operation](call)

    def _check_tag(self, call: Call[RegistryRequest]) -> None:
        """Refuse a tag that is reserved for our own use: it is absent to those who read."""
        request, routed = call.request, call.authorized.routed
        if not isinstance(request, ManifestRequest) or routed is None:
            return
        named = request.tags if isinstance(request.tag_or_digest, Digest) else (request.tag_or_digest,)
        tag = next((one for one in named if one.startswith(RESERVED_TAG_PREFIX)), None)
        if tag is None or not self._router.reserves_names(routed.upstream):
            return
        if request.operation in {Operation.GET_MANIFEST, Operation.HEAD_MANIFEST}:
            raise RegistryError(ErrorCode.MANIFEST_UNKNOWN, "the tag is reserved", detail={"tag": tag})
        message = f"tags that begin with {RESERVED_TAG_PREFIX} are reserved: use another name"
        raise RegistryError(ErrorCode.DENIED, message, detail={"tag": tag}, status=403)


def _ask(handler: Callable[[Call[Any]], Any], call: Call[Any]) -> Ask[Answer]:
    return Ask(partial(handler, call))
