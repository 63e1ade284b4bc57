"""`registry-proxy cache warm`: bring images into the cache before anybody asks for them."""

import time
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from registry_proxy.terminal.client import AdminClient, admin_client
from registry_proxy.terminal.errors import CommandError
from registry_proxy.terminal.output import JsonOption, counted, format_size, print_note, printed_json, progress_bars

_POLL_SECONDS = 0.3


def warm_cache(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Images, such as team/app:1.2 or team/app@sha256:…")
    ],
    platform: Annotated[
        list[str] | None, typer.Option(help="Platform of an index, such as linux/amd64; may be repeated.")
    ] = None,
    _json: JsonOption = False,
) -> None:
    """Bring whole images into the cache of the node, and wait until they are there."""
    with admin_client() as admin:
        bodies = [_body(image, platform or []) for image in images]
        jobs = [admin.call("POST", "cache", "warm", body=body).document for body in bodies]
        jobs = _follow(admin, jobs)
        is_printed = printed_json(jobs)
        for job in jobs:
            if not job["error"] and not is_printed:
                size = format_size(job["bytes_total"])
                print_note(f"{job['image']} is in the cache: {counted(job['blobs_total'], 'blob')}, {size}.")
        failed = [f"{job['image']}: {job['error']}" for job in jobs if job["error"]]
        if failed:
            text = f"{len(failed)} of {counted(len(jobs), 'image', 'are not wholly in the cache')}"
            raise CommandError(text, faults=failed)


def _body(image: str, platforms: list[str]) -> dict[str, Any]:
    name, separator, digest = image.partition("@")
    if separator:
        return {"repository": name, "reference": digest, "platforms": platforms}
    name, _, tag = image.partition(":")
    if "/" in tag:
        raise CommandError(
            f"{image} begins with the address of a registry", hint=f"Leave it out: {tag.partition('/')[2]}"
        )
    return {"repository": name, "reference": tag or "latest", "platforms": platforms}


def _follow(admin: AdminClient, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with progress_bars(*columns) as progress:
        bars = {job["id"]: progress.add_task(job["image"], total=None) for job in jobs}
        while True:
            jobs = [job if job["done"] else admin.call("GET", "cache", "warm", job["id"]).document for job in jobs]
            for job in jobs:
                progress.update(bars[job["id"]], total=job["bytes_total"] or None, completed=job["bytes_done"])
            if all(job["done"] for job in jobs):
                return jobs
            time.sleep(_POLL_SECONDS)
