"""Passwords that an LDAP directory knows: each login is one simple bind over TLS (RFC 4511, 4.2; RFC 4513, 5.1.3).

Nothing is searched and nothing is remembered: a user who is locked out there is locked out here at the next login.
"""

import asyncio
import logging
import secrets
import ssl
from typing import Final

from registry_proxy.access.credentials import (
    PASSWORD_MAX_LENGTH,
    QUEUE_RETRY_SECONDS,
    LoginUnavailableError,
    TooManyLoginsError,
)
from registry_proxy.access.turns import OPERATOR, Caller, FairTurns, QueueFullError

NAME: Final = "{name}"
"""Stands for the user's name in the DN to bind as."""

_BINDS_AT_ONCE = 10
_BINDS_WAITING_MAX = 256
_TIMEOUT_SECONDS = 5.0
_ANSWER_MAX_BYTES = 64 * 1024
_SEQUENCE, _INTEGER, _OCTET_STRING, _ENUMERATED = 0x30, 0x02, 0x04, 0x0A
_BIND_REQUEST, _BIND_RESPONSE, _SIMPLE = 0x60, 0x61, 0x80
_UNBIND = bytes([_SEQUENCE, 5, _INTEGER, 1, 2, 0x42, 0])
_SUCCESS, _INVALID_CREDENTIALS = 0, 49
# operationsError, protocolError, timeLimitExceeded, strongerAuthRequired, referral, confidentialityRequired, busy,
# unavailable, other: these say nothing about the password.
_NO_VERDICT = frozenset({1, 2, 3, 8, 10, 13, 51, 52, 80})

_log = logging.getLogger(__name__)


class LdapUnavailableError(LoginUnavailableError):
    """The directory does not answer, or not whether a password is right."""


class LdapPasswords:
    """Asks one directory whether passwords are right.

    Args:
        host: name or address, without brackets.
        port: usually 636.
        bind_dn: what to bind as, with ``{name}`` for the user's name.
        tls: the authorities for its certificate; None for plain LDAP, which is allowed on this machine only.
    """

    def __init__(self, host: str, port: int, bind_dn: str, tls: ssl.SSLContext | None) -> None:
        self._host = host
        self._port = port
        self._bind_dn = bind_dn
        self._tls = tls
        self._turns = FairTurns(_BINDS_AT_ONCE, _BINDS_WAITING_MAX)

    async def verify(self, name: str, password: str, caller: Caller = OPERATOR) -> bool:
        """Tell whether the password of a user, whose name ``is_name`` has accepted, is right.

        Raises:
            LdapUnavailableError: it cannot be known.
            TooManyLoginsError: too many binds are waiting.
        """
        if not _may_be_sent(password):
            await self.refuse(caller)
            return False
        code = await self._ask(name, password, caller)
        if code not in {_SUCCESS, _INVALID_CREDENTIALS}:
            _log.warning("the LDAP server at %s:%d refused a login with result code %d", self._host, self._port, code)
        return code == _SUCCESS

    async def refuse(self, caller: Caller = OPERATOR) -> None:
        """Take as long as a wrong password does, by asking for a name that nobody has. Raises as ``verify``."""
        await self._ask(secrets.token_hex(16), secrets.token_hex(16), caller)

    async def _ask(self, name: str, password: str, caller: Caller) -> int:
        """Return the result code of a bind that says something. Raises as ``verify``."""
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS), self._turns.turn(caller):
                code = await self._bind(self._dn(name), password)
        except QueueFullError:
            raise TooManyLoginsError(QUEUE_RETRY_SECONDS) from None
        except TimeoutError:
            raise self._unavailable(f"no answer within {_TIMEOUT_SECONDS:g} s") from None
        except (OSError, ValueError, asyncio.IncompleteReadError) as error:
            raise self._unavailable(str(error)) from error
        if code in _NO_VERDICT:
            raise self._unavailable(f"it answered with result code {code}")
        return code

    def _dn(self, name: str) -> str:
        """Return the DN of a user; of what names may hold, "+" alone means something in one (RFC 4514, section 2.4)."""
        return self._bind_dn.replace(NAME, name.replace("+", r"\+") if "=" in self._bind_dn else name)

    async def _bind(self, dn: str, password: str) -> int:
        reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls)
        try:
            writer.write(_bind_request(dn, password))
            await writer.drain()
            code = _result_code(await _read_message(reader))
            writer.write(_UNBIND)  # a courtesy: it is not waited for, and what becomes of it changes no verdict
            return code
        finally:
            writer.transport.abort()

    def _unavailable(self, reason: str) -> LdapUnavailableError:
        text = f"the LDAP server at {self._host}:{self._port} cannot be used: {reason}"
        _log.warning("%s", text)
        return LdapUnavailableError(text)


def _may_be_sent(password: str) -> bool:
    """Tell whether a directory takes a password for what it is.

    With an empty one many let in anybody, as nobody in particular (RFC 4513, section 5.1.2); to some it ends at a NUL;
    and half a character is no UTF-8.
    """
    is_text = not any("\ud800" <= character <= "\udfff" for character in password)
    return 0 < len(password) <= PASSWORD_MAX_LENGTH and "\0" not in password and is_text


def _element(tag: int, content: bytes) -> bytes:
    """Return an element in BER, with a length of the definite form (X.690, section 8.1)."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    octets = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(octets)]) + octets + content


def _bind_request(dn: str, password: str) -> bytes:
    credentials = _element(_SIMPLE, password.encode())
    operation = _element(_INTEGER, b"\x03") + _element(_OCTET_STRING, dn.encode()) + credentials
    return _element(_SEQUENCE, _element(_INTEGER, b"\x01") + _element(_BIND_REQUEST, operation))


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    """Return one message, without its tag and length. Raises ValueError, asyncio.IncompleteReadError."""
    tag, size = await reader.readexactly(2)
    if size & 0x80:
        size = int.from_bytes(await reader.readexactly(size & 0x7F), "big")
    if tag != _SEQUENCE or size > _ANSWER_MAX_BYTES:
        raise ValueError("it did not answer as an LDAP server does")
    return await reader.readexactly(size)


def _result_code(message: bytes) -> int:
    """Return the result code of the answer to message 1. Raises ValueError for any other message."""
    try:
        number, rest = _take(message, _INTEGER)
        response, _ = _take(rest, _BIND_RESPONSE)
        code, _ = _take(response, _ENUMERATED)
    except IndexError:
        raise ValueError("its answer ends too soon") from None
    if int.from_bytes(number, "big") != 1 or not code:
        raise ValueError("its answer does not fit the request")
    return int.from_bytes(code, "big")


def _take(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """Return the content of the element at the beginning, and what comes behind it. Raises ValueError, IndexError."""
    found, size, start = data[0], data[1], 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(data[2:start], "big")
    if found != tag or start + size > len(data):
        raise ValueError("it answered something else than the result of a bind")
    return data[start : start + size], data[start + size :]
