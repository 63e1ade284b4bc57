"""The current policy, kept from the store; logins; and the keys that tokens are accepted under."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from registry_proxy.access.grant import Grant, grant_of
from registry_proxy.access.grants import CompiledGrants, Policy
from registry_proxy.access.id_tokens import IdTokenVerifier
from registry_proxy.access.ldap import LdapPasswords
from registry_proxy.access.logins import Login, Logins
from registry_proxy.access.records import User, group_of, robot_of, user_of
from registry_proxy.access.refresh_tokens import RefreshTokens
from registry_proxy.access.secrets import is_refresh_id, secret_of
from registry_proxy.access.tokens import (
    InvalidTokenError,
    NextKey,
    TokenSigner,
    TokenVerifier,
    UnknownKeyError,
    VerifiedToken,
    public_key_of,
)
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.store import Change, Record, Store, StoreChanges, Table
from registry_proxy.tasks import end, spawn

KEY_LIFETIME_SECONDS = 30 * 86_400
KEY_RENEWAL_SECONDS = 86_400
KEY_SPREAD_SECONDS = 1.0
"""How long a new key is known before it signs: a node that asks the store every half second knows it by then."""

_log = logging.getLogger(__name__)
_TABLES = (
    Table.USERS,
    Table.GROUPS,
    Table.GRANTS,
    Table.SUBJECTS,
    Table.KEYS,
    Table.ROBOTS,
    Table.SECRETS,
    Table.REVOKED_TOKENS,
)
_PARSERS: Mapping[Table, Callable[[Record], Any]] = {
    Table.USERS: user_of,
    Table.GROUPS: group_of,
    Table.GRANTS: grant_of,
    Table.ROBOTS: robot_of,
    Table.SECRETS: secret_of,
}
_CLOSED_AFTER_SECONDS = 5.0  # an outage begins here: a restart of Redis is no reason to refuse everybody
_PAUSE_AFTER_FAILURE_SECONDS = 1.0
_LOOK_SECONDS = 0.5
_SNAPSHOT_MAX_AGE_SECONDS = 600.0  # keys expire without any commit
_READS_UNTIL_STABLE = 3
_CHECK_PAUSE_SECONDS = 0.02  # no token of somebody else's costs the store more
_CHECK_PATIENCE_SECONDS = 5.0  # a store on a disk that hangs never fails


class WatchedChanges(StoreChanges, Protocol):
    """Changes that also know when the store last answered, and whether it failed to when it was last asked."""

    def seconds_since_contact(self) -> float: ...
    def is_silent(self) -> bool: ...


class PerhapsTooNewError(InvalidTokenError):
    """The token speaks of what is not known here, or not yet."""


@dataclass(frozen=True, slots=True)
class _Snapshot:
    policy: Policy
    users: Mapping[str, User]
    jwks: Mapping[str, Mapping[str, str]]
    versions: tuple[int, ...]
    loaded_at: float = field(default_factory=time.monotonic)


class _Content(NamedTuple):
    """The values of a table, and the version that it had before it was read."""

    version: int
    values: list[Any]
    loaded_at: float


class AccessControl:
    """Answers from an immutable snapshot, which is replaced when a table it is made of has changed.

    Args:
        store: holds users, groups, grants, generations and public keys.
        changes: tells when a table has changed.
        verifier: is given the accepted keys.
        outage_max_age_seconds: how long the last snapshot serves while the store is away; None ends it with the
            outage, after a few seconds.
        id_tokens: knows the issuers whose ID tokens are taken; None for none.
        ldap: knows the passwords of users who have none here; None for nobody.
    """

    def __init__(
        self,
        store: Store,
        changes: WatchedChanges,
        verifier: TokenVerifier,
        *,
        outage_max_age_seconds: float | None,
        id_tokens: IdTokenVerifier | None = None,
        ldap: LdapPasswords | None = None,
    ) -> None:
        self._store = store
        self._changes = changes
        self._verifier = verifier
        self._max_age_seconds = _CLOSED_AFTER_SECONDS if outage_max_age_seconds is None else outage_max_age_seconds
        self._id_tokens = id_tokens
        self._refresh_tokens = RefreshTokens(store, changes)
        self._copies_refresh_tokens = outage_max_age_seconds is not None
        self._logins = Logins(store, self, self._refresh_tokens, id_tokens, ldap)
        self.knows_ldap = ldap is not None
        """Whether LDAP can be asked for passwords."""
        self._snapshot: _Snapshot | None = None
        self._tables: dict[Table, _Content] = {}
        self._compiled: tuple[list[Grant], CompiledGrants] | None = None  # of the thread
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._own_jwk: Mapping[str, str] | None = None
        self._loading = asyncio.Lock()
        self._checking = asyncio.Lock()
        self._next_check: asyncio.Task[None] | None = None
        self._failed_at = float("-inf")
        self._failure: StoreUnavailableError | None = None

    async def policy(self) -> Policy:
        """Return the policy as it is now: all that was committed on this node is in it.

        Raises:
            StoreUnavailableError: it cannot be known, or is older than an outage may make it.
        """
        return (await self._current()).policy

    async def authenticate(self, token: str, now: float) -> tuple[VerifiedToken, Policy]:
        """Verify a token and that its subject still stands behind it; return both, from one snapshot.

        Another node may have made the user or the key a moment ago: before a token is refused for that, the store is
        asked once.

        Args:
            token: as it came with the request.
            now: Unix seconds.

        Raises:
            InvalidTokenError: malformed, expired, revoked, or of a subject that is no more.
            StoreUnavailableError: the policy cannot be known.
        """
        policy = await self.policy()
        try:
            return self.verify(token, policy, now), policy
        except PerhapsTooNewError:
            policy = await self.renewed_policy()
            return self.verify(token, policy, now), policy

    def policy_now(self) -> Policy | None:
        """Return the policy as it is now; None where it has to be waited for."""
        snapshot = self._snapshot
        if snapshot is None or not self._is_current(snapshot) or self._is_too_old():
            return None
        return snapshot.policy

    async def renewed_policy(self) -> Policy:
        """Return the policy after the store was asked whether it has changed. Raises StoreUnavailableError."""
        await self._check_store_in_turn()
        return await self.policy()

    def verify(self, token: str, policy: Policy, now: float) -> VerifiedToken:
        """Return the content of a token whose subject still stands behind it.

        Args:
            token: as it came with the request.
            policy: the current one.
            now: Unix seconds.

        Raises:
            PerhapsTooNewError: it is refused by this policy; ``renewed_policy`` may know better.
            InvalidTokenError: malformed, expired or revoked.
        """
        try:
            verified = self._verifier.verify(token, now)
        except UnknownKeyError as error:
            raise PerhapsTooNewError(str(error)) from error
        generation = policy.generation(verified.subject)
        if generation is None or verified.generation > generation:
            raise PerhapsTooNewError("the token's subject is not known, or was disabled")
        if verified.generation < generation or policy.is_revoked(verified.token_id):
            raise InvalidTokenError("the token was revoked")
        if verified.secret_id is not None and is_refresh_id(verified.secret_id):
            if policy.is_revoked(verified.secret_id):
                raise InvalidTokenError("the refresh token that it was given for was removed")
        elif verified.secret_id is not None:
            secret = policy.find_secret(verified.secret_id)
            if secret is None or not secret.is_valid(now):
                raise PerhapsTooNewError("the secret that the token was given for is no more")
        return verified

    async def login(self, username: str, password: str, address: str) -> Login:
        """See ``Logins.login``."""
        return await self._logins.login(username, password, address)

    async def refresh(self, refresh_token: str) -> Login:
        """See ``Logins.refresh``."""
        return await self._logins.refresh(refresh_token)

    async def users(self) -> Mapping[str, User]:
        """Return all users by name, as they are now. Raises StoreUnavailableError."""
        return (await self._current()).users

    async def check_store(self) -> None:
        """Look for a change that the watch has not told of yet; in an outage, what is known stands."""
        with contextlib.suppress(StoreUnavailableError):
            await self._changes.check()

    async def public_keys(self) -> dict[str, Any]:
        """Return the accepted keys as a JSON Web Key Set (RFC 7517 section 5). Raises StoreUnavailableError."""
        snapshot = await self._current()
        return {"keys": [dict(jwk) for _, jwk in sorted(snapshot.jwks.items())]}

    @contextlib.asynccontextmanager
    async def publishing(self, signer: TokenSigner) -> AsyncIterator[None]:
        """Accept the node's own key, and keep it published for the other nodes, for the length of a with block.

        Refresh tokens are kept copied meanwhile, where they serve an outage.
        """
        self._own_jwk = signer.public_jwk
        self._snapshot = None
        published = await self._try_publish(signer.public_jwk)
        tasks = [spawn(self._keep_published(signer, published=published), "key publication")]
        if self._copies_refresh_tokens:
            tasks.append(spawn(self._refresh_tokens.keep_copied(), "copy of refresh tokens"))
        try:
            yield
        finally:
            for task in tasks:
                await end(task)

    async def rotate_key(self, signer: TokenSigner) -> str:
        """Have this node sign with a new key; what the old one signed stays good to its end. Return the new ``kid``.

        Every node accepts the new key before any token is signed with it.

        Raises:
            StoreUnavailableError: it cannot be published; nothing was changed.
            OSError: it cannot be written; nothing was changed.
        """
        following = NextKey()
        value = {"jwk": dict(following.public_jwk), "expires_at": time.time() + KEY_LIFETIME_SECONDS}
        await self._store.commit([Change(Table.KEYS, following.public_jwk["kid"], value)])
        await asyncio.sleep(KEY_SPREAD_SECONDS)
        await asyncio.to_thread(following.replace, signer.key_file)
        return following.public_jwk["kid"]

    async def aclose(self) -> None:
        """End the threads that hash passwords and build the policy."""
        self._logins.passwords.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    # ------------------------------------------------------------ the snapshot

    def _versions(self) -> tuple[int, ...]:
        version = self._changes.version
        return tuple([version(table) for table in _TABLES])

    def _is_current(self, snapshot: _Snapshot) -> bool:
        return snapshot.versions == self._versions() and _age_seconds(snapshot) <= _SNAPSHOT_MAX_AGE_SECONDS

    def _is_too_old(self) -> bool:
        return self._changes.seconds_since_contact() > self._max_age_seconds

    async def _current(self) -> _Snapshot:
        if self._is_too_old() and not self._changes.is_silent():  # perhaps it was this process that was held up
            await self._check_store_in_turn()
        if self._is_too_old():
            raise StoreUnavailableError("the store has been away for longer than permissions may be served without it")
        snapshot = self._snapshot
        if snapshot is None or not self._is_current(snapshot):
            snapshot = await self._renew()
        return snapshot

    async def _renew(self) -> _Snapshot:
        """Load a snapshot, one caller for all; while the store fails, try once a second and serve the last one."""
        async with self._loading:
            snapshot = self._snapshot
            if snapshot is not None and self._is_current(snapshot):
                return snapshot
            if self._failure is None or time.monotonic() - self._failed_at >= _PAUSE_AFTER_FAILURE_SECONDS:
                try:
                    self._snapshot = await self._load()
                    self._failure = None
                    return self._snapshot
                except StoreUnavailableError as error:
                    self._failure, self._failed_at = error, time.monotonic()
            if snapshot is None:
                raise StoreUnavailableError(str(self._failure))
            return snapshot

    async def _load(self) -> _Snapshot:
        """Read all tables; again when one changed meanwhile, so that no commit is seen by half."""
        versions, tables = await self._read()
        for _ in range(_READS_UNTIL_STABLE - 1):
            if versions == self._versions():
                break
            versions, tables = await self._read()
        jwks = self._accept_keys(tables[Table.KEYS])
        # In a thread: ten thousand grants take a second, in which requests that need no new policy go on.
        policy = await asyncio.get_running_loop().run_in_executor(self._thread, self._build, tables)
        return _Snapshot(policy, {user.name: user for user in tables[Table.USERS]}, jwks, versions)

    def _build(self, tables: Mapping[Table, list[Any]]) -> Policy:
        now, grants = time.time(), tables[Table.GRANTS]
        if self._compiled is None or self._compiled[0] is not grants:  # most changes are of something else
            self._compiled = grants, CompiledGrants(grants)
        return Policy(
            tables[Table.USERS],
            tables[Table.GROUPS],
            self._compiled[1],
            {record.key: int(record.value["generation"]) for record in tables[Table.SUBJECTS]},
            robots=tables[Table.ROBOTS],
            secrets=tables[Table.SECRETS],
            revoked_tokens=[r.key for r in tables[Table.REVOKED_TOKENS] if r.value["expires_at"] > now],
            oidc_groups={} if self._id_tokens is None else self._id_tokens.groups,
        )

    async def _read(self) -> tuple[tuple[int, ...], dict[Table, list[Any]]]:
        """Return the versions of the tables, and their values; a table that has not changed is not read again."""
        versions = self._versions()
        for table, version in zip(_TABLES, versions, strict=True):
            known = self._tables.get(table)
            if known is None or known.version != version or _age_seconds(known) > _SNAPSHOT_MAX_AGE_SECONDS:
                self._tables[table] = await self._read_table(table, version)
        return versions, {table: content.values for table, content in self._tables.items()}

    async def _read_table(self, table: Table, version: int) -> "_Content":
        read_at, records = time.monotonic(), await self._store.list(table)
        parse = _PARSERS.get(table)
        if parse is None:
            return _Content(version, records, read_at)
        parsing = asyncio.get_running_loop().run_in_executor(self._thread, lambda: list(map(parse, records)))
        return _Content(version, await parsing, read_at)

    def _accept_keys(self, records: list[Record]) -> Mapping[str, Mapping[str, str]]:
        now = time.time()
        jwks = {record.key: record.value["jwk"] for record in records if record.value["expires_at"] > now}
        if self._own_jwk is not None:
            jwks[self._own_jwk["kid"]] = self._own_jwk
        keys: dict[str, ec.EllipticCurvePublicKey] = {}
        for kid, jwk in jwks.items():
            try:
                keys[kid] = public_key_of(jwk)
            except ValueError:
                _log.warning("the published key %s is not accepted: it is no key on P-256", kid)
        self._verifier.set_keys(keys)
        return {kid: jwks[kid] for kid in keys}

    async def _check_store_in_turn(self) -> None:
        """Do the same, together with all who ask for it before it begins: anybody can send tokens with unknown keys."""
        if self._next_check is None:
            self._next_check = spawn(self._check_store_next(), "store check")
        await asyncio.wait([self._next_check], timeout=_CHECK_PATIENCE_SECONDS)

    async def _check_store_next(self) -> None:
        async with self._checking:
            await asyncio.sleep(_CHECK_PAUSE_SECONDS - self._changes.seconds_since_contact())
            self._next_check = None
            await self.check_store()

    # ------------------------------------------------------------ keys

    async def _try_publish(self, jwk: Mapping[str, str]) -> bool:
        value = {"jwk": dict(jwk), "expires_at": time.time() + KEY_LIFETIME_SECONDS}
        try:
            await self._store.commit([Change(Table.KEYS, jwk["kid"], value)])
        except StoreUnavailableError as error:
            _log.warning("the public key of this node could not be published: %s", error)
            return False
        return True

    async def _keep_published(self, signer: TokenSigner, *, published: bool) -> None:
        while True:
            if published:
                await self._wait_until_due(signer)
            else:
                await asyncio.sleep(_PAUSE_AFTER_FAILURE_SECONDS)
            published = await self._try_publish(signer.public_jwk)

    async def _wait_until_due(self, signer: TokenSigner) -> None:
        """Return when the published key has to be renewed, or the store has lost it."""
        due_at, version = time.monotonic() + KEY_RENEWAL_SECONDS, -1
        while time.monotonic() < due_at:
            if (now := self._changes.version(Table.KEYS)) != version:
                version = now
                if not await self._is_published(signer.public_jwk):
                    return
            await asyncio.sleep(_LOOK_SECONDS)

    async def _is_published(self, jwk: Mapping[str, str]) -> bool:
        """Tell whether a key is on record, as it is not in a store that was emptied; also where nobody can tell."""
        with contextlib.suppress(StoreUnavailableError):
            return await self._store.get(Table.KEYS, jwk["kid"]) is not None
        return True


def _age_seconds(loaded: _Snapshot | _Content) -> float:
    return time.monotonic() - loaded.loaded_at
