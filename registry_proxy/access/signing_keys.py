"""The keys that sign tokens: the node's own is published for all nodes, and those of all nodes verify."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable, Mapping

from cryptography.hazmat.primitives.asymmetric import ec

from registry_proxy.access.tokens import NextKey, TokenSigner, TokenVerifier, public_key_of
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.store import Change, Record, Store, StoreChanges, Table

KEY_LIFETIME_SECONDS = 30 * 86_400
KEY_RENEWAL_SECONDS = 86_400
KEY_SPREAD_SECONDS = 1.0
"""How long a new key is known before it signs: a node that asks the store every half second knows it by then."""

_LOOK_SECONDS = 0.5
_PAUSE_AFTER_FAILURE_SECONDS = 1.0

_log = logging.getLogger(__name__)


class SigningKeys:
    """Publishes the key of this node, and gives the verifier the keys of all.

    Args:
        store: holds the public keys.
        changes: knows when they have changed.
        verifier: receives the accepted keys.
    """

    def __init__(self, store: Store, changes: StoreChanges, verifier: TokenVerifier) -> None:
        self._store = store
        self._changes = changes
        self._verifier = verifier
        self._own: Mapping[str, str] | None = None

    def accept(self, records: Iterable[Record]) -> Mapping[str, Mapping[str, str]]:
        """Have tokens verified by the published keys and the node's own; return them as JWKs by ``kid``."""
        now = time.time()
        jwks = {record.key: record.value["jwk"] for record in records if record.value["expires_at"] > now}
        if self._own is not None:
            jwks[self._own["kid"]] = self._own
        keys: dict[str, ec.EllipticCurvePublicKey] = {}
        for kid, jwk in jwks.items():
            try:
                keys[kid] = public_key_of(jwk)
            except ValueError:
                _log.warning("the published key %s is not accepted: it is no key on P-256", kid)
        self._verifier.set_keys(keys)
        return {kid: jwks[kid] for kid in keys}

    async def publish(self, signer: TokenSigner) -> bool:
        """Accept the node's own key, and publish it; return whether the store took it."""
        self._own = signer.public_jwk
        return await self._try_publish(signer.public_jwk)

    async def rotate(self, signer: TokenSigner) -> str:
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

    async def _try_publish(self, jwk: Mapping[str, str]) -> bool:
        value = {"jwk": dict(jwk), "expires_at": time.time() + KEY_LIFETIME_SECONDS}
        try:
            await self._store.commit([Change(Table.KEYS, jwk["kid"], value)])
        except StoreUnavailableError as error:
            _log.warning("the public key of this node could not be published: %s", error)
            return False
        return True

    async def keep_published(self, signer: TokenSigner, *, published: bool) -> None:
        """Publish the key again in time, and when the store has lost it; until cancelled."""
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
