"""Groups of the admin API."""

from aiohttp import web

from registry_proxy.access.directory.directory import Directory
from registry_proxy.access.records import Group
from registry_proxy.admin.answers import answer
from registry_proxy.admin.models import Body, Document, Members, Page, Patch
from registry_proxy.admin.openapi import endpoint
from registry_proxy.admin.requests import PAGE, name_of, note_difference, read_body, read_page
from registry_proxy.admin.revisions import patched
from registry_proxy.admin.subjects import delete_subject, read_put


class GroupBody(Body):
    """PUT of a group."""

    members: Members = []


class GroupPatch(Patch):
    """PATCH of a group."""

    members: Members | None = None


class GroupDocument(Document):
    """A group of users."""

    name: str
    members: list[str]


class GroupResource:
    """The handlers of groups."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory

    @endpoint("GET /groups", "List groups", Page[GroupDocument], query=PAGE)
    async def list_groups(self, request: web.Request) -> web.Response:
        page = read_page(request)
        return page.answer({group.name: group for group in await self._directory.groups.list()}, GroupDocument.of)

    @endpoint("GET /groups/{name}", "Show a group", GroupDocument, revised=True)
    async def get_group(self, request: web.Request) -> web.Response:
        group = await self._directory.groups.get(name_of(request, "group"))
        return answer(GroupDocument.of(group), revision=group.revision)

    @endpoint("PUT /groups/{name}", "Make or replace a group", GroupDocument, (200, 201), body=GroupBody, revised=True)
    async def put_group(self, request: web.Request) -> web.Response:
        put = await read_put(request, GroupBody, self._directory.groups.get)
        note_difference(request, "members", put.current.members if put.current else (), put.body.members)
        group, is_new = await self._directory.groups.put(put.name, put.body.members, expect=put.expect)
        return answer(GroupDocument.of(group), 201 if is_new else 200, revision=group.revision)

    @endpoint("PATCH /groups/{name}", "Change some of a group", GroupDocument, body=GroupPatch, revised=True)
    async def patch_group(self, request: web.Request) -> web.Response:
        name = name_of(request, "group")
        patch = await read_body(request, GroupPatch)

        async def write(group: Group, expect: int) -> Group:
            body = GroupBody(**patch.over({"members": list(group.members)}))
            note_difference(request, "members", group.members, body.members)
            return (await self._directory.groups.put(name, body.members, expect=expect))[0]

        group = await patched(request, lambda: self._directory.groups.get(name), write)
        return answer(GroupDocument.of(group), revision=group.revision)

    @endpoint("DELETE /groups/{name}", "Remove a group and its grants", revised=True)
    async def delete_group(self, request: web.Request) -> web.Response:
        return await delete_subject(request, "group", self._directory.groups.get, self._directory.groups.delete)
