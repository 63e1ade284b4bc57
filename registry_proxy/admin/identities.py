"""Robots, secrets, keys, and what users do for themselves, of the admin API."""

import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from registry_proxy.access.directory import Directory, SecretInput
from registry_proxy.access.records import Robot
from registry_proxy.access.secrets import Secret, SecretKind
from registry_proxy.access.subject import is_name, robot_subject, user_subject
from registry_proxy.admin.access import note_removed, or_none
from registry_proxy.admin.auth import BY_PASSWORD, CALLER, SELF_PREFIX, Control
from registry_proxy.admin.bodies import RobotBody, RobotPatch, SecretBody, TokenBody
from registry_proxy.admin.documents import KeyDocument, NewSecretDocument, Page, RobotDocument, SecretDocument
from registry_proxy.admin.openapi import PAGE, Endpoint
from registry_proxy.admin.problems import ProblemError
from registry_proxy.admin.requests import (
    expected_revision,
    format_etag,
    format_time,
    name_of,
    patched,
    read_body,
    read_page,
    read_query,
    warned,
)


def _robot_document(robot: Robot) -> dict[str, Any]:
    return RobotDocument(
        name=robot.name, expires_at=format_time(robot.expires_at), networks=list(robot.networks)
    ).as_json()


def _secret_document(secret: Secret, generation: int | None) -> SecretDocument:
    return SecretDocument(
        id=secret.id,
        kind=secret.kind,
        label=secret.label,
        created_at=format_time(secret.created_at),
        expires_at=format_time(secret.expires_at),
        actions=None if secret.actions is None else sorted(secret.actions),
        state=secret.state(generation, time.time()),
    )


def _robot_answer(robot: Robot, status: int = 200) -> web.Response:
    headers = {"ETag": format_etag(robot.revision)}
    if not robot.is_valid(time.time()):
        headers |= warned([f"nobody can log in as robot${robot.name}: it has expired"])
    return web.json_response(_robot_document(robot), status=status, headers=headers)


def _owner_of_secrets(request: web.Request) -> str:
    """Return whose secrets the caller may see and remove: its own, unless it is one of them that calls."""
    caller = request[CALLER]
    if caller.secret_id is not None:
        raise ProblemError(403, "a secret neither lists nor removes others: log in with the password")
    return caller.subject


class IdentityResources:
    """The handlers over robots and secrets.

    Args:
        directory: where they are kept.
        control: the current policy.
        rotate_key: has the node sign with a new key; returns its ``kid``.
    """

    def __init__(self, directory: Directory, control: Control, rotate_key: Callable[[], Awaitable[str]]) -> None:
        self._directory = directory
        self._control = control
        self._rotate_key = rotate_key

    def routes(self) -> list[Endpoint]:
        """Return the routes, below /admin/v1; those under ``/me`` are for every user, about itself."""
        return [
            Endpoint("GET", "/robots", self.list_robots, "List robots", {200: Page[RobotDocument]}, query=PAGE),
            Endpoint("GET", "/robots/{name}", self.get_robot, "Show a robot", {200: RobotDocument}, tagged=True),
            Endpoint(
                "PUT",
                "/robots/{name}",
                self.put_robot,
                "Make or replace a robot",
                {200: RobotDocument, 201: RobotDocument},
                body=RobotBody,
                conditional=True,
                tagged=True,
            ),
            Endpoint(
                "PATCH",
                "/robots/{name}",
                self.patch_robot,
                "Change some of a robot",
                {200: RobotDocument},
                body=RobotPatch,
                conditional=True,
                tagged=True,
            ),
            Endpoint(
                "DELETE",
                "/robots/{name}",
                self.delete_robot,
                "Remove a robot, its secrets and its grants",
                {204: None},
                conditional=True,
            ),
            Endpoint(
                "GET",
                "/robots/{name}/secrets",
                self.list_robot_secrets,
                "List the secrets of a robot",
                {200: Page[SecretDocument]},
                query=PAGE,
            ),
            Endpoint(
                "POST",
                "/robots/{name}/secrets",
                self.add_robot_secret,
                "Make a secret of a robot",
                {201: NewSecretDocument},
                body=SecretBody,
            ),
            Endpoint(
                "DELETE",
                "/robots/{name}/secrets/{id}",
                self.delete_robot_secret,
                "Remove a secret of a robot",
                {204: None},
            ),
            Endpoint(
                "GET",
                "/users/{name}/tokens",
                self.list_user_tokens,
                "List the tokens of a user",
                {200: Page[SecretDocument]},
                query=PAGE,
            ),
            Endpoint(
                "DELETE", "/users/{name}/tokens/{id}", self.delete_user_token, "Remove a token of a user", {204: None}
            ),
            Endpoint(
                "GET",
                f"{SELF_PREFIX}/tokens",
                self.list_own_tokens,
                "List your own tokens",
                {200: Page[SecretDocument]},
                query=PAGE,
            ),
            Endpoint(
                "POST",
                f"{SELF_PREFIX}/tokens",
                self.add_own_token,
                "Make a token of your own",
                {201: NewSecretDocument},
                body=TokenBody,
            ),
            Endpoint(
                "DELETE",
                f"{SELF_PREFIX}/tokens/{{id}}",
                self.delete_own_token,
                "Remove a token of your own",
                {204: None},
            ),
            Endpoint("POST", "/keys/rotate", self.rotate_key, "Sign tokens with a new key", {201: KeyDocument}),
        ]

    # ------------------------------------------------------------ robots

    async def list_robots(self, request: web.Request) -> web.Response:
        page = read_page(read_query(request, PAGE))
        robots = await self._directory.list_robots()
        return web.json_response(page.cut({robot.name: robot for robot in robots}, _robot_document))

    async def get_robot(self, request: web.Request) -> web.Response:
        return _robot_answer(await self._directory.get_robot(name_of(request, "robot")))

    async def put_robot(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        body = await read_body(request, RobotBody)
        current = await or_none(self._directory.get_robot(name)) if is_name(name) else None
        expect = expected_revision(request, current.revision if current else None)
        robot, is_new = await self._directory.put_robot(name, body.expires_at, body.networks, expect=expect)
        return _robot_answer(robot, 201 if is_new else 200)

    async def patch_robot(self, request: web.Request) -> web.Response:
        name = name_of(request, "robot")
        patch = await read_body(request, RobotPatch)

        async def write(robot: Robot, expect: int) -> Robot:
            body = RobotBody(**patch.over({"expires_at": robot.expires_at, "networks": list(robot.networks)}))
            return (await self._directory.put_robot(name, body.expires_at, body.networks, expect=expect))[0]

        return _robot_answer(await patched(request, lambda: self._directory.get_robot(name), write))

    async def delete_robot(self, request: web.Request) -> web.Response:
        name = name_of(request, "robot")
        current = await self._directory.get_robot(name)
        removed = await self._directory.delete_robot(name, expect=expected_revision(request, current.revision))
        note_removed(request, removed)
        return web.Response(status=204)

    async def list_robot_secrets(self, request: web.Request) -> web.Response:
        name = name_of(request, "robot")
        await self._directory.get_robot(name)
        return await self._list(request, robot_subject(name))

    async def add_robot_secret(self, request: web.Request) -> web.Response:
        body = await read_body(request, SecretBody)
        given = SecretInput(label=body.label, expires_at=body.expires_at)
        return await self._add(robot_subject(name_of(request, "robot")), SecretKind.ROBOT, given)

    async def delete_robot_secret(self, request: web.Request) -> web.Response:
        return await self._delete(request, robot_subject(name_of(request, "robot")))

    # ------------------------------------------------------------ tokens of users

    async def list_user_tokens(self, request: web.Request) -> web.Response:
        name = name_of(request, "user")
        await self._directory.get_user(name)
        return await self._list(request, user_subject(name))

    async def delete_user_token(self, request: web.Request) -> web.Response:
        return await self._delete(request, user_subject(name_of(request, "user")))

    async def list_own_tokens(self, request: web.Request) -> web.Response:
        return await self._list(request, _owner_of_secrets(request))

    async def add_own_token(self, request: web.Request) -> web.Response:
        if not request[BY_PASSWORD]:
            raise ProblemError(403, "a personal token is made with a user's password (Basic), not with another secret")
        body = await read_body(request, TokenBody)
        caller = request[CALLER]
        given = SecretInput(label=body.label, expires_at=body.expires_at, actions=body.actions)
        return await self._add(caller.subject, SecretKind.PERSONAL, given)

    async def delete_own_token(self, request: web.Request) -> web.Response:
        return await self._delete(request, _owner_of_secrets(request))

    # ------------------------------------------------------------ keys

    async def rotate_key(self, request: web.Request) -> web.Response:
        read_query(request)
        return web.json_response(KeyDocument(kid=await self._rotate_key()).as_json(), status=201)

    # ------------------------------------------------------------ one of each

    async def _list(self, request: web.Request, subject: str) -> web.Response:
        page = read_page(read_query(request, PAGE))
        secrets = await self._directory.list_secrets(subject)
        generation = (await self._control.policy()).generation(subject)
        documents = {secret.id: _secret_document(secret, generation) for secret in secrets}
        return web.json_response(page.cut(documents, SecretDocument.as_json))

    async def _add(self, subject: str, kind: SecretKind, given: SecretInput) -> web.Response:
        secret, text = await self._directory.add_secret(subject, kind, given)
        known = _secret_document(secret, secret.generation)
        document = NewSecretDocument(**dict(known), secret=text).as_json()
        return web.json_response(document, status=201, headers={"Cache-Control": "no-store"})

    async def _delete(self, request: web.Request, subject: str) -> web.Response:
        await self._directory.delete_secret(subject, request.match_info["id"][:100])
        return web.Response(status=204)
