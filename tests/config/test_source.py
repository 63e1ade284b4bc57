"""Reading YAML and environment: places, duplicates, garbage."""

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_proxy.config.load import SettingsError, load_settings, validate
from registry_proxy.config.source import Fault, Source, describe, format_path, overlay_environment, read_yaml

SMALLEST = b'upstreams: {main: {replicas: [{url: "http://127.0.0.1:5001"}]}}\nroutes: [{prefix: "", upstream: main}]\n'


def faults_of(text: bytes) -> list[Fault]:
    """Return the faults of a YAML text, read as a configuration."""
    source = read_yaml("c.yaml", text)
    if source.faults:
        return source.faults
    try:
        validate(source)
    except SettingsError as error:
        return error.faults
    return []


def test_unknown_keys_below_optional_sections_name_the_keys_of_that_section() -> None:
    """Sections that may be left out have keys of their own, and a mistyped one is compared with these."""
    text = b"tls: {zzz: 1}\nadmin_tls: {cert_fil: x}\nauth: {ldap: {zzz: 1}}"
    faults = {fault.key: fault.message for fault in faults_of(text) if "unknown key" in fault.message}
    assert "cert_file, " in faults["tls.zzz"]
    assert faults["admin_tls.cert_fil"] == "unknown key; did you mean cert_file?"
    assert "bind_dn, " in faults["auth.ldap.zzz"]


def test_all_faults_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    """Each fault has file and line, key, the expected form and the value found."""
    text = [
        b"workers: two",
        b"worker: 2",
        b"cache:",
        b"  max_size: 10Gigs",
        b"upstreams:",
        b"  main:",
        b"    write_quorum: 4",
        b"    replicas:",
        b'      - {url: "http://127.0.0.1:5001"}',
        b"      - name: second",
        b"        url: nowhere",
        b"routes:",
        b'  - {prefix: "", upstream: mian}',
    ]
    file = tmp_path / "c.yaml"
    file.write_bytes(b"\n".join(text))
    with pytest.raises(SettingsError) as refusal:
        load_settings(str(file), {"REGISTRY_PROXY__LISTEN": "x"})
    url = "http:// or https://, a host and, if need be, a port, such as http://127.0.0.1:5001"
    address = "an IP address and a port, such as 127.0.0.1:5000 or 0.0.0.0:5000"
    lines = [line.removeprefix(f"{file}:") for line in str(refusal.value).splitlines()]
    assert lines == [
        '1: workers: expected a whole number, found "two"',
        "2: worker: unknown key; did you mean workers?",
        '4: cache.max_size: expected a size such as 10GiB, 500MB or a number of bytes, found "10Gigs"',
        '7: upstreams.main.write_quorum: expected 1 to 2, the number of replicas, or "majority", found 4',
        f'11: upstreams.main.replicas[1].url: expected {url}, found "nowhere"',
        '13: routes[0].upstream: expected an upstream (main), found "mian"',
        f'REGISTRY_PROXY__LISTEN: listen: expected {address}, found "x"',
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"workers: 1\nworkers: 2\n", "c.yaml:2: workers: the key is there twice, first in line 1"),
        (b"cache:\n  path: a\n  path: b\n", "c.yaml:3: cache.path: the key is there twice, first in line 2"),
        (b"a: [1\n", "c.yaml:2: not YAML: expected ',' or ']'"),
        (b"a: 1\n---\nb: 2\n", "c.yaml:2: not YAML: but found another document"),
        (b"a: *nothing\n", "c.yaml:1: not YAML: found undefined alias"),
        (b"- 1\n", "c.yaml:1: expected a map of keys, found a list"),
        (b"text\n", 'c.yaml:1: expected a map of keys, found "text"'),
        (b"\xff\xfe\xfa", "c.yaml: not YAML:"),
        (b"a: \xc3\x28\n", "c.yaml: not YAML:"),
        (b"a: \x07\n", "c.yaml: not YAML:"),
        (b"? [1]\n: 2\n", "c.yaml:1: expected a plain key"),
        (b"workers: !!python/object/apply:os.system [exit]\n", "c.yaml:1: workers: expected a plain value"),
        (b"workers: !mine 1\n", "c.yaml:1: workers: expected a plain value, found the tag !mine"),
        (b"cache: &a {path: *a}\n", "an alias that contains itself"),
        (b"a: " + b"[" * 5000, "nested too deeply"),
        (b"#" * (1 << 20) + b"#", "expected at most 1 MiB"),
    ],
)
def test_text_that_is_no_configuration(text: bytes, expected: str) -> None:
    """Every kind of broken text is one fault with its place."""
    assert expected in "\n".join(map(str, faults_of(text)))


def test_aliases_of_aliases_end_early() -> None:
    """A few lines that stand for billions of values are refused, quickly."""
    lines = [b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]".encode() for n in range(1, 12)]
    assert "too many values" in str(faults_of(b"\n".join(lines))[0])


def test_an_alias_may_be_used_twice() -> None:
    """Anchors are ordinary YAML."""
    text = b"x: &t {connect: 1s}\n" + SMALLEST.replace(b"{replicas", b"{timeouts: *t, replicas")
    assert [fault.key for fault in faults_of(text)] == ["x"]


@pytest.mark.parametrize("text", [b"", b"# nothing\n", b"---\n", b"null\n", b"{}"])
def test_an_empty_file_misses_two_keys(text: bytes) -> None:
    """The faults name the two required keys."""
    assert [fault.key for fault in faults_of(text)] == ["routes", "upstreams"]


@pytest.mark.parametrize("value", ["0b_", "1" * 5000, "2020-13-45", "08", "1:30", ".inf", ".nan", "~", "yes", "0x"])
def test_scalars_that_yaml_reads_oddly_are_faults_not_errors(value: str) -> None:
    """YAML 1.1 reads much as numbers, dates and booleans; none of it breaks the reader."""
    assert [fault.key for fault in faults_of(f"listen: {value}\n".encode() + SMALLEST)] == ["listen"]


def test_the_environment_wins_and_names_itself() -> None:
    """Maps and lists are JSON, a deeper variable is applied after a map, an empty one is ignored."""
    source = read_yaml("c.yaml", SMALLEST + b"cache: {path: a, max_size: 1GiB}\npublic_url: https://x\n")
    environment = {
        "REGISTRY_PROXY__CACHE": '{"path": "b"}',
        "REGISTRY_PROXY__CACHE__MIN_FREE": "5",
        "REGISTRY_PROXY__UPSTREAMS__OTHER__REPLICAS": '[{"url": "http://127.0.0.1:5002"}]',
        "REGISTRY_PROXY__UPSTREAMS__OTHER__TAG_TTL": "1s",
        "REGISTRY_PROXY__ADMIN_LISTEN": "[::1]:5081",
        "REGISTRY_PROXY__PUBLIC_URL": "",
        "REGISTRY_PROXY_ADMIN_PASSWORD": "not a key",
        "REGISTRY_PROXY_ADMIN_URL": "http://127.0.0.1:5080",
    }
    overlay_environment(source, environment)
    settings = validate(source)
    assert settings.cache.path == os.path.abspath("b")
    assert (settings.cache.max_size_bytes, settings.cache.min_free_bytes) == (10 << 30, 5)
    assert settings.upstreams["other"].tag_ttl_seconds == 1
    assert str(settings.admin_listen) == "[::1]:5081"
    assert settings.public_url is None


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("WORKER", "2", "REGISTRY_PROXY__WORKER: worker: unknown key; did you mean workers?"),
        ("CACHE", "{", "REGISTRY_PROXY__CACHE: cache: expected JSON"),
        ("CACHE", "[" * 100_000, "expected JSON"),
        ("CACHE__PATH__DEEPER", "x", "REGISTRY_PROXY__CACHE__PATH__DEEPER: cache.path.deeper: "),
        ("", "x", "unknown key"),
        ("__", "x", "unknown key"),
        ("ROUTES__0__PREFIX", "x", "routes is a list, and has no keys"),
    ],
)
def test_faults_of_the_environment(name: str, value: str, expected: str) -> None:
    """A variable that fits no key is a fault under its own name."""
    source = read_yaml("c.yaml", SMALLEST + b"cache: {path: a}\n")
    overlay_environment(source, {f"REGISTRY_PROXY__{name}": value})
    with pytest.raises(SettingsError) as refusal:
        validate(source)
    assert expected in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("CACHE_MAX_SIZE", "did you mean REGISTRY_PROXY__CACHE__MAX_SIZE?"),
        ("ADMIN_LISTEN", "did you mean REGISTRY_PROXY__ADMIN_LISTEN?"),
        ("AUTH_LDAP_BIND_DN", "did you mean REGISTRY_PROXY__AUTH__LDAP__BIND_DN?"),
        ("ADMIN_URL", None),
        ("ADMIN_USER", None),
        ("ADMIN_PASSWORD", None),
        ("VERSION", None),
        ("SERVICE_HOST", None),
        ("PORT", None),
        ("STORE_PORT_6379_TCP_ADDR", None),
    ],
)
def test_a_variable_with_wrong_underscores_is_a_fault(tmp_path: Path, name: str, expected: str | None) -> None:
    """The fault names the variable that was meant; similar names of others, such as Kubernetes, are ignored."""
    file = tmp_path / "c.yaml"
    file.write_bytes(SMALLEST)
    if expected is None:
        load_settings(str(file), {f"REGISTRY_PROXY_{name}": "1"})
        return
    with pytest.raises(SettingsError) as refusal:
        load_settings(str(file), {f"REGISTRY_PROXY_{name}": "1", "REGISTRY_PROXY__WORKERS": "many"})
    faults = str(refusal.value).splitlines()
    assert f"REGISTRY_PROXY_{name}: unknown variable; {expected}" in faults
    assert len(faults) == 2, "the other fault is reported as well"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """The fault has the reason of the operating system."""
    for path, reason in ((tmp_path / "absent", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(SettingsError, match=reason):
            load_settings(str(path), {})


def test_a_fault_of_the_text_hides_no_fault_of_a_value(tmp_path: Path) -> None:
    """A repeated key and an unknown tag are reported together with bad values and unknown keys."""
    file = tmp_path / "c.yaml"
    file.write_bytes(SMALLEST + b"workers: two\nworkers: 3\nlistn: x\naudit: !mine {path: 5}\nadmin_listen: x\n")
    with pytest.raises(SettingsError) as refusal:
        load_settings(str(file), {})
    keys = sorted(fault.key for fault in refusal.value.faults)
    assert keys == ["admin_listen", "audit", "audit.path", "listn", "workers", "workers"]


def test_passwords_are_not_repeated() -> None:
    """A fault shows the value without the credentials in it."""
    assert describe("redis://user:secret@host name/0") == '"redis://***@host name/0"'
    assert (
        describe("redis+sentinel://a,b?sentinel_password=secret&x=1")
        == '"redis+sentinel://a,b?sentinel_password=***&x=1"'
    )
    texts = [
        b"store: redis://:secret@host name/0\n",
        b'store: "sqlite://:secret@x"\n',
        b"store: redis://:p@se/secret@host:6379/0\n",
        b"store: redis://:p/secret@host:6379/0\n",
        b"public_url: http://a:secret@x\n",
    ]
    for text in texts:
        faults = faults_of(text + SMALLEST)
        assert faults
        assert "secret" not in "\n".join(map(str, faults))


def test_paths_read_as_in_the_documentation() -> None:
    """Keys are joined by dots, indices stand in brackets."""
    assert format_path(("upstreams", "main", "replicas", 0, "url")) == "upstreams.main.replicas[0].url"


KEYS = st.sampled_from(
    ["listen", "cache", "path", "upstreams", "main", "replicas", "url", "routes", "prefix", "store", "x"]
)
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(KEYS, TREES, max_size=6))
def test_any_tree_is_settings_or_faults(tree: dict[str, object]) -> None:
    """Any JSON value is accepted or refused with faults, never with another exception."""
    with pytest.raises(SettingsError) as refusal:
        validate(Source("c.yaml", tree))
    assert str(refusal.value)


@given(st.binary(max_size=200) | st.text(alphabet="a:-[]{}&*!|>'\"%@`#,? \n\t01.~<=", max_size=80).map(str.encode))
def test_any_text_is_faults_at_worst(text: bytes) -> None:
    """Garbage YAML never raises anything of the YAML library."""
    assert faults_of(text)


@given(st.dictionaries(st.text(alphabet="ACHEPT_", max_size=12).map("REGISTRY_PROXY__".__add__), st.text(max_size=20)))
def test_any_environment_is_faults_at_worst(environment: dict[str, str]) -> None:
    """Garbage variables never raise anything else."""
    source = read_yaml("c.yaml", SMALLEST)
    overlay_environment(source, environment)
    with contextlib.suppress(SettingsError):
        validate(source)
