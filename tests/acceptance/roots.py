"""Small roots of Debian for containers, of the files of packages on this machine: no other one can be had offline."""

import os
import re
import subprocess
import tarfile
from pathlib import Path

IMAGE, SMALL_IMAGE = "registry-proxy:test", "registry-proxy:small"
"""The image of the service on a minimal Debian, and on a root without a shell."""

MINIMAL = ("apt", "ca-certificates", "python3-venv")
"""Beside the required packages: a minimal Debian with Python and its venv module."""

WITHOUT_SHELL = (
    *("base-files", "libbz2-1.0", "libc6", "libexpat1", "libffi8", "libgcc-s1", "liblzma5", "libpython3.11-minimal"),
    *("libpython3.11-stdlib", "libsqlite3-0", "libssl3", "libstdc++6", "libuuid1", "media-types", "netbase"),
    *("python3-minimal", "python3.11-minimal", "tzdata", "zlib1g"),
)
"""Python of Debian 12 and its libraries alone."""

_MADE_AT_INSTALLATION = ("/etc/group", "/etc/passwd", "/etc/ssl/certs/ca-certificates.crt")
_LEFT_OUT = re.compile(r"/usr/share/(doc|info|lintian|locale|man)/.|/\.?$")


def write_root(target: Path, packages: tuple[str, ...], *, is_complete: bool) -> Path:
    """Write the files of packages as an archive, without documents; return it.

    Args:
        target: the archive.
        packages: of this machine.
        is_complete: with all required packages, and everything that any of them depends on.
    """
    named = _with_dependencies(packages) if is_complete else set(packages)
    listed = subprocess.run(["dpkg-query", "-L", *sorted(named)], capture_output=True, text=True, check=True).stdout
    paths = {_real(path) for path in listed.splitlines() if path.startswith("/") and not _LEFT_OUT.match(path)}
    paths |= {"/bin", "/lib", "/lib64", "/sbin", *_MADE_AT_INSTALLATION}  # links to /usr
    paths |= {f"/usr/bin/{name}" for name in ("sh", "python3") if is_complete or name != "sh"}
    with tarfile.open(target, "w") as tar:
        for path in sorted(paths):
            if os.path.lexists(path):
                tar.add(path, path.lstrip("/"), recursive=False)
    return target


def _real(path: str) -> str:
    """Return a path without links to directories: packages name files in /bin, which is a link to /usr/bin."""
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def _with_dependencies(packages: tuple[str, ...]) -> set[str]:
    """Return the required packages, the given ones, and all that they depend on, as installed here."""
    fields = "${Package}\t${db:Status-Status}\t${Priority}\t${Pre-Depends}, ${Depends}\t${Provides}\n"
    listed = subprocess.run(["dpkg-query", "-W", "-f", fields], capture_output=True, text=True, check=True).stdout
    needs: dict[str, list[list[str]]] = {}
    providers: dict[str, str] = {}
    found, open_names = set[str](), list(packages)
    for name, status, priority, depends, provides in (line.split("\t") for line in listed.splitlines()):
        if status != "installed":
            continue
        needs[name] = [[_name(each) for each in choice.split("|")] for choice in depends.split(",") if choice.strip()]
        providers |= {_name(each): name for each in provides.split(",") if each.strip()} | {name: name}
        open_names += [name] if priority == "required" else []
    while open_names:
        name = providers.get(open_names.pop(), "")
        if name and name not in found:
            found.add(name)
            open_names += [next((each for each in choice if each in providers), "") for choice in needs[name]]
    return found


def _name(dependency: str) -> str:
    return re.split(r"[ (:]", dependency.strip())[0]
