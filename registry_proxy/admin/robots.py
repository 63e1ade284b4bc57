"""Robots of the admin API, and their secrets."""

import time
from collections.abc import Sequence
from typing import Annotated

from aiohttp import web
from pydantic import Field

from registry_proxy.access.records import Robot
from registry_proxy.access.secrets import SecretKind
from registry_proxy.access.subject import robot_subject
from registry_proxy.admin.subjects import delete_subject, read_put
from registry_proxy.admin.tokens import NewSecretDocument, SecretBody, SecretDocument, Secrets
from registry_proxy.api.answers import Answer
from registry_proxy.api.models import Body, Document, Page, Patch, Time, TimeInput, patch_of
from registry_proxy.api.openapi import Endpoint
from registry_proxy.api.requests import PAGE, name_of, read_page
from registry_proxy.api.revisions import patched
from registry_proxy.directory.robots import Robots

_Networks = Annotated[list[str], Field(max_length=1000)]


class RobotBody(Body):
    """PUT of a robot."""

    expires_at: TimeInput = None
    networks: _Networks = []


RobotPatch = patch_of(RobotBody, "PATCH of a robot.")


class RobotDocument(Document):
    """A robot: an account of a program."""

    name: str
    expires_at: Time | None
    networks: list[str]


class RobotResource:
    """The handlers of robots and their secrets."""

    def __init__(self, robots: Robots, secrets: Secrets) -> None:
        self._robots = robots
        self._secrets = secrets

    @Endpoint("GET /robots", "List robots", Page[RobotDocument], query=PAGE)
    async def list_robots(self, request: web.Request) -> web.Response:
        page = read_page(request)
        return page.answer({robot.name: robot for robot in await self._robots.list()}, RobotDocument.of)

    @Endpoint("GET /robots/{name}", "Show a robot", is_revised=True)
    async def get_robot(self, request: web.Request) -> Answer[RobotDocument]:
        return _answer(await self._robots.get(name_of(request, "robot")))

    @Endpoint("PUT /robots/{name}", "Make or replace a robot", statuses=(200, 201), is_revised=True)
    async def put_robot(self, request: web.Request, body: RobotBody) -> Answer[RobotDocument]:
        put = await read_put(request, self._robots.get)
        expires_at, networks = body.expires_at, body.networks
        robot, is_new = await self._robots.put(put.name, expires_at, networks, expect=put.expect)
        return _answer(robot, 201 if is_new else 200)

    @Endpoint("PATCH /robots/{name}", "Change fields of a robot", body=RobotPatch, is_revised=True)
    async def patch_robot(self, request: web.Request, patch: Patch) -> Answer[RobotDocument]:
        name = name_of(request, "robot")

        async def write(robot: Robot, expect: int) -> Robot:
            body = RobotBody(**patch.over(robot.stored()))
            return (await self._robots.put(name, body.expires_at, body.networks, expect=expect))[0]

        return _answer(await patched(request, lambda: self._robots.get(name), write))

    @Endpoint("DELETE /robots/{name}", "Remove a robot, its secrets and its grants", is_revised=True)
    async def delete_robot(self, request: web.Request) -> None:
        await delete_subject(request, "robot", self._robots)

    @Endpoint("GET /robots/{name}/secrets", "List the secrets of a robot", Page[SecretDocument], query=PAGE)
    async def list_robot_secrets(self, request: web.Request) -> web.Response:
        name = name_of(request, "robot")
        await self._robots.get(name)
        return await self._secrets.list(request, robot_subject(name))

    @Endpoint("POST /robots/{name}/secrets", "Create a secret of a robot", statuses=(201,))
    async def add_robot_secret(self, request: web.Request, body: SecretBody) -> Answer[NewSecretDocument]:
        return await self._secrets.add(robot_subject(name_of(request, "robot")), SecretKind.ROBOT, body.content())

    @Endpoint("DELETE /robots/{name}/secrets/{id}", "Remove a secret of a robot")
    async def delete_robot_secret(self, request: web.Request) -> None:
        await self._secrets.delete(request, robot_subject(name_of(request, "robot")))


def _answer(robot: Robot, status: int | None = None) -> Answer[RobotDocument]:
    warnings: Sequence[str] = ()
    if not robot.is_valid(time.time()):
        warnings = [f"nobody can log in as robot${robot.name}: it has expired"]
    return Answer(RobotDocument.of(robot), status=status, revision=robot.revision, warnings=warnings)
