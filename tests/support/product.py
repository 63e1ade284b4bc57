"""The whole product as a test runs it: `registry-proxy serve` as a separate process, and a client of its contract."""

import contextlib
import hashlib
import io
import json
import os
import secrets
import signal
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from typer.testing import CliRunner, Result

from registry_proxy.cli.main import app
from tests.support.copied import Copies
from tests.support.servers import Server, free_port, wait_until

ADMIN_PASSWORD = "correct horse battery"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"


def digest_of(content: bytes) -> str:
    """Return the sha256 digest of some bytes, as text."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def merge(base: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with ``extra`` laid over it, maps merged key by key."""
    merged = dict(base)
    for key, value in extra.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


@dataclass
class Proxy(Server):
    """A running `registry-proxy serve` and its directories.

    ``copies`` starts it; None starts a new Python, as outside of tests.
    """

    admin_port: int = 0
    root: Path = Path()
    config: Path = Path()
    copies: Copies | None = None

    @property
    def admin_url(self) -> str:
        """The URL of the admin listener."""
        return f"http://127.0.0.1:{self.admin_port}"

    @property
    def host(self) -> str:
        """Its name for docker: host:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def cache(self) -> Path:
        """The directory of its cache."""
        return self.root / "cache"

    @property
    def audit(self) -> Path:
        """The directory beside its cache for data that must outlive the cache: audit log, id, pins."""
        return self.root / "cache.audit"

    @property
    def pins(self) -> Path:
        """The directory of the contents that its cache keeps for a replica that misses them."""
        return self.root / "cache.audit" / "pins"

    def temporary_files(self) -> list[Path]:
        """Return the files in its cache that are neither committed nor a record of a committed one."""
        return [*(self.cache / "fills").glob("*"), *(self.cache / "spool").glob("*/*.part")]

    def launch(self) -> None:
        """Start it and return at once."""
        if self.copies is None:
            super().launch()
        else:
            arguments = ["registry-proxy", *self.arguments[self.arguments.index("serve") :]]
            self.process = self.copies.run(arguments, {**os.environ, **self.environment}, self.log)

    def start(self) -> None:
        """Start it and wait until all its workers are ready."""
        before = len(self.log_text())
        self.launch()
        wait_until(
            lambda: self.has_ended or "is ready: " in self.log_text()[before:], "it is ready", timeout_seconds=60
        )
        assert not self.has_ended, self.log_text()

    def processes(self) -> list[psutil.Process]:
        """Return the supervisor and all its children."""
        supervisor = psutil.Process(self.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def workers(self) -> list[psutil.Process]:
        """Return the worker processes."""
        return [process for process in self.processes()[1:] if is_worker(process)]

    def pss_bytes(self) -> int:
        """Return the memory of all its processes: the sum of their proportional set sizes."""
        assert self.copies is None, "it shares memory with the test that it is a copy of"
        return sum(process.memory_full_info().pss for process in self.processes())

    def kill_everything(self) -> None:
        """End the supervisor and all workers with SIGKILL, as a power cut would."""
        processes = self.processes()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):  # a worker that was just killed, too
                process.send_signal(signal.SIGKILL)
        assert self.process is not None
        self.process.wait()
        self.process = None
        psutil.wait_procs(processes[1:], timeout=10)  # this process is their parent now

    def admin(self) -> httpx.Client:
        """Return a client of the admin API, logged in as the first admin."""
        return httpx.Client(
            base_url=f"{self.admin_url}/admin/v1", auth=("admin", ADMIN_PASSWORD), timeout=30, verify=False
        )

    def add_user(self, name: str, password: str = "password of a user", **grants: list[str]) -> "User":
        """Make a user; each keyword is ``actions=[repository patterns]``, for example ``pull=["a/**"]``."""
        with self.admin() as admin:
            admin.put(f"/users/{name}", json={"password": password}).raise_for_status()
            for action, patterns in grants.items():
                for pattern in patterns:
                    grant = {"subject": f"user:{name}", "repository": pattern, "actions": action.split("_")}
                    admin.post("/grants", json=grant).raise_for_status()
        return User(self, name, password)

    def command(self, *arguments: str) -> Result:
        """Run a command of the admin API as the first admin; in this process, which spares a new Python."""
        account = {"URL": self.admin_url, "USER": "admin", "PASSWORD": ADMIN_PASSWORD}
        environment = {f"REGISTRY_PROXY_ADMIN_{name}": value for name, value in account.items()}
        return CliRunner().invoke(app, arguments, env=environment, catch_exceptions=False)

    def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the samples of a metric that carry the given labels."""
        text = httpx.get(f"{self.admin_url}/metrics", timeout=30, verify=False).text
        total = 0.0
        for line in text.splitlines():
            series, _, value = line.rpartition(" ")
            if series.partition("{")[0] == name and all(f'{key}="{text}"' in series for key, text in labels.items()):
                total += float(value)
        return total


def is_worker(process: psutil.Process) -> bool:
    """Tell whether a process is a worker, and not the one that workers are copies of."""
    try:
        return process.name() == "regproxy-worker"
    except psutil.NoSuchProcess:
        return False


def own_descriptors(worker: psutil.Process, ports: set[int]) -> int:
    """Return the number of a worker's descriptors, except connections to registries, which it keeps for later."""
    connections = [one for one in worker.net_connections("tcp") if one.status == psutil.CONN_ESTABLISHED]
    return worker.num_fds() - sum(1 for one in connections if one.raddr.port in ports)


@dataclass(frozen=True)
class Image:
    """An image as a registry sees it."""

    manifest: bytes
    blobs: Mapping[str, bytes]
    media_type: str = OCI_MANIFEST

    @property
    def digest(self) -> str:
        """The digest of the manifest."""
        return digest_of(self.manifest)


def notice_down(user: "User", repository: str, count: int = 1) -> None:
    """Have the product find out that registries are down, by a request: without one its probes take ten seconds.

    Args:
        user: may push to the repository.
        repository: need not exist.
        count: how many are down.
    """
    url, token = httpx.URL(user.base_url), user.token(f"repository:{repository}:pull,push")
    with contextlib.closing(
        HTTPConnection(url.host, url.port or 80, timeout=30)
    ) as connection:  # its answer may take 5 s
        path = f"/v2/{repository}/blobs/{digest_of(b'nobody has this')}"
        connection.request("HEAD", path, headers={"Authorization": f"Bearer {token}"})
        state = "registry_proxy_replica_state"
        wait_until(lambda: user.proxy.metric(state, state="down") == count, "it is known as down")


def make_image(*layers: bytes, label: str = "", **settings: object) -> Image:
    """Return an OCI image with the given layers; a different label makes a different image.

    Args:
        layers: archives.
        label: of the image.
        settings: further settings of its containers, such as ``Entrypoint``.
    """
    root = {"type": "layers", "diff_ids": [digest_of(layer) for layer in layers]}
    container = {"Labels": {"label": label}, **settings}
    about = {"architecture": "amd64", "os": "linux", "config": container, "rootfs": root}
    config = json.dumps(about).encode()
    descriptors = [{"mediaType": OCI_LAYER, "digest": digest_of(layer), "size": len(layer)} for layer in layers]
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest_of(config), "size": len(config)},
        "layers": descriptors,
    }
    blobs = {digest_of(blob): blob for blob in (config, *layers)}
    return Image(json.dumps(manifest).encode(), blobs)


def tar_of(content: bytes) -> bytes:
    """Return a layer: an archive of one file."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        member = tarfile.TarInfo("file")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
    return layer.getvalue()


def random_bytes(size_bytes: int) -> bytes:
    """Return bytes that no other test uses."""
    return secrets.token_bytes(size_bytes)


@dataclass
class User:
    """A user of the public listener who does as docker does: a token for each scope, then /v2/."""

    proxy: Proxy
    name: str | None
    password: str | None
    url: str | None = None
    timeout_seconds: float = 60
    tokens: dict[str, str] = field(default_factory=dict)

    @property
    def base_url(self) -> str:
        """The URL of the public listener, or of the nginx before it."""
        return self.url or self.proxy.url

    def token(self, *scopes: str) -> str:
        """Return a token for the scopes."""
        key = " ".join(scopes)
        if key not in self.tokens:
            auth = None if self.name is None else (self.name, self.password or "")
            query = httpx.QueryParams([("service", "registry-proxy"), *(("scope", scope) for scope in scopes)])
            answer = httpx.get(f"{self.base_url}/auth/token", params=query, auth=auth, verify=False, timeout=30)
            answer.raise_for_status()
            self.tokens[key] = answer.json()["token"]
        return self.tokens[key]

    def client(self, repository: str, actions: str = "pull") -> httpx.Client:
        """Return a client whose requests carry a token for the repository."""
        token = self.token(f"repository:{repository}:{actions}")
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(
            base_url=f"{self.base_url}/v2/{repository}", headers=headers, timeout=self.timeout_seconds, verify=False
        )

    def push_blob(self, repository: str, content: bytes | Iterable[bytes], digest: str | None = None) -> httpx.Response:
        """Push one blob as docker does: POST, one chunked PATCH, PUT; return the first failed answer or the last."""
        if digest is None:
            assert isinstance(content, bytes)
            digest = digest_of(content)
        with self.client(repository, "pull,push") as client:
            answer = client.post("/blobs/uploads/")
            if answer.status_code != 202:
                return answer
            body: Iterator[bytes] = iter([content]) if isinstance(content, bytes) else iter(content)
            answer = client.patch(self._absolute(answer.headers["Location"]), content=body)
            if answer.status_code != 202:
                return answer
            location = httpx.URL(self._absolute(answer.headers["Location"])).copy_merge_params({"digest": digest})
            return client.put(location)

    def _absolute(self, location: str) -> str:
        return str(httpx.URL(self.base_url).join(location))

    def push_manifest(self, repository: str, reference: str, image: Image) -> httpx.Response:
        """PUT the manifest of an image whose blobs are present."""
        with self.client(repository, "pull,push") as client:
            headers = {"Content-Type": image.media_type}
            return client.put(f"/manifests/{reference}", content=image.manifest, headers=headers)

    def push(self, repository: str, tag: str, image: Image) -> None:
        """Push a whole image; raise when the proxy refuses a part of it."""
        for blob in image.blobs.values():
            answer = self.push_blob(repository, blob)
            assert answer.status_code == 201, answer.text
        answer = self.push_manifest(repository, tag, image)
        assert answer.status_code == 201, answer.text

    def get(self, repository: str, path: str, **headers: str) -> httpx.Response:
        """GET an object of a repository, for example ``manifests/latest``."""
        with self.client(repository) as client:
            return client.get(path, headers={"Accept": OCI_MANIFEST, **headers})

    def head(self, repository: str, path: str, **headers: str) -> httpx.Response:
        """HEAD an object of a repository."""
        with self.client(repository) as client:
            return client.head(path, headers={"Accept": OCI_MANIFEST, **headers})

    def pull(self, repository: str, reference: str) -> Image:
        """Pull a whole image and compare every digest; raise when anything is missing or wrong."""
        answer = self.get(repository, f"manifests/{reference}")
        answer.raise_for_status()
        manifest = answer.json()
        assert answer.headers["Docker-Content-Digest"] == digest_of(answer.content)
        blobs = {}
        for descriptor in [manifest["config"], *manifest["layers"]]:
            blob = self.get(repository, f"blobs/{descriptor['digest']}")
            blob.raise_for_status()
            assert digest_of(blob.content) == descriptor["digest"]
            blobs[descriptor["digest"]] = blob.content
        return Image(answer.content, blobs)


def push_blob_directly(registry: Server, repository: str, blob: bytes) -> str:
    """Push a blob to a registry past the proxy; return its digest."""
    digest = digest_of(blob)
    with httpx.Client(base_url=f"{registry.url}/v2/{repository}", timeout=60, verify=False) as client:
        location = httpx.URL(client.post("/blobs/uploads/").headers["Location"])
        assert client.put(location.copy_merge_params({"digest": digest}), content=blob).status_code == 201
    return digest


def push_directly(registry: Server, repository: str, reference: str, image: Image) -> None:
    """Push an image to a registry past the proxy."""
    for blob in image.blobs.values():
        push_blob_directly(registry, repository, blob)
    url = f"{registry.url}/v2/{repository}/manifests/{reference}"
    headers = {"Content-Type": image.media_type}
    answer = httpx.put(url, content=image.manifest, headers=headers, timeout=60, verify=False)
    assert answer.status_code == 201, answer.text


def proxy_server(
    root: Path, registries: Iterable[Server], extra: Mapping[str, Any] | None = None, *, copies: Copies | None = None
) -> Proxy:
    """Describe a proxy in front of some registries; ``extra`` is merged over its configuration."""
    root.mkdir(parents=True, exist_ok=True)
    port, admin_port = free_port(), free_port()
    settings: dict[str, Any] = {
        "listen": f"127.0.0.1:{port}",
        "admin_listen": f"127.0.0.1:{admin_port}",
        "store": f"sqlite:///{root / 'store.db'}",
        "cache": {"path": str(root / "cache"), "max_size": "4GiB", "min_free": "10MiB"},
        "upstreams": {"main": {"replicas": [{"url": registry.url} for registry in registries]}},
        "routes": [{"prefix": "", "upstream": "main"}],
        "auth": {"signing_key_file": str(root / "token-key.pem")},
    }
    config = root / "config.yaml"
    config.write_text(yaml.safe_dump(merge(settings, extra or {})))
    command = [sys.executable, "-m", "registry_proxy", "serve", "--config", str(config)]
    environment = {"REGISTRY_PROXY_ADMIN_PASSWORD": ADMIN_PASSWORD}
    return Proxy(
        command, port, root / "log", environment, admin_port=admin_port, root=root, config=config, copies=copies
    )
