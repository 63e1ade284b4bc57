"""The called address and the address of the client: only trusted proxies are believed."""

import ipaddress
from pathlib import Path

import aiohttp
import pytest

from registry_proxy.edge.public import PublicOptions
from tests.support.fakes.public import SERVICE, PublicBench

LOCAL = (ipaddress.ip_network("127.0.0.1/32"),)
HTTPS = {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "registry.example"}


@pytest.mark.parametrize(
    ("options", "headers", "realm"),
    [
        (PublicOptions(SERVICE), {"Host": "reg.example:5000"}, "http://reg.example:5000"),
        (PublicOptions(SERVICE), {"Host": "[::1]:5000"}, "http://[::1]:5000"),
        (PublicOptions(SERVICE), {"Host": "reg.example", **HTTPS}, "http://reg.example"),
        (PublicOptions(SERVICE, None, LOCAL), {"Host": "inner", **HTTPS}, "https://registry.example"),
        (PublicOptions(SERVICE, None, LOCAL), {"Host": "reg:1", "X-Forwarded-Proto": "https"}, "https://reg:1"),
        (PublicOptions(SERVICE, None, LOCAL), {"Host": "reg:1", "X-Forwarded-Proto": "gopher"}, "http://reg:1"),
        (PublicOptions(SERVICE, "https://public.example/"), {"Host": "x", **HTTPS}, "https://public.example"),
        (PublicOptions(SERVICE), {"Host": 'x",evil="y'}, "http://127.0.0.1:PORT"),
    ],
)
async def test_realm(tmp_path: Path, options: PublicOptions, headers: dict[str, str], realm: str) -> None:
    """The realm is absolute, and on the scheme, host and port that the client called."""
    async with PublicBench(tmp_path, options).serving() as public:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        answer = await public.raw(f"GET /v2/ HTTP/1.1\r\n{lines}Connection: close\r\n\r\n".encode())
        expected = realm.replace("PORT", str(public.port))
        assert f'Bearer realm="{expected}/auth/token",service="{SERVICE}"\r\n'.encode() in answer.head + b"\r\n"


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        (None, "127.0.0.1"),
        ("203.0.113.9", "203.0.113.9"),
        ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
        ("203.0.113.9, 127.0.0.1", "203.0.113.9"),
        ("nonsense", "127.0.0.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("::ffff:203.0.113.9", "203.0.113.9"),
    ],
)
async def test_client_address_behind_a_trusted_proxy(tmp_path: Path, forwarded: str | None, address: str) -> None:
    """The client is the last address that is no trusted proxy: anybody could have written those before it."""
    async with PublicBench(tmp_path, PublicOptions(SERVICE, None, LOCAL)).serving() as public:
        headers = {} if forwarded is None else {"X-Forwarded-For": forwarded, "X-Request-ID": "of-the-proxy"}
        headers["Authorization"] = aiohttp.encode_basic_auth("ann", "ann-password")
        async with public.session.get("/auth/token", headers=headers) as response:
            assert response.status == 200
            assert (response.headers["X-Request-ID"] == "of-the-proxy") == (forwarded is not None)
        assert public.control.logins == [("ann", address)]
