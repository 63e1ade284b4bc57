"""The configuration value: every key, its default, its unit, and the refused values."""

import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from registry_proxy.config.load import SettingsError, load_settings
from registry_proxy.config.model import ReplicaSettings, Settings
from registry_proxy.config.types import Address

EVERY_KEY = """
listen: 127.0.0.1:5000
admin_listen: "[::1]:5080"
public_url: https://registry.example.com/
trusted_proxies: [127.0.0.1/32, "fd00::/8", 10.1.2.3]
workers: 3
store: redis://:s3cret@redis.example.com:6379/2
store_outage: {mode: closed, max_age: 5m}
cache: {path: var/cache, max_size: 20GiB, min_free: 500MB}
upstreams:
  main:
    storage: shared
    write_quorum: majority
    tag_ttl: 0
    timeouts: {connect: 500ms, first_byte: 1.5s, stall: 1m, probe: 1s}
    replicas:
      - {url: "http://127.0.0.1:5001"}
      - {name: second, url: "https://registry.example.com:5443/", username: ann, password_file: PASSWORD,
         realm_hosts: [login.example.com]}
      - {url: "http://[::1]:5003"}
  hub: {read_only: true, replicas: [{url: "https://registry-1.docker.io"}]}
routes:
  - {prefix: "hub/", upstream: hub, strip_prefix: true, namespaces: [Docker.io]}
  - {prefix: "", upstream: main}
auth: {service: registry.example.com, token_lifetime: 10m, signing_key_file: var/token-key.pem}
"""
SMALLEST: dict[str, Any] = {
    "upstreams": {"main": {"replicas": [{"url": "http://127.0.0.1:5001"}]}},
    "routes": [{"prefix": "", "upstream": "main"}],
}


def load(tmp_path: Path, text: str | dict[str, Any], environment: dict[str, str] | None = None) -> Settings:
    """Return the settings of a file with this text."""
    file = tmp_path / "config.yaml"
    file.write_text(text if isinstance(text, str) else yaml.safe_dump(text))
    return load_settings(str(file), environment or {})


def test_every_key_has_its_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes become bytes, durations seconds, paths absolute, names host:port."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "password").write_text("of the second\n")
    settings = load(tmp_path, EVERY_KEY.replace("PASSWORD", "password"))
    assert settings.listen == Address("127.0.0.1", 5000)
    assert str(settings.admin_listen) == "[::1]:5080"
    assert settings.public_url == "https://registry.example.com"
    assert [str(network) for network in settings.trusted_proxies] == ["127.0.0.1/32", "fd00::/8", "10.1.2.3/32"]
    assert settings.workers == 3
    assert settings.store_url == "redis://:s3cret@redis.example.com:6379/2"
    assert settings.sqlite_path is None
    assert (settings.store_outage.mode, settings.store_outage.max_age_seconds) == ("closed", 300)
    assert settings.cache.path == str(tmp_path / "var" / "cache")
    assert (settings.cache.max_size_bytes, settings.cache.min_free_bytes) == (20 * 1024**3, 500 * 1000**2)
    main = settings.upstreams["main"]
    assert (main.storage, main.quorum, main.tag_ttl_seconds, main.read_only) == ("shared", 2, 0, False)
    timeouts = main.timeouts
    assert (timeouts.connect_seconds, timeouts.first_byte_seconds) == (0.5, 1.5)
    assert (timeouts.stall_seconds, timeouts.probe_seconds) == (60, 1)
    assert [replica.name for replica in main.replicas] == ["127.0.0.1:5001", "second", "[::1]:5003"]
    assert main.replicas[1].url == "https://registry.example.com:5443"
    assert main.replicas[1].read_password() == "of the second"
    assert settings.upstreams["hub"].read_only
    assert settings.upstreams["hub"].replicas[0].realm_hosts == ("auth.docker.io",)
    assert main.replicas[0].realm_hosts == ()
    assert main.replicas[1].realm_hosts == ("login.example.com",)
    assert settings.routes[0].namespaces == ("docker.io",)
    assert settings.routes[0].strip_prefix
    assert settings.auth.service == "registry.example.com"
    assert settings.auth.token_lifetime_seconds == 600
    assert settings.auth.signing_key_file == str(tmp_path / "var" / "token-key.pem")


def test_docker_hubs_token_service_is_known_beside_those_given() -> None:
    """The service stays known in a worker, which reads the completed value once more."""
    given = {"url": "https://registry-1.docker.io", "realm_hosts": ["login.example.com"]}
    replica = ReplicaSettings.model_validate(given)
    assert replica.realm_hosts == ("login.example.com", "auth.docker.io")
    assert ReplicaSettings.model_validate_json(replica.model_dump_json(by_alias=True)) == replica


def test_the_defaults_are_those_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only upstreams and routes are required; the other defaults are those of the documentation."""
    monkeypatch.chdir(tmp_path)
    settings = load(tmp_path, SMALLEST)
    assert (str(settings.listen), str(settings.admin_listen)) == ("127.0.0.1:5000", "127.0.0.1:5080")
    assert (settings.public_url, settings.workers) == (None, 1)
    assert settings.trusted_proxies == (ipaddress.ip_network("127.0.0.1/32"),)
    assert settings.sqlite_path == str(tmp_path / "var" / "registry-proxy.db")
    assert (settings.store_outage.mode, settings.store_outage.max_age_seconds) == ("open", 86400)
    assert settings.cache.path == str(tmp_path / "var" / "cache")
    assert (settings.cache.max_size_bytes, settings.cache.min_free_bytes) == (10 * 1024**3, 1024**3)
    main = settings.upstreams["main"]
    assert (main.storage, main.quorum, main.tag_ttl_seconds) == ("independent", 1, 10)
    timeouts = main.timeouts
    assert (timeouts.connect_seconds, timeouts.first_byte_seconds) == (2, 5)
    assert (timeouts.stall_seconds, timeouts.probe_seconds) == (15, 2)
    assert (settings.auth.service, settings.auth.token_lifetime_seconds) == ("registry-proxy", 300)


def test_a_worker_gets_the_same_settings(tmp_path: Path) -> None:
    """The settings that travel to a worker as JSON are equal to the original, secrets included."""
    (tmp_path / "password").write_text("x")
    settings = load(tmp_path, EVERY_KEY.replace("PASSWORD", str(tmp_path / "password")))
    assert Settings.from_json(settings.to_json()) == settings


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    """The value is frozen."""
    with pytest.raises(ValidationError, match="frozen"):
        load(tmp_path, SMALLEST).workers = 2


def test_secrets_are_not_in_the_repr(tmp_path: Path) -> None:
    """A settings value in a log or a traceback shows no password."""
    (tmp_path / "password").write_text("pa55word")
    settings = load(tmp_path, EVERY_KEY.replace("PASSWORD", str(tmp_path / "password")))
    assert "s3cret" not in f"{settings!r} {settings}"
    assert "pa55word" not in f"{settings!r} {settings}"


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1024", 1024),
        ("1B", 1),
        ("1k", 1000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("1.5MiB", 1536 * 1024),
        ("2 GiB", 2 * 1024**3),
        ("1T", 1000**4),
        ("10gib", 10 * 1024**3),
    ],
)
def test_sizes(tmp_path: Path, text: str, size_bytes: int) -> None:
    """K, M, G, T are powers of 1000, Ki, Mi, Gi, Ti of 1024."""
    settings = load(tmp_path, SMALLEST, {"REGISTRY_PROXY__CACHE__MIN_FREE": text})
    assert settings.cache.min_free_bytes == size_bytes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("10", 10), ("250ms", 0.25), ("1.5s", 1.5), ("5m", 300), ("24h", 86400), ("2d", 172800)],
)
def test_durations(tmp_path: Path, text: str, seconds: float) -> None:
    """A number without a unit is seconds."""
    settings = load(tmp_path, SMALLEST, {"REGISTRY_PROXY__UPSTREAMS__MAIN__TAG_TTL": text})
    assert settings.upstreams["main"].tag_ttl_seconds == seconds


@pytest.mark.parametrize(
    ("key", "values"),
    [
        (
            "LISTEN",
            [
                "5000",
                "127.0.0.1",
                "::1:5000",
                "[::1]",
                "example.com:5000",
                "127.0.0.1:0",
                "127.0.0.1:65536",
                "256.1.1.1:1",
                "",
            ],
        ),
        (
            "PUBLIC_URL",
            [
                "registry.example.com",
                "ftp://x",
                "https://x/path",
                "https://x?a=b",
                "https://u:p@x",
                "https://",
                "https://a b",
            ],
        ),
        ("TRUSTED_PROXIES", ["127.0.0.1/32", '["127.0.0.1/8"]', '["x"]', "[5]", '{"a": 1}']),
        ("WORKERS", ["0", "65", "-1", "1.5", "many", "[1]"]),
        (
            "STORE",
            [
                "sqlite://",
                "sqlite:///",
                "sqlite://host/x.db",
                "sqlite::memory:",
                "mysql://x",
                "redis://",
                "redis://:p@",
                "redis+sentinel://:p@a,b",
                "redis+sentinel://:p@a,b:0/main",
                "rediss+sentinel://:p@a,,b/main/0",
                "redis://host:6379/first",
                "redis://host:6379/0?timeut=5",
                "redis://:pa/ss@host:6379/0",
                "redis://:pa?ss@host:6379/0",
                "redis+sentinel://:pa/ss@host:6379/main",
                "redis+sentinel://host:6379/main/first",
                "redis+sentinel://host:6379/main/0?sentinel_pasword=x",
                "x",
                "",
            ],
        ),
        ("STORE_OUTAGE__MODE", ["ajar", ""]),
        ("STORE_OUTAGE__MAX_AGE", ["1 day", "-5s", "10x", "1e3s", "infinity", ".5s"]),
        ("CACHE__MAX_SIZE", ["big", "10Gigs", "-1", "1e9", "1,5GiB", "[]", "9" * 30]),
        ("UPSTREAMS__MAIN__STORAGE", ["s3"]),
        ("UPSTREAMS__MAIN__READ_ONLY", ["perhaps"]),
        ("UPSTREAMS__MAIN__WRITE_QUORUM", ["0", "2", "most", "-1"]),
        ("UPSTREAMS__MAIN__TIMEOUTS__CONNECT", ["0s", "soon"]),
        (
            "UPSTREAMS__MAIN__REPLICAS",
            ["[]", "x", "[1]", "[{}]", '[{"url": "127.0.0.1:5001"}]', '[{"url": "http://x/v2/"}]'],
        ),
        (
            "UPSTREAMS__MAIN__REPLICAS",
            ['[{"url": "http://u:p@x"}]', '[{"url": "http://x", "name": "a b"}]', '[{"url": "http://:80"}]'],
        ),
        (
            "ROUTES",
            [
                "[]",
                '[{"prefix": "a", "upstream": "main"}]',
                '[{"prefix": "../", "upstream": "main"}]',
                '[{"prefix": "A/", "upstream": "main"}]',
            ],
        ),
        (
            "ROUTES",
            [
                '[{"upstream": "main"}]',
                '[{"prefix": ""}]',
                '[{"prefix": "", "upstream": "main", "namespaces": ["a/b"]}]',
            ],
        ),
        ("AUTH__TOKEN_LIFETIME", ["59", "2d", "x"]),
        ("AUTH__SERVICE", ["", 'a"b', "a b", "x" * 300]),
        ("AUTH__SIGNING_KEY_FILE", [""]),
    ],
)
def test_bad_values_are_refused_with_what_was_expected(tmp_path: Path, key: str, values: list[str]) -> None:
    """A value that makes no sense is a fault at its key, with the expected form."""
    for value in values:
        with pytest.raises(SettingsError) as refusal:
            load(tmp_path, SMALLEST, {f"REGISTRY_PROXY__{key}": value})
        text = str(refusal.value)
        assert f"REGISTRY_PROXY__{key}: {key.lower().replace('__', '.')}" in text, (value, text)
        assert any(word in text for word in ("expected", "needed", "later")), (value, text)
        assert "u:p@" not in text


RULE = {"name": "any", "claims": {"sub": "*"}}


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        *(
            ({"issuer": issuer}, "issuer")
            for issuer in ("http://x", "x", "", "https://u:p@x", "https://x?a", "https://x#", 7)
        ),
        ({"jwks_url": "http://x/keys"}, "jwks_url"),
        ({"audience": ""}, "audience"),
        ({"audience": ["x"]}, "audience"),
        ({"rules": []}, "rules"),
        ({"rules": {"any": RULE}}, "rules"),
        *(
            ({"rules": [{**RULE, **changes}]}, key)
            for changes, key in (
                ({"name": "A b"}, "rules[0].name"),
                ({"claims": {}}, "rules[0].claims"),
                ({"claims": {"sub": []}}, "rules[0].claims.sub"),
                ({"claims": {"sub": ""}}, "rules[0].claims.sub"),
                ({"claims": {"sub": True}}, "rules[0].claims.sub"),
                ({"subject": "{a b}"}, "rules[0].subject"),
                ({"subject": ""}, "rules[0].subject"),
                ({"subject": "{sub}{ref}"}, "rules[0].subject"),
                ({"groups": ["a:b"]}, "rules[0].groups[0]"),
                ({"groups": ["oidc"]}, "rules[0].groups[0]"),
            )
        ),
    ],
)
def test_issuers_that_are_not_well_described_are_refused(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    """An issuer whose rules accept too much, or nobody, is a fault at its key."""
    good = {"issuer": "https://ci.example.com/a", "audience": "x", "rules": [RULE]}
    load(tmp_path, {**SMALLEST, "auth": {"oidc": {"ci": good}}})
    with pytest.raises(SettingsError) as refusal:
        load(tmp_path, {**SMALLEST, "auth": {"oidc": {"ci": {**good, **changes}}}})
    assert [fault.key for fault in refusal.value.faults] == [f"auth.oidc.ci.{key}"]
    assert "u:p@" not in str(refusal.value)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        *(
            ({"url": url}, "url")
            for url in (
                "ldap://ldap.example.com",
                "https://x",
                "x",
                "",
                "ldaps://u:p@x",
                "ldaps://x/dc=x",
                "ldaps://",
                7,
            )
        ),
        *(({"bind_dn": dn}, "bind_dn") for dn in ("", "{name}", "uid=x", "{name},{name}", "uid={name}\n", 7)),
    ],
)
def test_an_ldap_that_is_not_well_described_is_refused(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    """Passwords go over TLS or stay on this machine; each user has a separate DN."""
    for url, address in (
        ("ldaps://ldap.example.com", ("ldap.example.com", 636, True)),
        ("ldap://127.0.0.1:3890", ("127.0.0.1", 3890, False)),
        ("ldap://[::1]", ("::1", 389, False)),
    ):
        ldap = load(tmp_path, {**SMALLEST, "auth": {"ldap": {"url": url, "bind_dn": "uid={name},dc=x"}}}).auth.ldap
        assert ldap is not None
        assert (ldap.host, ldap.port, ldap.uses_tls) == address
    with pytest.raises(SettingsError) as refusal:
        load(tmp_path, {**SMALLEST, "auth": {"ldap": {"url": "ldaps://x", "bind_dn": "uid={name},dc=x", **changes}}})
    assert [fault.key for fault in refusal.value.faults] == [f"auth.ldap.{key}"]
    assert "u:p@" not in str(refusal.value)


def test_a_planned_feature_is_refused_as_not_available_yet(tmp_path: Path) -> None:
    """A planned feature is neither accepted nor reported as a misspelling."""
    main = {**SMALLEST["upstreams"]["main"], "webhooks": "x"}
    config = {**SMALLEST, "upstreams": {"main": main}}
    with pytest.raises(SettingsError) as refusal:
        load(tmp_path, config)
    faults = [fault for fault in refusal.value.faults if "not available yet" in fault.message]
    assert [fault.key for fault in faults] == ["upstreams.main.webhooks"]


@pytest.mark.parametrize("name", ["example", "ha", "pull-through"])
def test_the_examples_are_good(name: str) -> None:
    """Every shipped configuration passes check-config."""
    load_settings(str(Path(__file__).parent.parent.parent / "config" / f"{name}.yaml"), {})


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_the_lock_pins_everything_and_names_no_index(lock: str) -> None:
    """Every dependency of pyproject.toml is in the lock, every requirement has hashes, no address is in it."""
    root = Path(__file__).parent.parent.parent
    text = (root / lock).read_text()
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + (project["optional-dependencies"]["dev"] if "dev" in lock else [])
    entries = re.findall(r"^([a-z0-9-]+)==\S+((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.MULTILINE)
    assert len(entries) == len(re.findall(r"^[a-z]", text, re.MULTILINE))
    assert {re.split(r"[\[>=<]", name)[0] for name in wanted} <= {name for name, _ in entries}
    assert "://" not in text
