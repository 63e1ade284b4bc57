"""The unit of systemd: hardened, accepted by systemd's own tools, and no hindrance to the service."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from registry_proxy.config.load import load_settings
from tests.support.product import Proxy, make_image, proxy_server, random_bytes, tar_of
from tests.support.servers import docker_registry, running, wait_until

pytestmark = pytest.mark.acceptance("systemd-analyze")
_PACKAGING = Path(__file__).parent.parent.parent / "packaging" / "systemd"
_UNIT = _PACKAGING / "registry-proxy.service"
_EXPOSURE = "25"  # tenths of a point

_NO_NEW_CODE = """
import ctypes, os, sys
assert ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) == 0  # PR_SET_MDWE, as MemoryDenyWriteExecute=
os.execvp(sys.argv[1], sys.argv[1:])
"""


def run(*command: str) -> str:
    """Run a program; fail with its output when it fails, else return that."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def values(key: str) -> list[str]:
    """Return what the unit says for a key, in its order."""
    pairs = [line.partition("=") for line in _UNIT.read_text().splitlines()]
    return [value for name, _, value in pairs if name == key]


def system_calls(name: str) -> set[str]:
    """Return the members of one of systemd's sets of system calls, also those of the sets in it."""
    lines = [line.strip() for line in run("systemd-analyze", "syscall-filter", name).splitlines()[1:]]
    members = [line for line in lines if line and not line.startswith("#")]
    nested = {call for member in members if member.startswith("@") for call in system_calls(member)}
    return {member for member in members if not member.startswith("@")} | nested


def test_the_unit_is_hardened() -> None:
    """The exposure of the unit, as systemd rates it, is 2.5 or less."""
    run("systemd-analyze", "security", "--offline=true", f"--threshold={_EXPOSURE}", str(_UNIT))


def test_systemd_finds_no_fault_in_the_unit(tmp_path: Path) -> None:
    """The unit is read without a warning where its program and its user are there."""
    unit = tmp_path / _UNIT.name
    unit.write_text(_UNIT.read_text().replace(values("ExecStart")[0].split()[0], "/bin/true"))
    assert run("systemd-analyze", "verify", "--man=no", str(unit)) == ""


@pytest.mark.acceptance("systemd-sysusers", "systemd-tmpfiles")
def test_the_user_and_the_directories_are_made(tmp_path: Path) -> None:
    """The user and the directories of the unit are made by systemd, with the modes that the unit asks for."""
    (tmp_path / "etc").mkdir()
    run("systemd-sysusers", f"--root={tmp_path}", str(_PACKAGING / "sysusers.conf"))
    users = [line.split(":") for line in (tmp_path / "etc" / "passwd").read_text().splitlines()]
    [entry] = [user for user in users if user[0] == values("User")[0]]
    assert entry[5:] == ["/var/lib/registry-proxy", "/usr/sbin/nologin"]
    run("systemd-tmpfiles", "--create", f"--root={tmp_path}", str(_PACKAGING / "tmpfiles.conf"))
    for key, parent in (("StateDirectory", "lib"), ("CacheDirectory", "cache"), ("LogsDirectory", "log")):
        made = (tmp_path / "var" / parent / values(key)[0]).stat()
        assert (f"{made.st_mode & 0o7777:04o}", made.st_uid) == (values(f"{key}Mode")[0], int(entry[2])), key
    assert (tmp_path / "etc" / "registry-proxy").stat().st_mode & 0o7777 == 0o750


def test_the_configuration_stays_in_the_directories_of_the_unit() -> None:
    """Each path that a node writes to lies below a directory that the unit makes writable, `<cache.path>.audit` too."""
    settings = load_settings(str(_PACKAGING / "config.yaml"), {})
    cache, state, logs = (
        Path("/var", parent, values(key)[0])
        for key, parent in (("CacheDirectory", "cache"), ("StateDirectory", "lib"), ("LogsDirectory", "log"))
    )
    for path in (settings.cache.path, f"{settings.cache.path}.audit"):
        assert Path(path).is_relative_to(cache)
        assert Path(path) != cache
    assert Path(settings.sqlite_path or "").is_relative_to(state)
    assert Path(settings.auth.signing_key_file).is_relative_to(state)
    assert Path(settings.audit_path).is_relative_to(logs)
    assert settings.drain.timeout_seconds < int(values("TimeoutStopSec")[0].removesuffix("s"))
    assert int(values("LimitNOFILE")[0]) >= 65536
    assert values("ExecStart")[0].endswith(" serve --config /etc/registry-proxy/config.yaml")


def test_a_reload_by_systemd_253_is_the_signal_of_the_service() -> None:
    """The drop-in for notify-reload takes the place of ExecReload, and its signal is SIGHUP."""
    lines = (_PACKAGING / "notify-reload.conf").read_text().splitlines()
    assert lines[lines.index("[Service]") + 1 :] == ["Type=notify-reload", "ExecReload=", "ReloadSignal=SIGHUP"]
    assert values("ExecReload") == ["/bin/kill -HUP $MAINPID"]


@pytest.fixture
def traced(tmp_path: Path) -> Iterator[Proxy]:
    """Start the service as the unit does: without capabilities and new executable memory; strace counts its calls."""
    registry = docker_registry(tmp_path / "registry")
    proxy = proxy_server(tmp_path / "proxy", [registry], {"workers": 2})
    traced = ["strace", "-f", "-c", "-o", str(tmp_path / "calls"), *proxy.arguments]
    proxy.arguments = [sys.executable, "-c", _NO_NEW_CODE, "setpriv", "--no-new-privs", "--bounding-set=-all", *traced]
    with running(registry), running(proxy):
        assert isinstance(proxy, Proxy)
        yield proxy


@pytest.mark.acceptance("strace")
def test_the_service_makes_no_call_that_the_unit_refuses(traced: Proxy, tmp_path: Path) -> None:
    """Start, login, push, pull, reload and stop use only system calls of the unit's filter, and no writable code."""
    image = make_image(tar_of(random_bytes(300_000)))
    user = traced.add_user("ann", pull_push_delete=["**"])
    user.push("team/app", "1", image)
    assert user.pull("team/app", "1") == image
    assert traced.command("cache", "purge", "--all", "--yes").exit_code == 0
    assert user.pull("team/app", "1") == image
    assert traced.command("reload").exit_code == 0
    [service, *_] = psutil.Process(traced.pid).children()
    service.send_signal(signal.SIGTERM)
    wait_until(lambda: traced.has_ended, "the service has ended")

    lines = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    made = {words[-1] for words in lines if words and words[0][0].isdigit() and words[-1] != "total"}
    assert values("SystemCallFilter") == ["@system-service", "~@privileged"]
    assert {"accept4", "sendfile", "fsync"} <= made
    as_root = {"fchown"}  # of SQLite, by no other user
    assert made - as_root - (system_calls("@system-service") - system_calls("@privileged")) == set()
