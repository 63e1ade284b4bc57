"""Logins: names with passwords or secrets, ID tokens and refresh tokens, and the subjects that they prove."""

import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from registry_proxy.access.credentials import (
    PASSWORD_MAX_LENGTH,
    LoginLimiter,
    LoginRefusedError,
    LoginUnavailableError,
    Passwords,
    TooManyLoginsError,
)
from registry_proxy.access.id_tokens import IdTokenRefusedError, IdTokenVerifier
from registry_proxy.access.issuer_keys import IssuerUnavailableError
from registry_proxy.access.ldap import LdapPasswords, LdapUnavailableError
from registry_proxy.access.records import User, user_of
from registry_proxy.access.refresh_tokens import RefreshTokens
from registry_proxy.access.secrets import Secret, SecretKind, secret_id_of, secret_of, table_of
from registry_proxy.access.snapshot import Snapshots
from registry_proxy.access.subject import OIDC_LOGIN_NAME, is_name, login_name, user_subject
from registry_proxy.access.turns import Caller
from registry_proxy.ports.errors import ConflictError, StoreUnavailableError
from registry_proxy.ports.store import Change, Store, Table
from registry_proxy.protocol.addresses import address_owner
from registry_proxy.protocol.scope import Action

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoginResult:
    """The subject that credentials prove.

    ``secret_id`` None: none of the secrets made here. ``actions`` None: all that the subject may. ``is_own_password``:
    the password is kept here, so that a refresh token can stand for it. ``expires_at`` is when a token that is given
    for it ends at the latest, in Unix seconds; ``evidence`` is the content of an ID token that the audit log keeps.
    ``may_manage`` is False for what came from a refresh token, which gives no rights in the admin API.
    ``generation`` is that of the subject when its password, or refresh token, was good: what is made for the login is
    revoked by a later one. None for a login that a later one does not end.
    """

    subject: str
    secret_id: str | None = None
    actions: frozenset[Action] | None = None
    is_own_password: bool = False
    expires_at: float | None = None
    evidence: Mapping[str, str] = field(default_factory=dict)
    may_manage: bool = True
    generation: int | None = None


class Logins:
    """Judges credentials.

    The store itself is read, so that a user, robot or secret of another node can log in at once; in an outage, the last
    snapshot.

    Args:
        store: holds users and secrets.
        snapshots: keeps the policy.
        refresh_tokens: finds them.
        id_tokens: knows the issuers whose ID tokens are accepted; None for none.
        ldap: knows the passwords of users who have none here; None for nobody.
    """

    def __init__(
        self,
        store: Store,
        snapshots: Snapshots,
        refresh_tokens: RefreshTokens,
        id_tokens: IdTokenVerifier | None,
        ldap: LdapPasswords | None,
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._refresh_tokens = refresh_tokens
        self._id_tokens = id_tokens
        self._ldap = ldap
        self.passwords = Passwords()
        self._limiter = LoginLimiter(store.failures)

    async def login(self, username: str, password: str, address: str) -> LoginResult:
        """Return the login that a name and a password, or a secret of a robot or a user, prove.

        With the name ``oidc`` the password is an ID token. Failures of passwords are counted by user and owner of the
        address. Those of ID tokens and secrets are not: nobody guesses a signature, or 256 random bits.

        Raises:
            LoginRefusedError: wrong, or disabled; for an ID token IdTokenRefusedError, which has the reason.
            TooManyLoginsError: too many failures, or too many at once.
            StoreUnavailableError: nobody can be looked up.
            LoginUnavailableError: the issuer of the ID token, or LDAP, cannot be asked.
        """
        if username == OIDC_LOGIN_NAME:
            return await self._login_by_id_token(password)
        if (secret_id := secret_id_of(password)) is not None:
            return await self._login_by_secret(username, secret_id, password, address)
        if len(password) > PASSWORD_MAX_LENGTH:  # not counted, as it costs and tells nothing
            raise LoginRefusedError("the user name or the password is wrong", "the password is longer than any may be")
        async with self._limiter.attempt(username[:200], address_owner(address)) as caller:
            found, generation = await self._find_user(username) if is_name(username) else (None, 0)
            user = None if found is None or found.is_disabled else found
            if not await self._is_right(user, password, caller) or user is None:
                raise LoginRefusedError("the user name or the password is wrong", self._why_refused(username, found))
        if not user.is_ldap and self.passwords.is_outdated(user.password_hash):
            await self._rehash(user, password)
        await self._know(user)
        subject = user_subject(user.name)
        current = (await self._snapshots.policy()).generation(subject)
        if current is None or generation < current:
            reason = f"{subject} was disabled, or its password changed or its tokens revoked, during the login"
            raise LoginRefusedError("the user name or the password is wrong", reason)
        return LoginResult(subject, is_own_password=not user.is_ldap, generation=generation)

    async def refresh(self, refresh_token: str) -> LoginResult:
        """Return the login that a refresh token proves (RFC 6749 section 6).

        It is not replaced: docker keeps the one it has.

        Raises:
            LoginRefusedError: it is none, was revoked, or has expired; its user was disabled or has a new password.
            StoreUnavailableError: nobody can be looked up.
        """
        secret_id = secret_id_of(refresh_token)
        secret = None if secret_id is None else await self._find_secret(secret_id)
        if secret is None or secret.kind is not SecretKind.REFRESH or not secret.matches(refresh_token):
            raise LoginRefusedError("the refresh token is not valid", "there is no such refresh token")
        generation = (await self._snapshots.policy()).generation(secret.subject)
        if generation is None or generation < secret.generation:
            await self._snapshots.check()
            generation = (await self._snapshots.policy()).generation(secret.subject)
        if generation is None or generation != secret.generation or not secret.is_valid(time.time()):
            reason = f"the refresh token of {secret.subject} has expired, or was revoked by a change of the user"
            raise LoginRefusedError("the refresh token is not valid any more", reason)
        await self._know_secret(secret)
        return LoginResult(
            secret.subject,
            secret.id,
            secret.actions,
            expires_at=secret.expires_at,
            may_manage=False,
            generation=secret.generation,
        )

    async def _login_by_id_token(self, id_token: str) -> LoginResult:
        if self._id_tokens is None:
            raise IdTokenRefusedError("no issuer of ID tokens is configured here (auth.oidc)")
        try:
            proved = await self._id_tokens.verify(id_token)
        except IssuerUnavailableError:
            # Whence they are fetched, and what failed there, is in the log alone: anybody may ask.
            raise LoginUnavailableError("the keys of the token's issuer cannot be fetched") from None
        return LoginResult(proved.subject, expires_at=proved.expires_at, evidence=proved.evidence)

    async def _is_right(self, user: User | None, password: str, caller: Caller) -> bool:
        """Tell whether a password is right; that of nobody never is.

        With LDAP a wrong one costs a hash and a bind for any name. While LDAP is away a name that nobody has is
        answered like one that LDAP knows, so that these do not stand out; what is kept here is judged without it.

        Raises:
            LoginUnavailableError: LDAP, which knows or may know it, does not answer.
            TooManyLoginsError: too many at once.
        """
        try:
            if user is not None and user.is_ldap:
                return await self._is_right_by_ldap(user.name, password, caller)
            right = await self.passwords.verify(password, (user and user.password_hash) or None, caller)
            if not right and self._ldap is not None:
                try:
                    with contextlib.suppress(TooManyLoginsError):  # else a full queue hid the failure from the limit
                        await self._ldap.refuse(caller)
                except LdapUnavailableError:
                    if user is None:
                        raise
            return right
        except LdapUnavailableError:
            # Where it is, and why it does not answer, is in the log alone: anybody may ask.
            raise LoginUnavailableError("LDAP, which may know the password, does not answer") from None

    def _why_refused(self, username: str, user: User | None) -> str:
        """Return why a password was refused, for the audit log."""
        if not is_name(username):
            return "the name is no user's, and the password has not the form of a secret"
        if user is None:
            return "there is no such user"
        if user.is_disabled:
            return "the user is disabled"
        if not user.is_ldap:
            return "the password is wrong"
        if self._ldap is None:
            return "LDAP knows the password, and auth.ldap is not configured"
        return "LDAP does not take the password"

    async def _is_right_by_ldap(self, name: str, password: str, caller: Caller) -> bool:
        right = False
        try:
            if self._ldap is None:
                _log.warning("%s cannot log in: LDAP knows the password, and auth.ldap is not configured", name)
            else:
                right = await self._ldap.verify(name, password, caller)
            return right
        finally:
            if not right:
                with contextlib.suppress(TooManyLoginsError):  # the verdict is there: it counts
                    await self.passwords.verify(password, None, caller)

    async def _login_by_secret(self, username: str, secret_id: str, text: str, address: str) -> LoginResult:
        refusal = "the user name or the secret is wrong"
        secret = await self._find_secret(secret_id)
        if secret is None or secret.kind is SecretKind.REFRESH or not secret.matches(text):
            raise LoginRefusedError(refusal, "there is no such secret")
        if username != login_name(secret.subject):
            raise LoginRefusedError(refusal, f"secret {secret_id} is of {secret.subject}")
        if not secret.is_valid(time.time()):
            raise LoginRefusedError(refusal, f"secret {secret_id} has expired")
        await self._know_secret(secret)
        policy = await self._snapshots.policy()
        if policy.generation(secret.subject) is None:
            raise LoginRefusedError(refusal, f"{secret.subject} is no more, was disabled, or has expired")
        robot = policy.find_robot(secret.subject)
        if robot is not None and not robot.may_come_from(address):
            raise LoginRefusedError(refusal, f"{secret.subject} may not come from this address")
        return LoginResult(secret.subject, secret.id, secret.actions)

    async def _find_secret(self, secret_id: str) -> Secret | None:
        if table_of(secret_id) is Table.REFRESH_TOKENS:
            return await self._refresh_tokens.find(secret_id)
        try:
            record = await self._store.get(Table.SECRETS, secret_id)
        except StoreUnavailableError:
            return (await self._snapshots.policy()).find_secret(secret_id)
        return None if record is None else secret_of(record)

    async def _know_secret(self, secret: Secret) -> None:
        """Have the snapshot know a secret of another node, and what it came with; it knows no refresh tokens."""
        is_in_snapshots = table_of(secret.id) is Table.SECRETS
        if is_in_snapshots and (await self._snapshots.policy()).find_secret(secret.id) is None:
            await self._snapshots.check()

    async def _rehash(self, user: User, password: str) -> None:
        """Store the password's hash with the parameters of today; another change of the user meanwhile wins."""
        with contextlib.suppress(StoreUnavailableError, ConflictError, TooManyLoginsError):
            renewed = replace(user, password_hash=await self.passwords.hash(password))
            await self._store.commit([Change(Table.USERS, user.name, renewed.stored(), user.revision)])

    async def _find_user(self, username: str) -> tuple[User | None, int]:
        """Return a user, and the subject's generation then: the password may be changed while it is judged."""
        subject = user_subject(username)
        try:
            user, known = await self._store.get_all([(Table.USERS, username), (Table.SUBJECTS, subject)])
        except StoreUnavailableError:
            generation = (await self._snapshots.policy()).generation(subject) or 0
            return (await self._snapshots.current()).users.get(username), generation
        return None if user is None else user_of(user), 0 if known is None else int(known.value["generation"])

    async def _know(self, user: User) -> None:
        """Have the snapshot know what the login read, so that a token can be issued at once."""
        known = (await self._snapshots.current()).users.get(user.name)
        if known is None or known.revision != user.revision:
            await self._snapshots.check()
