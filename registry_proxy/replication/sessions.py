"""Upload sessions that live in their Location: signed, so that any node can go on with them.

The state carries only what the request does not: repository, subject, its generation and session ID go into the
signature alone, so a state is worth nothing in another repository, to another subject, or after a revocation.
"""

import base64
import binascii
import contextlib
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable

from registry_proxy.ports.errors import ConflictError, StoreUnavailableError
from registry_proxy.ports.names import RoutedRepository
from registry_proxy.ports.store import Change, Store, Table
from registry_proxy.ports.uploads import UPLOAD_LIFETIME_SECONDS, Uploader, UploadSession
from registry_proxy.protocol.errors import ErrorCode, RegistryError

_PERIOD_SECONDS = 7 * 24 * 3600
_STATE_MAX_LENGTH = 16 * 1024


def _unknown() -> RegistryError:
    return RegistryError(
        ErrorCode.BLOB_UPLOAD_UNKNOWN,
        "there is no such upload here: it ended, expired, was revoked, or belongs to somebody else; start a new one",
        detail={"reason": "the session in the Location is not valid"},
    )


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


class SignedSessions:
    """Writes and reads the ``_state`` of upload Locations.

    There is one key for every week, made at its first use and kept in the store; that of the week before is
    still accepted. It is read once: uploads go on while the store is away. Where the store was lost it is put back.

    Args:
        store: holds the keys.
        losses: returns a number that rises when the store was lost.
        clock: seconds since the epoch.
    """

    def __init__(self, store: Store, losses: Callable[[], int], clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._losses = losses
        self._clock = clock
        self._keys: dict[int, bytes] = {}
        self._known_losses = losses()

    async def sign(self, routed: RoutedRepository, uploader: Uploader, session: UploadSession) -> str:
        """Return the state, made of ``A-Z a-z 0-9 - _ .``; it is good until the session is too old."""
        now = self._clock()
        period = int(now // _PERIOD_SECONDS)
        content = [
            session.opened_at or int(now),
            session.offset,
            session.sha256,
            dict(session.locations),
            session.node_id,
        ]
        payload = _encode(json.dumps(content, separators=(",", ":")).encode())
        key = await self._key(period, create=True)
        mac = _mac(key, period, payload, *_about(routed, uploader, session.session_id))
        return f"{period}.{payload}.{_encode(mac)}"

    async def verify(
        self, routed: RoutedRepository, uploader: Uploader, session_id: str, state: str | None
    ) -> UploadSession:
        """Return the session that a request names.

        Raises:
            RegistryError: BLOB_UPLOAD_UNKNOWN when we did not write this state for this subject, its generation,
                repository and session, or the session is too old.
        """
        now = self._clock()
        try:
            period_text, payload, mac_text = (state or "")[:_STATE_MAX_LENGTH].split(".")
            period, mac = int(period_text), _decode(mac_text)
            if abs(period - int(now // _PERIOD_SECONDS)) > 1:
                raise _unknown()
            key = await self._key(period, create=False)
            if not hmac.compare_digest(mac, _mac(key, period, payload, *_about(routed, uploader, session_id))):
                raise _unknown()
            opened_at, offset, sha256, locations, node_id = json.loads(_decode(payload))
        except (ValueError, binascii.Error) as error:
            raise _unknown() from error
        if opened_at + UPLOAD_LIFETIME_SECONDS < now:
            raise _unknown()
        return UploadSession(session_id, offset, sha256, locations, node_id, opened_at)

    async def _key(self, period: int, *, create: bool) -> bytes:
        if (losses := self._losses()) != self._known_losses:
            with contextlib.suppress(StoreUnavailableError):
                await self._put_back()
                self._known_losses = losses
        key = self._keys.get(period)
        if key is None:
            key = self._keys[period] = await self._load_key(period, create=create)
        return key

    async def _put_back(self) -> None:
        """Put the keys back that the store has lost; where another process has made new ones since, those count."""
        for period, key in tuple(self._keys.items()):
            with contextlib.suppress(ConflictError):
                await self._store.commit([_change_of_key(period, key)])
            self._keys.pop(period, None)

    async def _load_key(self, period: int, *, create: bool) -> bytes:
        name = str(period)
        record = await self._store.get(Table.LOCATION_KEYS, name)
        if record is None and create:
            expired = [old.key for old in await self._store.list(Table.LOCATION_KEYS) if int(old.key) < period - 1]
            changes = [Change(Table.LOCATION_KEYS, old, None) for old in expired]
            with contextlib.suppress(ConflictError):  # another worker or node was first: its key counts
                await self._store.commit([_change_of_key(period, secrets.token_bytes(32)), *changes])
            record = await self._store.get(Table.LOCATION_KEYS, name)
        if record is None:
            raise _unknown()
        return _decode(record.value["key"])


def _change_of_key(period: int, key: bytes) -> Change:
    return Change(Table.LOCATION_KEYS, str(period), {"key": _encode(key)}, expect=0)


def _about(routed: RoutedRepository, uploader: Uploader, session_id: str) -> tuple[object, ...]:
    """Return what a state is for, which is signed with it and stands elsewhere in the request."""
    return routed.upstream, routed.repository, uploader.subject, uploader.generation, session_id


def _mac(key: bytes, *signed: object) -> bytes:
    """Return the signature over the parts; as JSON, so that no two lists of parts read alike."""
    return hmac.new(key, json.dumps(signed).encode(), hashlib.sha256).digest()
