"""A small deployer: takes the events of registry-proxy, and has the image of one tag run with Docker.

It checks the signature of each event, pulls the image by its digest, starts it in place of the one before, and reports
the deployment by its answer. It needs nothing but Python and the docker command, which is logged in to the registry.
"""

import argparse
import base64
import hashlib
import hmac
import json
import subprocess
import threading
import time
from email.message import Message
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BODY_MAX_BYTES = 1024 * 1024
OLD_SECONDS = 300.0


def is_signed(secret: str, headers: Message, body: bytes, now: float) -> bool:
    """Tell whether an event was signed with the secret, and lately (https://www.standardwebhooks.com)."""
    message_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not timestamp.isdecimal() or abs(now - int(timestamp)) > OLD_SECONDS:
        return False
    key = base64.b64decode(secret[6:] + "==") if secret.startswith("whsec_") else secret.encode()
    digest = hmac.digest(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256)
    expected = f"v1,{base64.b64encode(digest).decode()}"
    return any(hmac.compare_digest(expected, each) for each in headers.get("webhook-signature", "").split())


class Deployer:
    """Runs one container. An event may come twice: a digest that runs already is left alone.

    Args:
        container: its name.
        options: of ``docker run``.
    """

    def __init__(self, container: str, options: list[str]) -> None:
        self._container = container
        self._options = options
        self._running = ""
        self._lock = threading.Lock()

    def deploy(self, image: str) -> bool:
        """Have an image run, named by its digest; tell whether it does. The one before comes back if it does not."""
        with self._lock:
            before = self._running
            if image == before:
                return True
            if not self._docker("pull", "-q", image):
                return False
            self._docker("rm", "-f", self._container)
            if self._start(image):
                return True
            if before:
                self._docker("rm", "-f", self._container)
                self._start(before)
            return False

    def _start(self, image: str) -> bool:
        is_started = self._docker("run", "-d", "--name", self._container, *self._options, image)
        self._running = image if is_started else ""
        return is_started

    def _docker(self, *arguments: str) -> bool:
        print("$ docker", *arguments, flush=True)
        return subprocess.run(["docker", *arguments], check=False).returncode == 0


class Handler(BaseHTTPRequestHandler):
    """Answers events."""

    def __init__(self, settings: argparse.Namespace, deployer: Deployer, *arguments: Any) -> None:
        self._settings = settings
        self._deployer = deployer
        super().__init__(*arguments)

    def do_POST(self) -> None:
        """Take an event; 401 for one that is not signed, 204 for one that is about something else."""
        length = self.headers.get("Content-Length", "")
        body = self.rfile.read(min(int(length), BODY_MAX_BYTES)) if length.isdecimal() else b""
        secret = self._settings.secret_file.read_text(encoding="utf-8").strip()
        if not is_signed(secret, self.headers, body, time.time()):
            self.send_error(401)
            return
        event = json.loads(body)
        data = event["data"]
        if event["type"] not in self._settings.type or data.get("tag") != self._settings.tag or data.get("test"):
            self.send_response(204)
            self.end_headers()
            return
        is_running = self._deployer.deploy(f"{data['registry']}/{data['repository']}@{data['digest']}")
        outcome = "succeeded" if is_running else "failed"
        report = {"deployment": {"environment": self._settings.environment, "outcome": outcome}}
        answer = json.dumps(report).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser(description="Have the image of one tag run with Docker.")
    parser.add_argument("--port", type=int, required=True, help="listen on this port of 127.0.0.1")
    parser.add_argument("--secret-file", type=Path, required=True, help="file with the secret of the subscription")
    parser.add_argument("--environment", default="production", help="name of the environment in reports")
    parser.add_argument("--tag", required=True, help="the tag to follow")
    parser.add_argument("--type", action="append", default=["registry-proxy.image.push"], help="type of events to obey")
    parser.add_argument("--container", default="app", help="name of the container")
    parser.add_argument("options", nargs="*", help="options of docker run, after --")
    settings = parser.parse_args()
    deployer = Deployer(settings.container, settings.options)
    ThreadingHTTPServer(("127.0.0.1", settings.port), partial(Handler, settings, deployer)).serve_forever()


if __name__ == "__main__":
    main()
