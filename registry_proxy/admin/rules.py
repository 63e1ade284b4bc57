"""Rules of images in the admin API."""

from collections.abc import Callable

from aiohttp import web

from registry_proxy.admin.subjects import read_put
from registry_proxy.api.answers import Answer
from registry_proxy.api.models import Page, Patch
from registry_proxy.api.openapi import Endpoint
from registry_proxy.api.problems import ProblemError
from registry_proxy.api.requests import PAGE, name_of, read_page
from registry_proxy.api.revisions import expected_revision, patched
from registry_proxy.api.rules import BaseBody, BaseDocument, RuleBody, RuleDocument, RulePatch, rule_document
from registry_proxy.directory.rules import Rules
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.protocol.errors import RegistryError
from registry_proxy.protocol.reference import Repository, parse_digest, parse_repository, parse_tag
from registry_proxy.rules.registering import RegisteredBases
from registry_proxy.rules.rule import Rule


class RuleResource:
    """The handlers of rules."""

    def __init__(self, rules: Rules, bases: RegisteredBases, route: Callable[[Repository], RoutedRepository]) -> None:
        self._rules = rules
        self._bases = bases
        self._route = route

    @Endpoint("GET /rules", "List rules", Page[RuleDocument], query=PAGE)
    async def list_rules(self, request: web.Request) -> web.Response:
        page = read_page(request)
        return page.answer({each.name: each for each in await self._rules.list()}, rule_document)

    @Endpoint("GET /rules/{name}", "Show a rule", is_revised=True)
    async def get_rule(self, request: web.Request) -> Answer[RuleDocument]:
        rule = await self._rules.get(name_of(request, "rule"))
        return Answer(rule_document(rule), revision=rule.revision)

    @Endpoint("PUT /rules/{name}", "Make or replace a rule", statuses=(200, 201), is_revised=True)
    async def put_rule(self, request: web.Request, body: RuleBody) -> Answer[RuleDocument]:
        put = await read_put(request, self._rules.get)
        rule, is_new = await self._rules.put(put.name, body.content(), expect=put.expect)
        return Answer(rule_document(rule), status=201 if is_new else 200, revision=rule.revision)

    @Endpoint("PATCH /rules/{name}", "Change fields of a rule", body=RulePatch, is_revised=True)
    async def patch_rule(self, request: web.Request, patch: Patch) -> Answer[RuleDocument]:
        name = name_of(request, "rule")

        async def write(current: Rule, expect: int) -> Rule:
            body = RuleBody(**patch.over(current.stored()))
            return (await self._rules.put(name, body.content(), expect=expect))[0]

        rule = await patched(request, lambda: self._rules.get(name), write)
        return Answer(rule_document(rule), revision=rule.revision)

    @Endpoint("DELETE /rules/{name}", "Remove a rule", is_revised=True)
    async def delete_rule(self, request: web.Request) -> None:
        name = name_of(request, "rule")
        current = await self._rules.get(name)
        await self._rules.delete(name, expect=expected_revision(request, current.revision))

    @Endpoint("POST /bases", "Register an image as a base", statuses=(201,))
    async def register_base(self, _: web.Request, body: BaseBody) -> BaseDocument:
        """Remember the layers of an image that was not pushed through the service since there is a rule."""
        try:
            repository, tag = parse_repository(body.repository), parse_tag(body.tag)
            digest = None if body.digest is None else parse_digest(body.digest)
        except RegistryError as error:
            raise ProblemError(400, error.message) from None
        chains = await self._bases.register(self._route(repository), repository, tag, digest)
        if not chains:
            raise ProblemError(409, f"{repository}:{tag} is no image whose configuration names its layers")
        return BaseDocument(name=f"{repository}:{tag}", chains=list(chains))
