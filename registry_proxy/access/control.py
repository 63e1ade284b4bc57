"""Access control: logins, tokens and the policy, over one snapshot."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from registry_proxy.access.id_tokens import IdTokenVerifier
from registry_proxy.access.ldap import LdapPasswords
from registry_proxy.access.logins import LoginResult, Logins
from registry_proxy.access.policy import Policy
from registry_proxy.access.refresh_tokens import RefreshTokens
from registry_proxy.access.secrets import is_refresh_id
from registry_proxy.access.signing_keys import SigningKeys
from registry_proxy.access.snapshot import Snapshots, WatchedChanges
from registry_proxy.access.tokens import (
    InvalidTokenError,
    TokenSigner,
    TokenVerifier,
    UnknownKeyError,
    VerifiedToken,
)
from registry_proxy.ports.store import Store
from registry_proxy.tasks import running


class PerhapsTooNewError(InvalidTokenError):
    """The token speaks of what is not known here, or not yet."""


class AccessControl:
    """Answers from an immutable snapshot, which is replaced when a table it is made of has changed.

    Args:
        store: holds users, groups, grants, generations and public keys.
        changes: knows when a table has changed.
        verifier: is given the accepted keys.
        outage_max_age_seconds: how long the last snapshot serves while the store is away; None ends it with the
            outage, after a few seconds.
        id_tokens: knows the issuers whose ID tokens are accepted; None for none.
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
        self.keys = SigningKeys(store, changes, verifier)
        self.snapshots = Snapshots(
            store,
            changes,
            self.keys,
            outage_max_age_seconds=outage_max_age_seconds,
            oidc_groups=lambda: {} if id_tokens is None else id_tokens.groups,
        )
        self._verifier = verifier
        self._refresh_tokens = RefreshTokens(store, changes)
        self._copies_refresh_tokens = outage_max_age_seconds is not None
        self._logins = Logins(store, self.snapshots, self._refresh_tokens, id_tokens, ldap)
        self.knows_ldap = ldap is not None
        """Whether LDAP can be asked for passwords."""

    async def policy(self) -> Policy:
        """Return the policy as it is now: all that was committed on this node is in it.

        Raises:
            StoreUnavailableError: it cannot be known, or is older than an outage may make it.
        """
        return await self.snapshots.policy()

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
        snapshot = self.snapshots.current_now()
        return None if snapshot is None else snapshot.policy

    async def renewed_policy(self) -> Policy:
        """Return the policy after the store was asked whether it has changed. Raises StoreUnavailableError."""
        await self.snapshots.check_in_turn()
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

    async def login(self, username: str, password: str, address: str) -> LoginResult:
        """See ``Logins.login``."""
        return await self._logins.login(username, password, address)

    async def refresh(self, refresh_token: str) -> LoginResult:
        """See ``Logins.refresh``."""
        return await self._logins.refresh(refresh_token)

    async def public_keys(self) -> dict[str, Any]:
        """Return the accepted keys as a JSON Web Key Set (RFC 7517 section 5). Raises StoreUnavailableError."""
        snapshot = await self.snapshots.current()
        return {"keys": [dict(jwk) for _, jwk in sorted(snapshot.jwks.items())]}

    @contextlib.asynccontextmanager
    async def publishing(self, signer: TokenSigner) -> AsyncIterator[None]:
        """Accept the node's own key, and keep it published for the other nodes, for the length of a with block.

        Refresh tokens are kept copied meanwhile, where they serve an outage.
        """
        self.snapshots.drop()
        published = await self.keys.publish(signer)
        async with contextlib.AsyncExitStack() as duties:
            keeping = self.keys.keep_published(signer, published=published)
            await duties.enter_async_context(running(keeping, "key publication"))
            if self._copies_refresh_tokens:
                copying = self._refresh_tokens.keep_copied()
                await duties.enter_async_context(running(copying, "copy of refresh tokens"))
            yield

    async def aclose(self) -> None:
        """End the threads that hash passwords and build the policy."""
        self._logins.passwords.close()
        self.snapshots.close()
