"""Third-party command-line clients, called as a person calls them: each pushes, pulls and copies one image."""

import base64
import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.acceptance.layout import TAG
from tests.acceptance.programs import find_program

PUSH = {
    "crane": ("push", "{layout}", "{name}"),
    "oras": ("cp", "--from-oci-layout", "--to-plain-http", "{layout}:{tag}", "{name}"),
    "regctl": ("image", "copy", "ocidir://{layout}:{tag}", "{name}"),
    "skopeo": ("copy", "--preserve-digests", "--dest-tls-verify=false", "oci:{layout}:{tag}", "docker://{name}"),
}
PULL = {
    "crane": ("pull", "--format=oci", "{name}", "{layout}"),
    "oras": ("cp", "--from-plain-http", "{name}", "--to-oci-layout", "{layout}:{tag}"),
    "regctl": ("image", "copy", "{name}", "ocidir://{layout}:{tag}"),
    "skopeo": ("copy", "--preserve-digests", "--src-tls-verify=false", "docker://{name}", "oci:{layout}:{tag}"),
}
COPY = {
    "crane": ("copy", "{name}", "{target}"),
    "oras": ("cp", "--from-plain-http", "--to-plain-http", "{name}", "{target}"),
    "regctl": ("image", "copy", "{name}", "{target}"),
    "skopeo": (
        "copy",
        "--preserve-digests",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        "docker://{name}",
        "docker://{target}",
    ),
}


class ClientError(AssertionError):
    """A command that was expected to succeed has failed; the text is what it printed."""


@dataclass
class Client:
    """A client that is logged in at one registry; ``home`` keeps its logins and state and is its working directory."""

    program: str
    home: Path
    host: str

    def log_in(self, user: str, password: str) -> None:
        """Write the login file of ``docker login`` with a password; all clients read it."""
        folder = self.home / ".docker"
        folder.mkdir(parents=True, exist_ok=True)
        secret = base64.b64encode(f"{user}:{password}".encode()).decode()
        (folder / "config.json").write_text(json.dumps({"auths": {self.host: {"auth": secret}}}))
        if self.program == "regctl":  # the only client that asks for this beforehand, and for good
            self.run("registry", "set", "--skip-check", "--tls", "disabled", self.host)

    def environment(self) -> Mapping[str, str]:
        """Return where a client looks for its logins, in each client's words."""
        folder = self.home / ".docker"
        return {
            "HOME": str(self.home),
            "DOCKER_CONFIG": str(folder),
            "REGISTRY_AUTH_FILE": str(folder / "config.json"),
            "XDG_RUNTIME_DIR": str(self.home),
            "COSIGN_PASSWORD": "password of a key",
        }

    def attempt(self, *arguments: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
        """Run the client and return its exit status and all that it printed."""
        return subprocess.run(
            [find_program(self.program) or self.program, *arguments],
            input=stdin or "",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **self.environment()},
            cwd=self.home,
            timeout=90,
            check=False,
        )

    def run(self, *arguments: str, stdin: str | None = None) -> str:
        """Run the client and return what it printed; raise ClientError when it fails."""
        done = self.attempt(*arguments, stdin=stdin)
        if done.returncode != 0:
            raise ClientError(f"{self.program} {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def name(self, name: str) -> str:
        """Return a repository with its tag or digest as a client writes it, with the registry's address."""
        return f"{self.host}/{name}"

    def push(self, layout: Path, name: str) -> None:
        """Push the image of a layout."""
        self._run(PUSH, layout=layout, name=name)

    def pull(self, name: str, layout: Path) -> None:
        """Pull an image into a layout."""
        self._run(PULL, layout=layout, name=name)

    def copy(self, name: str, target: str) -> None:
        """Copy an image to another repository or tag of the same registry."""
        self._run(COPY, name=name, target=self.name(target))

    def _run(
        self, commands: Mapping[str, tuple[str, ...]], *, name: str, layout: Path = Path(), target: str = ""
    ) -> None:
        values = {"layout": layout, "name": self.name(name), "tag": TAG, "target": target}
        self.run(*(word.format(**values) for word in commands[self.program]))
