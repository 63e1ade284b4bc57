"""Passwords that LDAP knows: a real slapd, and servers that speak no LDAP."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_proxy.access import ldap as module
from registry_proxy.access.ldap import LdapPasswords, LdapUnavailableError
from tests.conftest import require_program
from tests.support.servers import Server, free_port, ldap_server, running

BIND_DN = "uid={name},ou=people,dc=example,dc=com"
LONG = "x" * 1000
PASSWORDS = {"ann": "password of ann", "a+b": "plus", "zoe": "pässword ☃", "long": LONG}


@pytest.fixture(scope="module")
def slapd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a directory with some people."""
    require_program("slapd")
    with running(ldap_server(tmp_path_factory.mktemp("ldap") / "slapd", PASSWORDS)) as server:
        yield server


def asking(port: int, bind_dn: str = BIND_DN, tls: ssl.SSLContext | None = None) -> LdapPasswords:
    """Return a client for a directory on this machine."""
    return LdapPasswords("127.0.0.1", port, bind_dn, tls)


@pytest.mark.parametrize("name", ["ann", "a+b", "zoe", "long"])
async def test_a_right_password_is_right(slapd: Server, name: str) -> None:
    """A right password of any length and script is accepted, also for a name that a DN must quote."""
    assert await asking(slapd.port).verify(name, PASSWORDS[name])


@pytest.mark.parametrize(
    ("name", "password"),
    [
        ("ann", "wrong"),
        ("ann", "password of an"),
        ("ann", "PASSWORD OF ANN"),
        ("ann", ""),
        ("ann", "\0"),
        ("ann", "\udcff"),
        ("ann", LONG * 2),
        ("ghost", "password of ann"),
        ("a", "plus"),
        ("zoe", "password of ann"),
    ],
)
async def test_a_wrong_one_is_wrong(slapd: Server, name: str, password: str) -> None:
    """A wrong password is refused, also an empty one, with which a directory binds anonymously."""
    assert not await asking(slapd.port).verify(name, password)


async def test_a_dn_that_is_none_lets_nobody_in(slapd: Server) -> None:
    """A bind that the directory refuses for another reason is a refusal."""
    assert not await asking(slapd.port, "no dn {name}").verify("ann", PASSWORDS["ann"])


async def test_many_at_once_take_turns(slapd: Server) -> None:
    """Each of many simultaneous logins receives its own answer."""
    ldap = asking(slapd.port)
    logins = [("ann", PASSWORDS["ann"]), ("ann", "wrong")] * 50
    assert await asyncio.gather(*(ldap.verify(*login) for login in logins)) == [True, False] * 50


async def test_tls_is_compared(tmp_path: Path, certificate: Path) -> None:
    """A directory is asked over TLS only when its certificate is signed by the authority."""
    require_program("slapd")
    with running(ldap_server(tmp_path / "slapd", PASSWORDS, certificate)) as server:
        trusting = asking(server.port, tls=ssl.create_default_context(cafile=certificate))
        assert await trusting.verify("ann", PASSWORDS["ann"])
        assert not await trusting.verify("ann", "wrong")
        with pytest.raises(LdapUnavailableError, match="certificate verify failed"):
            await asking(server.port, tls=ssl.create_default_context()).verify("ann", PASSWORDS["ann"])


async def test_nobody_there() -> None:
    """A directory that is down is reported with its address."""
    port = free_port()
    with pytest.raises(LdapUnavailableError, match=f"the LDAP server at 127.0.0.1:{port} cannot be used"):
        await asking(port).verify("ann", "x")


@asynccontextmanager
async def answering(answer: bytes, *, hold: bool = False) -> AsyncIterator[int]:
    """Serve one fixed answer to every request; with ``hold`` the connection then stays open and silent."""
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(answer)
        if hold:
            await left.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        left.set()
        server.close()
        await server.wait_closed()


def bound(code: int, message_id: int = 1, tag: int = 0x61) -> bytes:
    """Return the answer to a bind."""
    return bytes([0x30, 12, 2, 1, message_id, tag, 7, 10, 1, code, 4, 0, 4, 0])


async def test_an_answer_with_long_lengths_is_an_answer() -> None:
    """Active Directory writes each length in five octets."""
    parts = b"\x02\x01\x01\x61\x84\x00\x00\x00\x07\x0a\x01\x00\x04\x00\x04\x00"
    async with answering(b"\x30\x84\x00\x00\x00" + bytes([len(parts)]) + parts) as port:
        assert await asking(port).verify("ann", "x")


@pytest.mark.parametrize("password", ["", LONG * 2, "\0", "password of ann\0", "password of ann\0x", "\udcff"])
async def test_some_passwords_are_not_asked_for(password: str) -> None:
    """Empty passwords and passwords with a NUL are refused without a bind: many directories accept them."""
    async with answering(bound(0)) as port:
        assert not await asking(port).verify("ann", password)


async def test_the_fate_of_the_unbind_changes_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory may close the connection right after its answer."""
    sent = 0

    async def drain(_: asyncio.StreamWriter) -> None:
        nonlocal sent
        sent += 1
        if sent > 1:
            raise ConnectionResetError("hung up")

    monkeypatch.setattr(asyncio.StreamWriter, "drain", drain)
    async with answering(bound(0)) as port:
        assert await asking(port).verify("ann", "x")


async def test_an_endless_answer_is_not_waited_for() -> None:
    """An announced length beyond that of any answer ends the login immediately."""
    async with answering(b"\x30\x84\x7f\xff\xff\xff", hold=True) as port:
        with pytest.raises(LdapUnavailableError, match="did not answer as an LDAP server does"):
            await asking(port).verify("ann", "x")


@pytest.mark.parametrize("code", [49, 32, 34, 48, 50, 53, 19, 99, 255])
async def test_only_success_lets_in(code: int) -> None:
    """Any verdict other than success is a refusal."""
    async with answering(bound(code)) as port:
        assert not await asking(port).verify("ann", "x")


@pytest.mark.parametrize("code", [1, 8, 10, 13, 51, 52, 80])
async def test_no_verdict_is_no_refusal(code: int) -> None:
    """A busy directory, or one that refers elsewhere, gives no verdict about a password."""
    async with answering(bound(code)) as port:
        with pytest.raises(LdapUnavailableError, match=f"result code {code}"):
            await asking(port).verify("ann", "x")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        bound(0)[:-5],
        bound(0, message_id=2),
        bound(0, message_id=0, tag=0x78),
        bound(0, tag=0x65),
        b"\x30\x00",
        b"\x30\x80" + bound(0)[2:],
        b"\x30\x84\x7f\xff\xff\xff",
        b"\x30\xff" + b"\x00" * 127,
        b"\x30\x07\x02\x01\x01\x61\x02\x0a\x00",
        b"\x30\x05\x02\x01\x01\x61\x7f",
        b"\x30\x03\x02\x01\x01",
    ],
)
async def test_junk_lets_nobody_in(answer: bytes) -> None:
    """A reply that does not answer the bind is reported as such, never used as a verdict."""
    async with answering(answer) as port:
        with pytest.raises(LdapUnavailableError):
            await asking(port).verify("ann", "x")


@pytest.mark.parametrize("answer", [b"", b"\x30\x0c\x02"])
async def test_silence_is_given_up(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login gives up on a directory that stops answering."""
    monkeypatch.setattr(module, "_TIMEOUT_SECONDS", 0.05)
    async with answering(answer, hold=True) as port:
        with pytest.raises(LdapUnavailableError, match=r"no answer within 0.05 s"):
            await asking(port).verify("ann", "x")


@given(st.binary(max_size=40))
def test_any_message_is_a_code_or_a_value_error(message: bytes) -> None:
    """Reading any message gives a result code or a ValueError."""
    try:
        assert module._result_code(message) >= 0
    except ValueError:
        return
