"""Third-party registries, each started as its authors start it, with deletes switched on."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.acceptance.programs import find_program
from tests.support.servers import Server, docker_registry, free_port


def distribution(root: Path) -> Server:
    """Describe a CNCF distribution 3."""
    server = docker_registry(root)
    server.arguments = [_path("distribution"), *server.arguments[1:]]
    server.environment = {"OTEL_TRACES_EXPORTER": "none"}  # else it dials a collector
    return server


def zot(root: Path) -> Server:
    """Describe a zot that stores equal blobs of all repositories once, which is its default."""
    root.mkdir(parents=True)
    port = free_port()
    settings = {
        "distSpecVersion": "1.1.1",
        "storage": {"rootDirectory": str(root / "data"), "dedupe": True},
        "http": {"address": "127.0.0.1", "port": str(port)},
        "log": {"level": "warn"},
    }
    config = root / "config.json"
    config.write_text(json.dumps(settings))
    return Server([_path("zot"), "serve", str(config)], port, root / "log")


def olareg(root: Path) -> Server:
    """Describe an olareg, whose errors are JSON with the media type of plain text."""
    root.mkdir(parents=True)
    port = free_port()
    options = ["--addr", "127.0.0.1", "--port", str(port), "--dir", str(root / "data")]
    deletes = ["--api-delete", "--api-blob-delete"]
    return Server([_path("olareg"), "serve", *options, *deletes], port, root / "log")


def crane_registry(root: Path) -> Server:
    """Describe the registry that is part of crane; its manifests are in memory."""
    (root / "data").mkdir(parents=True)
    port = free_port()
    options = ["--address", f"127.0.0.1:{port}", "--disk", str(root / "data")]
    return Server([_path("crane"), "registry", "serve", *options], port, root / "log")


def _path(name: str) -> str:
    return find_program(name) or name


DESCRIBE: Mapping[str, Callable[[Path], Server]] = {
    "distribution": distribution,
    "zot": zot,
    "olareg": olareg,
    "crane": crane_registry,
}
"""One description per registry program."""
