"""Groups of the admin API."""

from aiohttp import web

from registry_proxy.access.records import Group
from registry_proxy.admin.subjects import delete_subject, read_put
from registry_proxy.api.answers import Answer
from registry_proxy.api.models import Body, Document, Members, Page, Patch, patch_of
from registry_proxy.api.openapi import Endpoint
from registry_proxy.api.requests import PAGE, name_of, note_difference, read_page
from registry_proxy.api.revisions import patched
from registry_proxy.directory.groups import Groups


class GroupBody(Body):
    """PUT of a group."""

    members: Members = []


GroupPatch = patch_of(GroupBody, "PATCH of a group.")


class GroupDocument(Document):
    """A group of users."""

    name: str
    members: list[str]


class GroupResource:
    """The handlers of groups."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups

    @Endpoint("GET /groups", "List groups", Page[GroupDocument], query=PAGE)
    async def list_groups(self, request: web.Request) -> web.Response:
        page = read_page(request)
        return page.answer({group.name: group for group in await self._groups.list()}, GroupDocument.of)

    @Endpoint("GET /groups/{name}", "Show a group", is_revised=True)
    async def get_group(self, request: web.Request) -> Answer[GroupDocument]:
        group = await self._groups.get(name_of(request, "group"))
        return Answer(GroupDocument.of(group), revision=group.revision)

    @Endpoint("PUT /groups/{name}", "Make or replace a group", statuses=(200, 201), is_revised=True)
    async def put_group(self, request: web.Request, body: GroupBody) -> Answer[GroupDocument]:
        put = await read_put(request, self._groups.get)
        note_difference(request, "members", put.current.members if put.current else (), body.members)
        group, is_new = await self._groups.put(put.name, body.members, expect=put.expect)
        return Answer(GroupDocument.of(group), status=201 if is_new else 200, revision=group.revision)

    @Endpoint("PATCH /groups/{name}", "Change fields of a group", body=GroupPatch, is_revised=True)
    async def patch_group(self, request: web.Request, patch: Patch) -> Answer[GroupDocument]:
        name = name_of(request, "group")

        async def write(group: Group, expect: int) -> Group:
            body = GroupBody(**patch.over({"members": list(group.members)}))
            note_difference(request, "members", group.members, body.members)
            return (await self._groups.put(name, body.members, expect=expect))[0]

        group = await patched(request, lambda: self._groups.get(name), write)
        return Answer(GroupDocument.of(group), revision=group.revision)

    @Endpoint("DELETE /groups/{name}", "Remove a group and its grants", is_revised=True)
    async def delete_group(self, request: web.Request) -> None:
        await delete_subject(request, "group", self._groups)
