"""Secrets of the admin API: personal and refresh tokens of users, secrets of robots, and the revocation of tokens."""

import time

from aiohttp import web
from pydantic import RootModel

from registry_proxy.access.control import AccessControl
from registry_proxy.access.secrets import SecretKind, SecretState
from registry_proxy.access.subject import user_subject
from registry_proxy.admission.auth import BY_PASSWORD, CALLER
from registry_proxy.api.answers import Answer
from registry_proxy.api.models import (
    USERS_BODY_MAX_BYTES,
    ActionNames,
    Actions,
    Body,
    Document,
    Page,
    SubjectName,
    Time,
    TimeInput,
)
from registry_proxy.api.openapi import Audience, Endpoint
from registry_proxy.api.problems import ProblemError
from registry_proxy.api.requests import PAGE, name_of, read_page
from registry_proxy.directory.directory import Directory
from registry_proxy.directory.secrets import SecretInput


class SecretBody(Body):
    """POST of a robot's secret."""

    label: str = ""
    expires_at: TimeInput = None

    def content(self) -> SecretInput:
        """Return the secret that the body describes."""
        return SecretInput(**dict(self))


class TokenBody(SecretBody):
    """POST of a personal access token; without ``actions`` it has all rights of its user."""

    max_bytes = USERS_BODY_MAX_BYTES
    actions: ActionNames | None = None


class SecretDocument(Document):
    """A secret of a robot or user, without its text; with ``actions`` null it has all rights of its holder.

    ``state`` says whether a login with it is accepted.
    """

    id: str
    kind: SecretKind
    label: str
    created_at: Time
    expires_at: Time | None
    actions: Actions | None
    state: SecretState


class NewSecretDocument(SecretDocument):
    """A new secret: its text is shown only now."""

    secret: str


class RevocationBody(Body):
    """The tokens to revoke: all bearer and refresh tokens of a subject, with ``secrets`` its secrets too, or one token.

    Secrets are the personal tokens of a user and the secrets of a robot: they are deleted. Passwords stay.
    """

    subject: SubjectName | None = None
    secrets: bool = False
    token_id: str | None = None


class SubjectRevocationDocument(Document):
    """The bearer and refresh tokens that a subject had are revoked.

    ``secrets_deleted`` counts its personal tokens or robot secrets that were deleted with them, ``secrets_left`` those
    that are still accepted.
    """

    id: str
    subject: str
    generation: int
    secrets_deleted: int
    secrets_left: int


class TokenRevocationDocument(Document):
    """One token is revoked."""

    id: str
    token_id: str


class RevocationDocument(RootModel[SubjectRevocationDocument | TokenRevocationDocument]):
    """The credentials that were revoked."""


class Secrets:
    """Requests about the secrets of one subject."""

    def __init__(self, directory: Directory, control: AccessControl) -> None:
        self._directory = directory
        self._control = control

    async def list(self, request: web.Request, subject: str) -> web.Response:
        """Answer a page of the secrets of a subject."""
        page = read_page(request)
        secrets = {secret.id: secret for secret in await self._directory.secrets.list(subject)}
        generation, now = (await self._control.policy()).generation(subject), time.time()
        return page.answer(secrets, lambda secret: SecretDocument.of(secret, state=secret.state(generation, now)))

    async def add(self, subject: str, kind: SecretKind, given: SecretInput) -> Answer[NewSecretDocument]:
        """Make a secret; answer it with its text, this once."""
        secret, text = await self._directory.secrets.add(subject, kind, given)
        state = secret.state(secret.generation, time.time())
        document = NewSecretDocument.of(secret, state=state, secret=text)
        return Answer(document, headers={"Cache-Control": "no-store"})

    async def delete(self, request: web.Request, subject: str) -> None:
        """Delete the secret of a subject that the path names."""
        await self._directory.secrets.delete(subject, request.match_info["id"][:100])


class TokenResource:
    """The handlers of tokens; those under ``/me`` are for every user, about themselves."""

    def __init__(self, directory: Directory, secrets: Secrets) -> None:
        self._directory = directory
        self._secrets = secrets

    @Endpoint("GET /users/{name}/tokens", "List the tokens of a user", Page[SecretDocument], query=PAGE)
    async def list_user_tokens(self, request: web.Request) -> web.Response:
        name = name_of(request, "user")
        await self._directory.users.get(name)
        return await self._secrets.list(request, user_subject(name))

    @Endpoint("DELETE /users/{name}/tokens/{id}", "Remove a token of a user")
    async def delete_user_token(self, request: web.Request) -> None:
        await self._secrets.delete(request, user_subject(name_of(request, "user")))

    @Endpoint("GET /me/tokens", "List your own tokens", Page[SecretDocument], query=PAGE, audience=Audience.SELF)
    async def list_own_tokens(self, request: web.Request) -> web.Response:
        return await self._secrets.list(request, _owner_of_secrets(request))

    @Endpoint("POST /me/tokens", "Make a token of your own", statuses=(201,), audience=Audience.SELF)
    async def add_own_token(self, request: web.Request, body: TokenBody) -> Answer[NewSecretDocument]:
        if not request[BY_PASSWORD]:
            raise ProblemError(403, "creating a personal token needs the user's password (Basic), not another secret")
        return await self._secrets.add(request[CALLER].subject, SecretKind.PERSONAL, body.content())

    @Endpoint("DELETE /me/tokens/{id}", "Remove a token of your own", audience=Audience.SELF)
    async def delete_own_token(self, request: web.Request) -> None:
        await self._secrets.delete(request, _owner_of_secrets(request))

    @Endpoint("POST /revocations", "Revoke one token, or all of a subject", RevocationDocument, statuses=(201,))
    async def revoke(self, _: web.Request, body: RevocationBody) -> Document:
        if body.token_id is not None and body.subject is None:
            await self._directory.revocations.revoke_token(body.token_id)
            return TokenRevocationDocument(id=body.token_id, token_id=body.token_id)
        if body.subject is None or body.token_id is not None:
            raise ProblemError(400, "expected either subject or token_id")
        generation, removed = await self._directory.revocations.revoke(body.subject, also_secrets=body.secrets)
        left = [each.state(generation, time.time()) for each in await self._directory.secrets.list(body.subject)]
        return SubjectRevocationDocument(
            id=f"{body.subject}@{generation}",
            subject=body.subject,
            generation=generation,
            secrets_deleted=len(removed.secrets),
            secrets_left=left.count(SecretState.VALID),
        )


def _owner_of_secrets(request: web.Request) -> str:
    """Return the caller, who may list and remove their own secrets unless they log in with one of them."""
    caller = request[CALLER]
    if caller.secret_id is not None:
        raise ProblemError(403, "a secret cannot list or remove others: log in with the password")
    return caller.subject
