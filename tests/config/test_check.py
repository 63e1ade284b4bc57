"""Faults between keys, and between the configuration and the machine."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from registry_proxy.config.load import SettingsError, load_settings
from tests.conftest import make_certificate


def faults(tmp_path: Path, **changes: Any) -> list[str]:
    """Return the faults, as ``key: message``, of a good configuration with some keys changed."""
    config: dict[str, Any] = {
        "cache": {"path": str(tmp_path / "cache")},
        "store": f"sqlite:///{tmp_path}/store.db",
        "auth": {"signing_key_file": str(tmp_path / "key.pem")},
        "upstreams": {"main": {"replicas": [{"url": "http://127.0.0.1:5001"}]}},
        "routes": [{"prefix": "", "upstream": "main"}],
        **changes,
    }
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    try:
        load_settings(str(file), {})
    except SettingsError as error:
        return [f"{fault.key}: {fault.message}" for fault in error.faults]
    return []


def replicas(*items: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return an ``upstreams`` map of one upstream."""
    return {"main": {"replicas": list(items), **more}}


def test_a_list_of_wrong_entries_is_not_called_empty(tmp_path: Path) -> None:
    """Only the fault of the entry is reported, and that of an empty list."""
    found = faults(tmp_path, upstreams=replicas({"url": "ftp://127.0.0.1"}))
    assert [line.partition(":")[0] for line in found] == ["upstreams.main.replicas[0].url"]
    assert any("at least one entry, found an empty list" in line for line in faults(tmp_path, upstreams=replicas()))


def test_a_good_configuration_has_no_fault(tmp_path: Path) -> None:
    """The base of the tests below has no fault."""
    assert faults(tmp_path) == []


def test_routes(tmp_path: Path) -> None:
    """Unknown upstreams, a prefix twice and a namespace twice are faults, also beside other faults."""
    routes = [
        {"prefix": "a/", "upstream": "main", "namespaces": ["docker.io"]},
        {"prefix": "a/", "upstream": "other", "namespaces": ["Docker.io"], "unknown": 1},
    ]
    text = "\n".join(faults(tmp_path, routes=routes))
    assert 'routes[1].upstream: expected an upstream (main), found "other"' in text
    assert 'routes[1].prefix: two routes have the prefix "a/"' in text
    assert 'routes[1].namespaces: two routes serve "Docker.io"' in text
    assert "routes[1].unknown: unknown key" in text


@pytest.mark.parametrize(("quorum", "fine"), [(1, True), (2, True), (3, False), ("majority", True)])
def test_write_quorum(tmp_path: Path, quorum: Any, fine: bool) -> None:  # noqa: FBT001
    """A quorum above the number of replicas can never be reached."""
    upstreams = replicas({"url": "http://127.0.0.1:5001"}, {"url": "http://127.0.0.1:5002"}, write_quorum=quorum)
    found = faults(tmp_path, upstreams=upstreams)
    assert (found == []) is fine, found


@pytest.mark.parametrize(
    ("listen", "url", "fine"),
    [
        ("127.0.0.1:5000", "http://127.0.0.1:5000", False),
        ("127.0.0.1:5000", "http://localhost:5000", False),
        ("127.0.0.1:5000", "http://127.0.0.1:5080", False),
        ("0.0.0.0:5000", "http://127.0.0.1:5000", False),
        ("0.0.0.0:5000", "http://127.9.9.9:5000", False),
        ("127.0.0.1:5000", "http://0.0.0.0:5000", False),
        ("0.0.0.0:80", "http://127.0.0.1", False),
        ("[::1]:5000", "http://[::1]:5000", False),
        ("[::1]:5000", "http://[0:0::0:1]:5000", False),
        ("[::1]:5000", "http://127.0.0.1:5000", True),
        ("127.0.0.1:5000", "http://127.0.0.2:5000", True),
        ("0.0.0.0:5000", "http://192.0.2.7:5000", True),
        ("127.0.0.1:5000", "http://127.0.0.1:5001", True),
    ],
)
def test_a_replica_that_is_ourselves(tmp_path: Path, listen: str, url: str, fine: bool) -> None:  # noqa: FBT001
    """A replica at the proxy's own address is a fault: it would be a loop."""
    found = faults(tmp_path, listen=listen, upstreams=replicas({"url": url}))
    if listen == "[::1]:5000" and url.endswith("127.0.0.1:5000"):
        fine = True  # an IPv6 loopback listener does not accept IPv4
    assert (found == []) is fine, found
    assert fine or "our own" in found[0]


def test_replicas_are_distinct(tmp_path: Path) -> None:
    """Two replicas of an upstream with one name or one URL are a fault; two upstreams may use one name."""
    twice = replicas({"url": "http://127.0.0.1:5001"}, {"url": "http://127.0.0.1:5001"})
    assert "expected a name of its own" in faults(tmp_path, upstreams=twice)[0]
    named = replicas({"url": "http://127.0.0.1:5001"}, {"url": "http://127.0.0.1:5001/", "name": "second"})
    assert "expected a registry of its own" in faults(tmp_path, upstreams=named)[0]
    broken = replicas({"url": "nowhere", "name": "one"}, {"url": "http://127.0.0.1:5001", "name": "one", "unknown": 1})
    found = faults(tmp_path, upstreams=broken)
    assert [line for line in found if "a name of its own" in line], "beside the faults of the same entries"
    assert len(found) == 3
    nameless = faults(tmp_path, upstreams=replicas({"unknown": 1}, {"unknown": 1}))
    assert not [line for line in nameless if "of its own" in line]
    apart = {"a": named["main"] | {"replicas": [{"url": "http://127.0.0.1:5001"}]}, **twice}
    apart["main"] = {"replicas": [{"url": "http://127.0.0.1:5001"}]}
    assert faults(tmp_path, upstreams=apart) == []


def test_listeners_share_no_port(tmp_path: Path) -> None:
    """The admin listener needs its own address."""
    assert "admin_listen" in faults(tmp_path, listen="127.0.0.1:5000", admin_listen="0.0.0.0:5000")[0]
    assert faults(tmp_path, listen="127.0.0.1:5000", admin_listen="127.0.0.2:5000") == []


def test_credentials(tmp_path: Path) -> None:
    """Credentials come as a pair, from a readable file, and cross a network in the clear only when that is allowed."""
    password = tmp_path / "password"
    password.write_text("of the registry\n")
    good = {"url": "http://127.0.0.1:5001", "username": "ann", "password_file": str(password)}
    assert faults(tmp_path, upstreams=replicas(good)) == []
    assert "found only one of them" in faults(tmp_path, upstreams=replicas({**good, "password_file": None}))[0]
    afar = {**good, "url": "http://registry.example.com"}
    assert "expected https://" in faults(tmp_path, upstreams=replicas(afar))[0]
    assert faults(tmp_path, upstreams=replicas({**afar, "insecure_credentials": True})) == []
    password.write_text("\n")
    assert "empty" in faults(tmp_path, upstreams=replicas(good))[0]
    password.write_bytes(b"\xff\xfe")
    assert "UTF-8" in faults(tmp_path, upstreams=replicas(good))[0]
    password.unlink()
    assert "cannot be read: No such file" in faults(tmp_path, upstreams=replicas(good))[0]


def test_ca_file(tmp_path: Path) -> None:
    """A ``ca_file`` holds certificates, and belongs to an https URL."""
    file = tmp_path / "ca.pem"
    replica = {"url": "https://registry.example.com", "ca_file": str(file)}
    assert "cannot be read" in faults(tmp_path, upstreams=replicas(replica))[0]
    file.write_text("no certificate")
    assert "PEM" in faults(tmp_path, upstreams=replicas(replica))[0]
    text = "\n".join(faults(tmp_path, upstreams=replicas({**replica, "url": "http://127.0.0.1:5001"})))
    assert "expected an https:// url beside ca_file" in text


def test_certificates(tmp_path: Path, certificate: Path) -> None:
    """The files of each listener are loaded: absent ones, and a key of another certificate, are named."""
    key, other = certificate.with_name("key.pem"), tmp_path / "other"
    other.mkdir()
    make_certificate(other / "cert.pem", other / "key.pem")
    tls = {"cert_file": str(certificate), "key_file": str(key)}
    assert faults(tmp_path, tls=tls, admin_tls={**tls, "client_ca_file": str(certificate)}) == []
    admin, public = faults(
        tmp_path, tls={**tls, "key_file": str(other / "key.pem")}, admin_tls={**tls, "cert_file": "absent"}
    )
    assert "is not that of the certificate" in public
    assert admin.startswith("admin_tls: ")
    assert admin.endswith("absent: No such file or directory")


def test_places(tmp_path: Path) -> None:
    """Files that must outlive the cache do not lie in it, and files are no directories."""
    (tmp_path / "file").write_text("")
    cache = tmp_path / "cache"
    assert "cache.path: expected a directory" in faults(tmp_path, cache={"path": str(tmp_path / "file")})[0]
    assert "cache.path: expected a directory" in "\n".join(faults(tmp_path, cache={"path": "/"}))
    assert "store: expected a place outside cache.path" in faults(tmp_path, store=f"sqlite:///{cache}/store.db")[0]
    inside = {"signing_key_file": str(cache / "key.pem")}
    assert "auth.signing_key_file: expected a place outside" in faults(tmp_path, auth=inside)[0]
    assert "store: expected a file" in faults(tmp_path, store=f"sqlite:///{tmp_path}")[0]
    (fault,) = faults(tmp_path, audit={"path": str(cache / "audit")})
    assert fault.startswith("audit.path: expected a place outside cache.path")
    assert fault.endswith(f"by default it is {cache}.audit")
    same = {"signing_key_file": str(tmp_path / "store.db")}
    assert "expected another file" in faults(tmp_path, auth=same)[0]


def oidc(**issuers: Any) -> dict[str, Any]:
    """Return an ``auth`` section with issuers, each given as changes of a good one."""
    good = {"issuer": "https://ci.example.com", "audience": "x", "rules": [{"name": "any", "claims": {"sub": "*"}}]}
    return {"oidc": {name: {**good, **changes} for name, changes in issuers.items()}}


def test_issuers(tmp_path: Path) -> None:
    """Two issuers of one URL, and files without certificates, are faults at their key."""
    key_file = {"signing_key_file": str(tmp_path / "key.pem")}
    assert faults(tmp_path, auth={**key_file, **oidc(a={})}) == []
    bad = tmp_path / "ca.pem"
    bad.write_text("no certificate")
    found = faults(
        tmp_path,
        auth={
            **key_file,
            **oidc(a={"ca_file": str(tmp_path / "none")}, b={}, c={"issuer": "https://x", "ca_file": str(bad)}),
        },
    )
    assert [line.partition(":")[0] for line in found] == [
        "auth.oidc.a.ca_file",
        "auth.oidc.b.issuer",
        "auth.oidc.c.ca_file",
    ]
    twice = [{"name": "any", "claims": {"sub": claim}} for claim in ("a", "b")]
    found = faults(tmp_path, auth={**key_file, **oidc(a={"rules": twice})})
    assert found == ['auth.oidc.a.rules[1].name: expected a name of its own, found a second "any"']
    local = {"issuer": "http://127.0.0.1:1", "ca_file": str(bad)}
    assert any("beside ca_file" in line for line in faults(tmp_path, auth={**key_file, **oidc(a=local)}))


def test_ldap(tmp_path: Path) -> None:
    """The certificate authority of LDAP is checked."""
    bad = tmp_path / "ca.pem"
    bad.write_text("no certificate")
    good = {"url": "ldaps://ldap.example.com", "bind_dn": "uid={name},dc=example,dc=com"}
    for ldap, texts in (
        (good, []),
        ({**good, "bind_dn": "uid=x"}, ["such as uid={name},ou=people,dc=example,dc=com, found"]),
        ({**good, "ca_file": str(bad)}, ["expected certificates in PEM format"]),
        ({**good, "url": "ldap://127.0.0.1", "ca_file": str(bad)}, ["beside ca_file", "expected certificates"]),
    ):
        found = faults(tmp_path, auth={"signing_key_file": str(tmp_path / "key.pem"), "ldap": ldap})
        assert len(found) == len(texts), found
        assert all(any(text in line for line in found) for text in texts), found
