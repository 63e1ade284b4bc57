"""The settings as the values that the rooms take, and the faults of a start in words.

No room but ``node`` and ``cli`` knows the configuration.
"""

import asyncio
import contextlib
import logging
import ssl
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from registry_proxy.access.control import AccessControl
from registry_proxy.access.id_tokens import ClaimRule, TrustedIssuer
from registry_proxy.access.issuer_keys import IssuerKeys
from registry_proxy.access.ldap import LdapPasswords
from registry_proxy.access.open import AccessOptions, SigningKeyError, SigningOptions
from registry_proxy.admin.ops import ADMIN, PUBLIC
from registry_proxy.admission.auth import AdminGuard
from registry_proxy.admission.plain_http import PlainHttp
from registry_proxy.admission.sites import Sites
from registry_proxy.audit.open import AuditOptions
from registry_proxy.audit.trail import AuditTrail
from registry_proxy.audit.writer import Retention
from registry_proxy.cache.layout import CacheMoveError, CacheSchemaError
from registry_proxy.cache.open import CacheOptions
from registry_proxy.config.errors import StartError
from registry_proxy.config.model import (
    AuthSettings,
    LdapSettings,
    OidcSettings,
    Settings,
    TlsSettings,
    UpstreamSettings,
)
from registry_proxy.directory.first_admin import FirstAdminError
from registry_proxy.edge.middleware import RequestIds
from registry_proxy.edge.origin import Origins
from registry_proxy.edge.public import PublicOptions
from registry_proxy.events.receivers import ReceiverLimits
from registry_proxy.files.certificate import CertificateError, TlsFiles
from registry_proxy.history.keepers import KeepLimits
from registry_proxy.http.connections import ConnectionLimits, Connections
from registry_proxy.node.worker import WorkerContext
from registry_proxy.operations.tags import TagRules
from registry_proxy.ports.errors import StoreUnavailableError
from registry_proxy.ports.metrics import Listener, Observer
from registry_proxy.ports.names import StaleReason
from registry_proxy.ports.replicas import StorageKind
from registry_proxy.protocol.addresses import is_loopback
from registry_proxy.protocol.patterns import compile_text_pattern
from registry_proxy.replica.connections import ReplicaAddress, Timeouts
from registry_proxy.replication.open import RecordOptions
from registry_proxy.store.schema import SchemaTooNewError
from registry_proxy.upstream.replicas import UpstreamConfig
from registry_proxy.upstream.routing import Route

_log = logging.getLogger(__name__)
_FILES_PER_CONNECTION, _FILES_PER_ADMIN_CONNECTION = 2, 8
"""One in so many of the files that a worker may open is a connection of a client; one that is answered needs two."""


def connections(settings: Settings, observer: Observer) -> Mapping[Listener, Connections]:
    """Return the counts of the connections of each listener, bounded for as many files as this process may open."""
    origins, clock = Origins(settings.public_url, settings.trusted_proxies), asyncio.get_running_loop().time
    limits: Mapping[Listener, ConnectionLimits] = {
        PUBLIC: ConnectionLimits().within_files(_FILES_PER_CONNECTION),
        ADMIN: ConnectionLimits(connections_max=512).within_files(_FILES_PER_ADMIN_CONNECTION),
    }
    return {name: Connections(each, origins, clock, name, observer) for name, each in limits.items()}


def tls_files(settings: Settings) -> Mapping[Listener, TlsFiles]:
    """Return the files of the listeners that speak TLS."""
    listeners: Mapping[Listener, TlsSettings | None] = {PUBLIC: settings.tls, ADMIN: settings.admin_tls}
    return {name: tls.files() for name, tls in listeners.items() if tls is not None}


def log_warnings(settings: Settings, of_store: Sequence[str]) -> None:
    """Log what is allowed and not advisable: the warnings of the store, and those of the settings."""
    for warning in of_store:
        _log.warning("%s", warning)
    if not (settings.admin_tls or settings.admin_insecure or is_loopback(settings.admin_listen.host)):
        _log.warning(
            "admin_listen %s is plain HTTP: changes from other machines are refused unless a proxy of trusted_proxies "
            "adds TLS; set admin_tls, or admin_insecure: true to accept them",
            settings.admin_listen,
        )


def routes(settings: Settings) -> Sequence[Route]:
    """Return which repositories lie where."""
    return [
        Route(
            route.prefix,
            route.upstream,
            route.strip_prefix,
            route.namespaces,
            is_docker_hub="docker.io" in route.namespaces and settings.upstreams[route.upstream].read_only,
            is_writable=not settings.upstreams[route.upstream].read_only,
        )
        for route in settings.routes
    ]


def replica_names(settings: Settings) -> Mapping[str, Sequence[str]]:
    """Return the names of the replicas of each upstream."""
    return {name: [replica.name for replica in each.replicas] for name, each in settings.upstreams.items()}


def record_options(settings: Settings) -> RecordOptions:
    """Return how much of each upstream is on record."""
    return RecordOptions(
        replicas=replica_names(settings),
        guarded=[name for name, each in settings.upstreams.items() if each.can_differ],
        recorded=[name for name, each in settings.upstreams.items() if each.is_recorded],
        is_only_node=settings.sqlite_path is not None,
    )


def cache_options(settings: Settings, context: WorkerContext) -> CacheOptions:
    """Return place, bounds and upkeep of the cache of a worker."""
    cache = settings.cache
    return CacheOptions(
        path=cache.path,
        max_size_bytes=cache.max_size_bytes,
        min_free_bytes=cache.min_free_bytes,
        pinned=cache.pinned,
        check_share=cache.scrub.check_share,
        scrub_bytes_per_second=cache.scrub.bytes_per_second,
        scrub_interval_seconds=cache.scrub.interval_seconds,
        was_away=context.was_away,
    )


def signing_options(auth: AuthSettings) -> SigningOptions:
    """Return the key of the node and what it signs."""
    return SigningOptions(auth.signing_key_file, auth.service, round(auth.token_lifetime_seconds))


def access_options(settings: Settings) -> AccessOptions:
    """Return the sources of logins. Raises OSError, ssl.SSLError where the ``ca_file`` of LDAP cannot be used."""
    auth, outage = settings.auth, settings.store_outage
    return AccessOptions(
        signing_options(auth),
        outage_max_age_seconds=outage.max_age_seconds if outage.mode == "open" else None,
        issuers=[_trusted_issuer(name, each) for name, each in auth.oidc.items()],
        ldap=None if auth.ldap is None else _ldap_passwords(auth.ldap),
    )


def _trusted_issuer(name: str, configured: OidcSettings) -> TrustedIssuer:
    rules = [
        ClaimRule(
            name=rule.name,
            claims={claim: tuple(map(compile_text_pattern, each)) for claim, each in rule.claims.items()},
            subject=rule.subject,
            groups=rule.groups,
        )
        for rule in configured.rules
    ]
    keys = IssuerKeys(configured.issuer, configured.jwks_url, configured.ca_file)
    return TrustedIssuer(name, configured.issuer, configured.audience, rules, keys)


def _ldap_passwords(configured: LdapSettings) -> LdapPasswords:
    tls = ssl.create_default_context(cafile=configured.ca_file) if configured.uses_tls else None
    return LdapPasswords(configured.host, configured.port, configured.bind_dn, tls)


def audit_options(settings: Settings, node: str, process: str) -> AuditOptions:
    """Return place and bounds of the audit log of a process of a node."""
    audit = settings.audit
    return AuditOptions(
        directory=settings.audit_path,
        node=node,
        process=process,
        acts=Retention(audit.file_bytes, audit.file_seconds, audit.changes.total_bytes, audit.changes.total_seconds),
        traffic=Retention(audit.file_bytes, audit.file_seconds, audit.total_bytes, audit.total_seconds),
        records_pulls=audit.pulls,
        stdout=sys.stdout.fileno() if audit.stdout else None,
        syslog=audit.syslog,
        is_only_node=settings.sqlite_path is not None,
    )


def receiver_limits(settings: Settings) -> ReceiverLimits:
    """Return which receivers events may reach, and which services never."""
    admin, store = settings.admin_listen, urlsplit(settings.store_url)
    services = [(replica.host, replica.port) for each in settings.upstreams.values() for replica in each.replicas]
    services.append((admin.host, admin.port))
    for place in store.netloc.rpartition("@")[2].split(",") if "redis" in store.scheme else ():
        host, _, port = place.rpartition(":") if place.rpartition(":")[2].isdigit() else (place, "", "6379")
        services.append((host.strip("[]"), int(port)))
    return ReceiverLimits(settings.events.private, settings.events.allowed_hosts, services)


def public_options(settings: Settings) -> PublicOptions:
    """Return names and addresses of the public listener."""
    auth = settings.auth
    return PublicOptions(
        auth.service,
        settings.public_url,
        settings.trusted_proxies,
        auth.refresh_token_lifetime_seconds if auth.refresh_tokens else None,
        "http" if settings.tls is None else "https",
    )


def admin_guard(settings: Settings, control: AccessControl, audit: AuditTrail, observer: Observer) -> AdminGuard:
    """Return the access to the admin API."""
    origins = Origins(settings.public_url, settings.trusted_proxies)
    return AdminGuard(
        control=control,
        sites=Sites(settings.public_url, settings.admin_hosts),
        plain_http=PlainHttp(origins.is_trusted, is_allowed=settings.admin_insecure),
        client_address=origins.client_address,
        name_request=RequestIds(origins).name,
        audit=audit,
        observer=observer,
    )


def tag_rules(settings: Settings) -> Mapping[str, TagRules]:
    """Return how the tags of each upstream are answered."""
    return {
        name: TagRules(
            upstream.tag_ttl_seconds,
            frozenset(map(StaleReason, upstream.stale_on)),
            is_recorded=not upstream.read_only and not upstream.pushed_past_us,
        )
        for name, upstream in settings.upstreams.items()
    }


def upstream_configs(settings: Settings) -> Sequence[UpstreamConfig]:
    """Return the upstreams, with the passwords of their replicas. Raises OSError where one cannot be read."""
    return [_upstream_config(name, each) for name, each in settings.upstreams.items()]


def _upstream_config(name: str, upstream: UpstreamSettings) -> UpstreamConfig:
    addresses = [
        ReplicaAddress(
            upstream=name,
            name=replica.name,
            url=replica.url,
            username=replica.username,
            password=replica.read_password(),
            ca_file=None if replica.ca_file is None else Path(replica.ca_file),
            realm_hosts=replica.realm_hosts,
            redirect_hosts=replica.redirect_hosts,
            allow_plain_credentials=replica.insecure_credentials,
            server_name=replica.server_name,
        )
        for replica in upstream.replicas
    ]
    seconds = upstream.timeouts
    return UpstreamConfig(
        name=name,
        storage=StorageKind(upstream.storage),
        read_only=upstream.read_only,
        write_quorum=upstream.quorum,
        replicas=addresses,
        timeouts=Timeouts(
            seconds.connect_seconds, seconds.first_byte_seconds, seconds.stall_seconds, seconds.probe_seconds
        ),
        mixes_repositories=upstream.mixes_repositories,
        can_differ=upstream.can_differ,
        is_recorded=upstream.is_recorded,
    )


def repair_rates(settings: Settings) -> Mapping[str, int]:
    """Return the pace of repair in bytes a second, by upstream; 0 for no limit."""
    return {name: upstream.repair_bytes_per_second for name, upstream in settings.upstreams.items()}


def keep_limits(settings: Settings) -> KeepLimits:
    """Return the moves of each tag whose content is kept."""
    kept = settings.history.keep_content
    return KeepLimits(kept.moves, kept.age_seconds)


@contextlib.contextmanager
def start_errors() -> Iterator[None]:
    """Report a fault that an operator can correct as a StartError."""
    try:
        yield
    except SigningKeyError as error:
        raise StartError(f"auth.signing_key_file: {error}") from error
    except (CertificateError, FirstAdminError) as error:
        raise StartError(str(error)) from error
    except (CacheMoveError, CacheSchemaError, SchemaTooNewError, StoreUnavailableError) as error:
        raise StartError(str(error)) from error
