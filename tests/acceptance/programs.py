"""Paths of third-party programs, and the reason why a program cannot be used."""

import os
import shutil

from scripts.build import PROGRAMS, directory, find_failure, is_current

_BUILT = {program.name: program for program in PROGRAMS}
_ROOT_ONLY = frozenset({"buildkitd", "containerd", "dockerd"})


def find_program(name: str) -> str | None:
    """Return the path of a program: the one that ``make acceptance`` builds, else the one of this machine."""
    if name not in _BUILT:
        return shutil.which(name)
    return str(directory() / name) if is_current(directory(), _BUILT[name]) else None


def why_not(name: str) -> str | None:
    """Return the reason why a program cannot be used, or None if it can."""
    if name in _ROOT_ONLY and os.geteuid() != 0:
        return "it needs root"
    if find_program(name) is not None:
        return None
    if name not in _BUILT:
        return "Debian has it, and `make acceptance` installs it"
    return find_failure(directory(), _BUILT[name]) or "`make acceptance` builds it"
