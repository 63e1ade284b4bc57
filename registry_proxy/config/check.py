"""Faults that show only between several keys, or between the configuration and this machine.

Every part that is valid by itself is checked, so that one bad value does not hide another fault.
"""

import ipaddress
import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from registry_proxy.config.model import (
    AdminTlsSettings,
    AuditSettings,
    AuthSettings,
    CacheSettings,
    LdapSettings,
    OidcSettings,
    ReplicaSettings,
    Settings,
    TlsSettings,
)
from registry_proxy.config.source import Fault, KeyPath, Source, describe
from registry_proxy.config.types import Address, ListenAddress, ReplicaName, ReplicaUrl
from registry_proxy.files.certificate import CertificateError
from registry_proxy.protocol.addresses import is_loopback, parse_address

_T = TypeVar("_T")
_MINIMAL: Mapping[str, Any] = {
    "upstreams": {"x": {"replicas": [{"url": "http://127.0.0.1:1"}]}},
    "routes": [{"prefix": "", "upstream": "x"}],
}
_BEFORE_SCHEMA = frozenset({"lost+found", "node.lock", "changes", "discovered.json", "metrics", "probe", "schema.new"})
"""In a cache directory before its schema is written: of the file system, and of a start that did not come that far."""


def check_across(source: Source) -> Iterator[Fault]:
    """Find what is wrong between keys, and between them and the machine."""
    listeners = _listeners(source.tree)
    yield from _check_listeners(source, listeners)
    yield from _check_certificates(source)
    yield from _check_routes(source)
    for name, upstream in _maps(source.tree, "upstreams"):
        yield from _check_upstream(source, ("upstreams", name), upstream, listeners)
    yield from _check_issuers(source)
    yield from _check_ldap(source)
    yield from _check_places(source)


def _maps(tree: Mapping[str, Any], key: str) -> Iterator[tuple[str | int, dict[str, Any]]]:
    """Give the maps inside a map or list, with their key or index; leave out what is none."""
    value = tree.get(key)
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        if isinstance(item, dict):
            yield name, item


def _valid(adapter: TypeAdapter[_T], value: Any) -> _T | None:
    try:
        return adapter.validate_python(value)
    except ValidationError:
        return None


def _listeners(tree: Mapping[str, Any]) -> dict[str, Address]:
    adapter: TypeAdapter[Address] = TypeAdapter(ListenAddress)
    found = {}
    for key in ("listen", "admin_listen"):
        address = _valid(adapter, tree[key]) if key in tree else Settings.model_fields[key].default
        if address is not None:
            found[key] = address
    return found


def _check_listeners(source: Source, listeners: Mapping[str, Address]) -> Iterator[Fault]:
    listen, admin = listeners.get("listen"), listeners.get("admin_listen")
    if listen is None or admin is None or listen.port != admin.port:
        return
    if listen.host == admin.host or _is_any(listen) or _is_any(admin):
        yield source.fault(("admin_listen",), f"expected another port than that of listen ({listen}), found {admin}")


def _check_routes(source: Source) -> Iterator[Fault]:
    upstreams = source.tree.get("upstreams")
    names = set(upstreams) if isinstance(upstreams, dict) else set()
    prefixes: dict[str, KeyPath] = {}
    hosts: dict[str, KeyPath] = {}
    for index, route in _maps(source.tree, "routes"):
        path: KeyPath = ("routes", index)
        upstream, prefix, namespaces = route.get("upstream"), route.get("prefix"), route.get("namespaces")
        if isinstance(upstream, str) and upstream not in names:
            known = ", ".join(sorted(names)) or "there is none"
            yield source.fault((*path, "upstream"), f"expected an upstream ({known}), found {describe(upstream)}")
        if isinstance(prefix, str) and prefixes.setdefault(prefix, path) != path:
            first = format_place(source, (*prefixes[prefix], "prefix"))
            yield source.fault((*path, "prefix"), f"two routes have the prefix {describe(prefix)}: see {first}")
        for host in namespaces if isinstance(namespaces, list) else ():
            if isinstance(host, str) and hosts.setdefault(host.lower(), path) != path:
                yield source.fault((*path, "namespaces"), f"two routes serve {describe(host)}")


def format_place(source: Source, path: KeyPath) -> str:
    """Return ``file:line`` or the name of the variable where a key was written."""
    where, line = source.place(path)
    return f"{where}:{line}" if line else where


def _check_upstream(
    source: Source, path: KeyPath, upstream: Mapping[str, Any], listeners: Mapping[str, Address]
) -> Iterator[Fault]:
    replicas, quorum = upstream.get("replicas"), upstream.get("write_quorum")
    count = len(replicas) if isinstance(replicas, list) else 0
    number = _valid(TypeAdapter(int), quorum)
    finds_more = any(item.get("discover") for _, item in _maps(upstream, "replicas"))
    if count and number is not None and number > count and not finds_more:
        limit = f'expected 1 to {count}, the number of replicas, or "majority"'
        yield source.fault((*path, "write_quorum"), f"{limit}, found {describe(quorum)}")
    names: set[str | None] = set()
    urls: set[str | None] = set()
    for index, item in _maps(upstream, "replicas"):
        replica, place = _valid(TypeAdapter(ReplicaSettings), item), (*path, "replicas", index)
        if replica is None:
            name, url = (
                _valid(TypeAdapter(ReplicaName), item.get("name")),
                _valid(TypeAdapter(ReplicaUrl), item.get("url")),
            )
        else:
            name, url = replica.name, replica.url
            yield from _check_replica(source, place, replica, listeners)
            yield from _check_discovery(source, place, replica, item, is_shared=upstream.get("storage") == "shared")
        if name is not None and name in names:
            yield source.fault(place, f"expected a name of its own, found a second {describe(name)}")
        elif url is not None and url in urls:
            yield source.fault((*place, "url"), f"expected a registry of its own, found a second {url}")
        names.add(name)
        urls.add(url)


def _check_replica(
    source: Source, path: KeyPath, replica: ReplicaSettings, listeners: Mapping[str, Address]
) -> Iterator[Fault]:
    for key, address in listeners.items():
        if replica.port == address.port and _reaches(replica.host, address):
            yield source.fault((*path, "url"), f"expected another registry, found our own {key} address ({address})")
    if (replica.username is None) != (replica.password_file is None):
        yield source.fault(path, "expected username and password_file together, found only one of them")
    is_readable = replica.url.startswith("http:") and not is_loopback(replica.host)
    if replica.username is not None and is_readable and not replica.insecure_credentials:
        yield source.fault(
            (*path, "url"),
            "expected https:// (or insecure_credentials: true), since credentials would cross the network in the clear",
        )
    if replica.password_file is not None:
        yield from _check_password_file(source, (*path, "password_file"), replica)
    if replica.ca_file is not None:
        yield from _check_ca_file(source, (*path, "ca_file"), replica.ca_file, is_used=replica.url.startswith("https:"))


def _check_discovery(
    source: Source, path: KeyPath, replica: ReplicaSettings, item: Mapping[str, Any], *, is_shared: bool
) -> Iterator[Fault]:
    if replica.discover is None:
        return
    if replica.discover == "addresses" and not is_shared:
        expected = "expected storage: shared, or discover: srv: an address does not identify a registry"
        yield source.fault((*path, "discover"), expected)
    for key in ("name", "server_name"):
        if item.get(key):
            yield source.fault((*path, key), "expected none beside discover: DNS gives them")
    if parse_address(replica.host) is not None:
        yield source.fault((*path, "url"), f"expected a name for DNS beside discover, found {replica.host}")


def _check_password_file(source: Source, path: KeyPath, replica: ReplicaSettings) -> Iterator[Fault]:
    try:
        if not replica.read_password():
            yield source.fault(path, f"expected a password, found {replica.password_file} empty")
    except OSError as error:
        yield source.fault(path, f"{replica.password_file} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        yield source.fault(path, f"expected UTF-8 text in {replica.password_file}")


def _check_ca_file(source: Source, path: KeyPath, ca_file: str, *, is_used: bool) -> Iterator[Fault]:
    if not is_used:
        yield source.fault(path, "expected an https:// url beside ca_file")
    try:
        ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        yield source.fault(path, f"expected certificates in PEM format in {ca_file}")
    except OSError as error:
        yield source.fault(path, f"{ca_file} cannot be read: {error.strerror}")


def _check_certificates(source: Source) -> Iterator[Fault]:
    for key, model in (("tls", TlsSettings), ("admin_tls", AdminTlsSettings)):
        tls = _valid(TypeAdapter(model), source.tree.get(key))
        if tls is None:
            continue
        try:
            tls.files().load()
        except CertificateError as error:
            yield source.fault((key,), str(error))


def _check_issuers(source: Source) -> Iterator[Fault]:
    auth, urls = source.tree.get("auth"), set()
    for name, item in _maps(auth, "oidc") if isinstance(auth, dict) else ():
        path: KeyPath = ("auth", "oidc", name)
        issuer = _valid(TypeAdapter(OidcSettings), item)
        if issuer is None:
            continue
        if issuer.issuer in urls:
            yield source.fault((*path, "issuer"), f"expected an issuer of its own, found a second {issuer.issuer}")
        urls.add(issuer.issuer)
        names = [rule.name for rule in issuer.rules]
        for index, rule_name in enumerate(names):
            if rule_name in names[:index]:
                place = (*path, "rules", index, "name")
                yield source.fault(place, f"expected a name of its own, found a second {describe(rule_name)}")
        if issuer.ca_file is not None:
            is_used = (issuer.jwks_url or issuer.issuer).startswith("https:")
            yield from _check_ca_file(source, (*path, "ca_file"), issuer.ca_file, is_used=is_used)


def _check_ldap(source: Source) -> Iterator[Fault]:
    auth = source.tree.get("auth")
    ldap = _valid(TypeAdapter(LdapSettings), auth.get("ldap")) if isinstance(auth, dict) else None
    if ldap is not None and ldap.ca_file is not None:
        yield from _check_ca_file(source, ("auth", "ldap", "ca_file"), ldap.ca_file, is_used=ldap.uses_tls)


# ---------------------------------------------------------------- addresses and paths of this machine


def _is_any(address: Address) -> bool:
    return ipaddress.ip_address(address.host).is_unspecified


def _reaches(host: str, address: Address) -> bool:
    """Tell whether a connection to ``host`` on the right port ends at our listener; names are not looked up."""
    if host == "localhost":
        return _is_any(address) or ipaddress.ip_address(address.host).is_loopback
    target = parse_address(host)
    if target is None:
        return _is_any(address) and host == socket.gethostname().lower()
    if target.is_unspecified:  # to connect to 0.0.0.0 is to connect to this machine
        return True
    return target == ipaddress.ip_address(address.host) or (_is_any(address) and _is_own(target))


def _is_own(target: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Tell whether this machine has the address: only then may a socket be bound to it."""
    family = socket.AF_INET if target.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(target), 0))
    except OSError:
        return False
    return True


def _check_places(source: Source) -> Iterator[Fault]:
    """Check that what we write can lie where the configuration says."""
    files = _written_files(source.tree)
    cache = files.pop(("cache", "path"), None)
    if cache is not None and (cache == "/" or (os.path.lexists(cache) and not os.path.isdir(cache))):
        yield source.fault(("cache", "path"), f"expected a directory of its own, found {describe(cache)}")
    elif cache is not None and (foreign := _find_foreign(cache)) is not None:
        expected = "expected a new or empty directory, or a cache of ours: what lies in it is deleted as we need room"
        yield source.fault(("cache", "path"), f"{expected}; {cache} holds {foreign}")
    for path, file in files.items():
        if os.path.isdir(file):
            yield source.fault(path, f"expected a file, found the directory {file}")
        elif cache is not None and os.path.commonpath([cache, file]) == cache:
            yield source.fault(path, f"expected a place outside cache.path ({cache}), which may be deleted")
    audit = _valid(TypeAdapter(AuditSettings), _only(source.tree.get("audit"), "path"))
    if cache is not None and audit is not None and audit.path and os.path.commonpath([cache, audit.path]) == cache:
        text = f"expected a place outside cache.path ({cache}), which may be deleted; by default it is {cache}.audit"
        yield source.fault(("audit", "path"), text)
    if len(set(files.values())) < len(files):
        yield source.fault(("auth", "signing_key_file"), "expected another file than that of the store")


def _find_foreign(cache: str) -> str | None:
    """Return what shows that a directory is not a cache of ours; None for one that is, is empty or cannot be read."""
    try:
        found = set(os.listdir(cache))
        if "schema" in found:
            with open(os.path.join(cache, "schema"), "rb") as file:
                return None if file.read().strip().isdigit() else "a file schema without a version number"
        strange = found - _BEFORE_SCHEMA
        if "metrics" in found:  # emptied at each start
            strange |= {f"metrics/{name}" for name in os.listdir(f"{cache}/metrics") if not name.endswith(".db")}
    except OSError:
        return None
    return f"{min(strange)} and no file schema" if strange else None


def _written_files(tree: Mapping[str, Any]) -> dict[KeyPath, str]:
    """Return the absolute paths of our files, as far as they are valid by themselves."""
    files: dict[KeyPath, str] = {}
    cache = _valid(TypeAdapter(CacheSettings), _only(tree.get("cache"), "path"))
    if cache is not None:
        files["cache", "path"] = cache.path
    auth = _valid(TypeAdapter(AuthSettings), _only(tree.get("auth"), "signing_key_file"))
    if auth is not None:
        files["auth", "signing_key_file"] = auth.signing_key_file
    store = _valid(TypeAdapter(Settings), {**_MINIMAL, **_only(tree, "store")})
    if store is not None and store.sqlite_path is not None:
        files["store",] = store.sqlite_path
    return files


def _only(section: Any, key: str) -> dict[str, Any]:
    return {key: section[key]} if isinstance(section, dict) and key in section else {}
