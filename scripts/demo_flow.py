"""Shows the way from a commit to a running container, and back, on this machine; leaves nothing behind.

Everything is real and separate for this demo, below one temporary directory: two registries, registry-proxy, a Docker
engine, a bare Git repository. The parts that a team would take over are in examples/flow.
"""

import glob
import io
import json
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType

from scripts.run import ROOT, start, start_registry, stop

EXAMPLES = ROOT / "examples" / "flow"
REPOSITORY = "team/app"
BRANCH = "main"
WAIT_SECONDS = 90.0
BUSYBOX = "/bin/busybox"
_KEY = Path("/etc/docker/key.json")
_CGROUPS = "/sys/fs/cgroup/**/docker"

CONFIG = """
listen: 127.0.0.1:{proxy}
admin_listen: 127.0.0.1:{admin}
store: sqlite:///{root}/store.db
cache: {{path: {root}/cache, max_size: 1GiB, min_free: 0}}
auth: {{signing_key_file: {root}/token-key.pem}}
upstreams:
  main:
    replicas:
      - {{url: "http://127.0.0.1:{first}"}}
      - {{url: "http://127.0.0.1:{second}"}}
routes: [{{prefix: "", upstream: main}}]
events: {{allowed_hosts: [127.0.0.1]}}
"""


def free_ports(count: int) -> list[int]:
    """Return ports of 127.0.0.1 that nobody listens on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def tell(text: str) -> None:
    """Print a step of the story."""
    print(f"\n== {text}", flush=True)


def wait(condition: Callable[[], bool], what: str) -> None:
    """Return when a condition is true. Ends the demo when it does not become true."""
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"waited {WAIT_SECONDS:g} s in vain for: {what}")
        time.sleep(0.1)


class Demo:
    """The parts of the demo; its methods are the steps.

    Args:
        root: holds all files of the demo.
        started: ends all started programs.
    """

    def __init__(self, root: Path, started: ExitStack) -> None:
        self.root = root
        self._started = started
        names = ("first", "second", "proxy", "admin", "deployer", "app")
        self._ports = dict(zip(names, free_ports(len(names)), strict=True))
        self._address = f"127.0.0.1:{self._ports['proxy']}"
        self.image = f"{self._address}/{REPOSITORY}"
        # A proxy for HTTP, or the settings of another service, must not reach into the demo.
        kept = {name: text for name, text in os.environ.items() if not name.upper().endswith("_PROXY")}
        self._environment = {name: text for name, text in kept.items() if not name.startswith(("REGISTRY_", "GIT_"))}
        self._environment |= {
            "REGISTRY_PROXY_ADMIN_URL": f"http://127.0.0.1:{self._ports['admin']}",
            "REGISTRY_PROXY_ADMIN_USER": "admin",
            "REGISTRY_PROXY_ADMIN_PASSWORD": secrets.token_urlsafe(16),
            "DOCKER_HOST": f"unix://{root}/docker.sock",
            "DOCKER_BUILDKIT": "0",
            "GIT_CONFIG_GLOBAL": os.devnull,
            "IMAGE": self.image,
            **{f"GIT_{who}_NAME": "Ann" for who in ("AUTHOR", "COMMITTER")},
            **{f"GIT_{who}_EMAIL": "ann@example.com" for who in ("AUTHOR", "COMMITTER")},
        }

    def run(self, *command: str, quietly: bool = False, given: bytes = b"", home: str = "", where: str = "") -> str:
        """Run a program and return its output; it and its output are printed. Ends the demo when it fails.

        Args:
            command: the program and its arguments.
            quietly: print nothing.
            given: standard input.
            home: of docker's logins.
            where: the directory below the root.
        """
        if not quietly:
            print("$", shlex.join(command), flush=True)
        program = [sys.executable, "-m", "registry_proxy"] if command[0] == "registry-proxy" else [command[0]]
        done = subprocess.run(
            [*program, *command[1:]],
            input=given,
            capture_output=True,
            env={**self._environment, "DOCKER_CONFIG": str(self.root / (home or "docker"))},
            cwd=self.root / where if where else ROOT,
            check=False,
        )
        output, notes = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if done.returncode != 0:
            sys.exit(f"`{' '.join(command)}` ended with {done.returncode}:\n{output}{notes}")
        if not quietly:
            print("".join(f"  {line}\n" for line in (output + notes).splitlines()), end="", flush=True)
        return output

    def _start(self, name: str, command: Sequence[str], home: str = "docker") -> "subprocess.Popen[str]":
        environment = {**self._environment, "DOCKER_CONFIG": str(self.root / home)}
        with (self.root / f"{name}.log").open("w", encoding="utf-8") as log:
            process = start(command, stdout=log, stderr=log, env=environment)
        self._started.callback(stop, process)
        return process

    def _log(self, name: str) -> str:
        return (self.root / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def _wait_for(self, name: str, process: "subprocess.Popen[str]", condition: Callable[[], bool]) -> None:
        wait(lambda: condition() or process.poll() is not None, f"{name} is ready")
        if process.poll() is not None:
            sys.exit(f"{name} does not start:\n{self._log(name)[-2000:]}")

    def start_registries(self) -> None:
        """Start two registries, and the proxy before them."""
        for number, name in enumerate(("first", "second"), 1):
            registry = start_registry(number, self._ports[name], self.root / name)
            self._started.callback(stop, registry.process)
        config = self.root / "config.yaml"
        config.write_text(CONFIG.format(root=self.root, **self._ports), encoding="utf-8")
        proxy = self._start("proxy", [sys.executable, "-m", "registry_proxy", "serve", "--config", str(config)])
        self._wait_for("proxy", proxy, lambda: "is ready" in self._log("proxy"))
        print(f"registry-proxy: http://{self._address}")

    def start_docker(self) -> None:
        """Start an engine, and give it a base image, without any network."""
        # Its mounts end with it: they are in a namespace of their own.
        command = ["unshare", "--mount", "--propagation", "private", "dockerd", "--iptables=false", "--bridge=none"]
        command += ["-H", self._environment["DOCKER_HOST"], "--pidfile", str(self.root / "docker.pid")]
        command += ["--data-root", str(self.root / "data"), "--exec-root", str(self.root / "exec")]
        ready = ["docker", "version"]
        engine = self._start("dockerd", command)
        self._wait_for(
            "dockerd",
            engine,
            lambda: subprocess.run(ready, env=self._environment, capture_output=True, check=False).returncode == 0,
        )
        self._started.callback(self._remove_containers)
        self.run("docker", "import", "-", "base:1", quietly=True, given=base_image())
        print("Docker engine: of the demo's own, with the image base:1, which is busybox")

    def _remove_containers(self) -> None:
        self.run("sh", "-c", "docker ps -aq | xargs -r docker rm -f", quietly=True)

    def make_accounts(self) -> None:
        """Make a robot that builds, and one that deploys and may only pull."""
        for robot, actions in (("builder", "pull,push"), ("deployer", "pull")):
            self.run("registry-proxy", "robot", "add", robot)
            self.run("registry-proxy", "grant", "add", f"robot:{robot}", "team/**", actions)
            secret = self.run("registry-proxy", "robot", "secret", "add", robot, quietly=True).strip()
            login = ("docker", "login", "-u", f"robot${robot}", "--password-stdin", self._address)
            self.run(*login, home=robot, quietly=True, given=secret.encode())

    def start_deployer(self) -> None:
        """Start the deployer, and subscribe it to the pushes."""
        secret = secrets.token_urlsafe(32)
        file = self.root / "webhook-secret"
        file.write_text(secret, encoding="utf-8")
        url = f"http://127.0.0.1:{self._ports['deployer']}/"
        command = [sys.executable, str(EXAMPLES / "deployer.py"), "--port", str(self._ports["deployer"])]
        command += ["--secret-file", str(file), "--environment", "production", "--tag", BRANCH]
        command += ["--", "--network", "host", "--env", f"PORT={self._ports['app']}"]
        deployer = self._start("deployer", command, home="deployer")
        self._wait_for("deployer", deployer, lambda: is_listening(self._ports["deployer"]))
        options = ("--event", "push", "--repository", "team/**", "--secret-file", str(file))
        self.run("registry-proxy", "subscription", "add", "deployer", url, *options)

    def make_git(self) -> None:
        """Make a bare repository with the hook, and a clone of it."""
        self.run("git", "init", "-q", "--bare", "-b", BRANCH, str(self.root / "app.git"))
        shutil.copy(EXAMPLES / "post-receive", self.root / "app.git" / "hooks" / "post-receive")
        self.run("git", "clone", "-q", str(self.root / "app.git"), str(self.root / "app"))

    def push_version(self, version: int) -> str:
        """Commit a version and push it, as a developer does; return its commit."""
        shutil.copytree(EXAMPLES / "app", self.root / "app", dirs_exist_ok=True)
        (self.root / "app" / "index.html").write_text(f"version {version}\n", encoding="utf-8")
        self.run("git", "add", "--all", where="app")
        self.run("git", "commit", "-q", "-m", f"Version {version}", where="app")
        self.run("git", "push", "-q", "origin", f"HEAD:{BRANCH}", where="app", home="builder")
        return self.run("git", "rev-parse", "HEAD", where="app", quietly=True).strip()

    def see(self, version: int, commit: str) -> None:
        """Wait until the app answers with a version, and its commit is on record as running."""
        url = f"http://127.0.0.1:{self._ports['app']}/"
        wait(lambda: fetch(url) == f"version {version}\n", f"the app is version {version}")
        wait(lambda: self._running_commit() == commit, f"the receipt of version {version}")
        print(f"$ curl {url}\n  version {version}", flush=True)
        self.run("registry-proxy", "deployment", "list")

    def _running_commit(self) -> str:
        output = self.run("registry-proxy", "deployment", "list", "--json", quietly=True)
        return next((str(each["revision"]) for each in json.loads(output) if each["runs"]), "")

    def go_back(self) -> None:
        """Move the tag back to what it was before."""
        self.run("registry-proxy", "tag", "rollback", f"{REPOSITORY}:{BRANCH}", "--reason", "version 2 is bad")


def is_listening(port: int) -> bool:
    """Tell whether a port of 127.0.0.1 accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def fetch(url: str) -> str:
    """Return the answer of a URL; "" where there is none."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


def base_image() -> bytes:
    """Return the files of the smallest image with a shell and a web server."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(BUSYBOX, "bin/busybox")
        link = tarfile.TarInfo("bin/sh")
        link.type, link.linkname = tarfile.SYMTYPE, "busybox"
        tar.addfile(link)
    return archive.getvalue()


@contextmanager
def nothing_left() -> Iterator[Path]:
    """Give a directory, and remove it and the other files of a Docker engine at the end of the with block."""
    had_key, had_groups = _KEY.exists(), set(glob.glob(_CGROUPS, recursive=True))
    root = Path(tempfile.mkdtemp(prefix="registry-proxy-demo-"))
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)
        if not had_key:
            _KEY.unlink(missing_ok=True)
        for group in set(glob.glob(_CGROUPS, recursive=True)) - had_groups:
            with suppress(OSError):
                os.rmdir(group)


def leave(_number: int, _frame: FrameType | None) -> None:
    """End the demo at the first signal; further ones must not disturb the removal of its parts."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(1)


def main() -> int:
    """Run the demo; return its exit status."""
    if os.geteuid() != 0:
        sys.exit("a Docker engine needs root: sudo make demo-flow")
    if (
        missing := [name for name in ("docker", "dockerd", "git", "docker-registry") if shutil.which(name) is None]
    ) or (missing := [] if Path(BUSYBOX).exists() else [BUSYBOX]):
        sys.exit(f"these programs are missing, and `make demo-flow` installs them: {', '.join(missing)}")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    with nothing_left() as root, ExitStack() as started:
        demo = Demo(root, started)
        tell("Two registries, registry-proxy before them, and a Docker engine to build and to run")
        demo.start_registries()
        demo.start_docker()
        tell("Two robots: one builds and pushes, the other deploys and may only pull")
        demo.make_accounts()
        tell("A deployer that receives an event for each push: examples/flow/deployer.py")
        demo.start_deployer()
        tell("A Git repository that builds what is pushed to it: examples/flow/post-receive")
        demo.make_git()
        tell("A developer pushes version 1: hook, build, push, event, deployment")
        commit = demo.push_version(1)
        demo.see(1, commit)
        tell("A developer pushes version 2")
        demo.see(2, demo.push_version(2))
        tell("Version 2 is bad: one command takes the tag back, and the deployer follows")
        demo.go_back()
        demo.see(1, commit)
        tell("The history of the tag, all that was deployed, and all that was delivered")
        demo.run("registry-proxy", "tag", "history", f"{REPOSITORY}:{BRANCH}")
        demo.run("registry-proxy", "deployment", "list", "--history")
        demo.run("registry-proxy", "event", "list")
        tell("Done. Everything is stopped and removed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
