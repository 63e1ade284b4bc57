"""The configuration as one validated, frozen value; ``config.load`` reads it from YAML and the environment.

Attributes carry their unit (``max_size_bytes``), the keys of the file do not (``max_size``).
"""

import ipaddress
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_serializer, model_validator

from registry_proxy.config.types import (
    Address,
    AdminHost,
    AuditFileSize,
    BindDn,
    ClaimPatterns,
    Duration,
    GroupName,
    HostName,
    IssuerUrl,
    LdapUrl,
    ListenAddress,
    Network,
    OidcSubject,
    Path,
    PublicUrl,
    ReplicaName,
    ReplicaUrl,
    RepositoryPattern,
    RoutePrefix,
    Size,
    StoreUrl,
    SyslogUrl,
    Timeout,
    TokenLifetime,
    UpstreamName,
)
from registry_proxy.files.certificate import TlsFiles

_REALM_HOSTS = {"registry-1.docker.io": "auth.docker.io"}  # the one registry that everybody puts behind a proxy
_DEFAULT_PORTS = {"http": 80, "https": 443, "ldap": 389, "ldaps": 636}


class Section(BaseModel):
    """A map of the configuration: immutable, and a key it does not know is a fault."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class StoreOutageSettings(Section):
    """The behaviour while Redis is away: go on from the last snapshot up to its age, or refuse at once."""

    mode: Literal["open", "closed"] = "open"
    max_age_seconds: Duration = Field(default=86400.0, alias="max_age")


class ScrubSettings(Section):
    """The reading of committed content again, to find rot on the disk."""

    bytes_per_second: Size = Field(default=10_000_000, alias="rate")  # 0: never
    interval_seconds: Timeout = Field(default=7 * 86400.0, alias="interval")
    check_share: Annotated[float, Field(ge=0, le=1)] = Field(default=0.0, alias="sample")


class CacheSettings(Section):
    """The directory of the blobs, the disk they may take, and those that stay."""

    path: Path = Field(default="var/cache", validate_default=True)
    max_size_bytes: Size = Field(default=10 << 30, alias="max_size")
    min_free_bytes: Size = Field(default=1 << 30, alias="min_free")
    pinned: tuple[RepositoryPattern, ...] = ()
    prefetch: bool = False
    scrub: ScrubSettings = ScrubSettings()


class TimeoutSettings(Section):
    """The time that one request to a replica may take to connect, to answer, and between two reads."""

    connect_seconds: Timeout = Field(default=2.0, alias="connect")
    first_byte_seconds: Timeout = Field(default=5.0, alias="first_byte")
    stall_seconds: Timeout = Field(default=15.0, alias="stall")
    probe_seconds: Timeout = Field(default=2.0, alias="probe")


class ServerSettings(Section):
    """A server that is named by a URL."""

    url: str

    @property
    def host(self) -> str:
        """The host of the URL, without brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The port of the URL, or the one its scheme stands for."""
        parts = urlsplit(self.url)
        return parts.port or _DEFAULT_PORTS[parts.scheme]


class ReplicaSettings(ServerSettings):
    """One registry that serves an upstream."""

    url: ReplicaUrl
    name: ReplicaName = ""  # host:port of the URL when absent
    discover: Literal["addresses", "srv"] | None = None  # the host of the URL stands for all that DNS names so
    server_name: HostName | None = None  # what it is called by, in TLS and the Host header, when the URL has an address
    username: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    realm_hosts: tuple[HostName, ...] = ()  # where else its tokens may be fetched, with the password
    redirect_hosts: tuple[HostName, ...] = ()  # where its blobs may lie inside the network, when it is not itself there
    insecure_credentials: bool = False  # send them over plain HTTP beyond loopback

    @model_validator(mode="after")
    def _fill_in(self) -> Self:
        known = _REALM_HOSTS.get(self.host)
        if known is not None and known not in self.realm_hosts:
            object.__setattr__(self, "realm_hosts", (*self.realm_hosts, known))
        if not self.name:
            object.__setattr__(self, "name", str(Address(self.host, self.port)))
        return self

    def read_password(self) -> str | None:
        """Return what the password file holds, without the line end; None where there is none.

        Raises:
            OSError: it cannot be read.
            UnicodeDecodeError: it is not UTF-8.
        """
        if self.password_file is None:
            return None
        with open(self.password_file, encoding="utf-8") as file:
            return file.read().rstrip("\r\n")


class UpstreamSettings(Section):
    """Replicas that hold the same repositories."""

    storage: Literal["independent", "shared"] = "independent"
    read_only: bool = False
    write_quorum: Annotated[int, Field(ge=1)] | Literal["majority"] = 1
    pushed_past_us: bool = False  # others write to its registries as well: then no record of ours proves an absence
    tag_ttl_seconds: Duration = Field(default=10.0, alias="tag_ttl")
    stale_on: tuple[Literal["unavailable", "refused", "absent"], ...] = ("unavailable",)  # then a tag is as it was
    mixes_repositories: bool = False  # its registries answer for a digest in any repository; else found out
    repair_bytes_per_second: Size = Field(default=100_000_000, alias="repair_rate")  # 0: as fast as it goes
    timeouts: TimeoutSettings = TimeoutSettings()
    replicas: tuple[ReplicaSettings, ...] = Field(min_length=1)

    @property
    def can_differ(self) -> bool:
        """Whether its replicas may come to hold different things by what we do."""
        return self.storage == "independent" and not self.read_only

    @property
    def is_recorded(self) -> bool:
        """Whether every tag that one of its replicas may miss is on record here."""
        return self.can_differ and not self.pushed_past_us

    @property
    def quorum(self) -> int:
        """The fewest replicas that must hold a push before it is acknowledged."""
        return len(self.replicas) // 2 + 1 if self.write_quorum == "majority" else self.write_quorum


class RouteSettings(Section):
    """Which repositories lie in which upstream."""

    prefix: RoutePrefix
    upstream: str
    strip_prefix: bool = False
    namespaces: tuple[HostName, ...] = ()


class OidcRuleSettings(Section):
    """A rule on ID tokens: the claims, each of which must match one of its patterns, and the subject."""

    name: UpstreamName
    claims: Mapping[str, ClaimPatterns] = Field(min_length=1)
    subject: OidcSubject = "{sub}"
    groups: tuple[GroupName, ...] = ()


class OidcSettings(Section):
    """An issuer whose ID tokens stand for a password, with the login name ``oidc``."""

    issuer: IssuerUrl
    audience: Annotated[str, Field(min_length=1, max_length=500)]
    jwks_url: IssuerUrl | None = None  # else by discovery
    ca_file: Path | None = None
    rules: tuple[OidcRuleSettings, ...] = Field(min_length=1)  # the first that fits


class LdapSettings(ServerSettings):
    """The directory that knows the passwords of users who have none here."""

    url: LdapUrl
    bind_dn: BindDn
    ca_file: Path | None = None

    @property
    def uses_tls(self) -> bool:
        """Whether it has a certificate to compare."""
        return self.url.startswith("ldaps:")


class AuthSettings(Section):
    """The tokens we issue, and the ID tokens of others that they are given for."""

    service: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,199}$")] = "registry-proxy"
    token_lifetime_seconds: TokenLifetime = Field(default=300.0, alias="token_lifetime")
    refresh_tokens: bool = False
    refresh_token_lifetime_seconds: Timeout = Field(default=90 * 86400.0, alias="refresh_token_lifetime")
    signing_key_file: Path = Field(default="var/token-key.pem", validate_default=True)
    oidc: Mapping[UpstreamName, OidcSettings] = Field(default_factory=dict)
    ldap: LdapSettings | None = None


class AuditChangesSettings(Section):
    """Bounds of the changes and logins that each worker keeps, which requests of clients cannot push out."""

    total_bytes: Size = Field(default=1 << 30, alias="max_size")
    total_seconds: Timeout = Field(default=365 * 86400.0, alias="max_age")


class AuditSettings(Section):
    """The log of who did what: how much of it each worker keeps, and where it goes besides."""

    path: Path | None = None  # beside the cache when absent: <cache.path>.audit
    file_bytes: AuditFileSize = Field(default=64 << 20, alias="file_size")
    file_seconds: Timeout = Field(default=86400.0, alias="file_age")
    total_bytes: Size = Field(default=1 << 30, alias="max_size")
    total_seconds: Timeout = Field(default=90 * 86400.0, alias="max_age")
    changes: AuditChangesSettings = AuditChangesSettings()
    pulls: bool = False
    stdout: bool = False
    syslog: SyslogUrl = None


class DrainSettings(Section):
    """The leave of a node, or of a worker that is replaced at a reload."""

    delay_seconds: Duration = Field(default=0.0, alias="delay")  # not ready, but still accepting
    timeout_seconds: Duration = Field(default=10.0, alias="timeout")
    reload_timeout_seconds: Duration = Field(default=600.0, alias="reload_timeout")


class EventsSettings(Section):
    """The receivers of events that are allowed."""

    private: bool = True  # at private addresses
    allowed_hosts: tuple[AdminHost, ...] = ()  # on this machine, too


class KeepContentSettings(Section):
    """The moves of each tag whose content is kept at the registries: the newest, and all that are not older."""

    moves: Annotated[int, Field(ge=0, le=1000)] = 0  # 0: none
    age_seconds: Duration = Field(default=30 * 86400.0, alias="age")


class HistorySettings(Section):
    """The history of tags."""

    keep_content: KeepContentSettings = KeepContentSettings()


class TlsSettings(Section):
    """The certificate of a listener that speaks TLS; its files are read again when they change."""

    cert_file: Path
    key_file: Path
    min_version: Literal["1.2", "1.3"] = "1.2"

    def files(self) -> TlsFiles:
        """Return the files as they are loaded."""
        return TlsFiles(self.cert_file, self.key_file, self.min_version)


class AdminTlsSettings(TlsSettings):
    """The same for the admin listener, which may ask its clients for certificates."""

    client_ca_file: Path | None = None

    def files(self) -> TlsFiles:
        """Return the files as they are loaded."""
        return replace(super().files(), client_ca_file=self.client_ca_file)


class Settings(Section):
    """The whole configuration. Two checks need several keys at once: see ``config.load``."""

    listen: ListenAddress = Address("127.0.0.1", 5000)
    tls: TlsSettings | None = None
    admin_listen: ListenAddress = Address("127.0.0.1", 5080)
    admin_tls: AdminTlsSettings | None = None
    admin_insecure: bool = False  # changes over plain HTTP from other machines, too
    admin_hosts: tuple[AdminHost, ...] = ()  # names of the admin listener beside its addresses
    public_url: PublicUrl = None
    trusted_proxies: tuple[Network, ...] = (ipaddress.IPv4Network("127.0.0.1/32"),)
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    store: StoreUrl = SecretStr("sqlite:///var/registry-proxy.db")
    store_outage: StoreOutageSettings = StoreOutageSettings()
    cache: CacheSettings = Field(default_factory=CacheSettings)
    nameservers: tuple[ListenAddress, ...] = ()  # asked for the replicas to discover; else the system's
    upstreams: Mapping[UpstreamName, UpstreamSettings] = Field(min_length=1)
    routes: tuple[RouteSettings, ...] = Field(min_length=1)
    auth: AuthSettings = Field(default_factory=AuthSettings)
    audit: AuditSettings = AuditSettings()
    events: EventsSettings = EventsSettings()
    history: HistorySettings = HistorySettings()
    drain: DrainSettings = DrainSettings()

    @field_serializer("store", when_used="json")
    @staticmethod
    def _tell_worker(store: SecretStr) -> str:
        return store.get_secret_value()

    def describe_listeners(self) -> str:
        """Return the URLs of both listeners, as a person reads them."""
        public, admin = ("http" if tls is None else "https" for tls in (self.tls, self.admin_tls))
        return f"{public}://{self.listen} (admin: {admin}://{self.admin_listen})"

    @property
    def store_url(self) -> str:
        """The URL of the store, with its password: never to be logged."""
        return self.store.get_secret_value()

    @property
    def audit_path(self) -> str:
        """The directory of this node's audit log: beside the cache, which may be deleted."""
        return self.audit.path or f"{self.cache.path}.audit"

    @property
    def changes_path(self) -> str:
        """The directory by which workers of this node, and commands beside them, share changes of the store."""
        return os.path.join(self.cache.path, "changes")

    @property
    def sqlite_path(self) -> str | None:
        """The absolute path of the embedded store; None with Redis."""
        scheme, _, path = self.store_url.partition(":///")
        return os.path.abspath(path) if scheme == "sqlite" else None

    @classmethod
    def schema_for_editors(cls) -> str:
        """Return the JSON schema of a configuration file (draft 2020-12), as text."""
        head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "registry-proxy"}
        return json.dumps({**cls.model_json_schema(by_alias=True), **head}, indent=2) + "\n"

    def to_json(self) -> str:
        """Return it, secrets included, for ``from_json`` in a worker."""
        return self.model_dump_json(by_alias=True)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the settings that ``to_json`` wrote."""
        return cls.model_validate_json(text)
