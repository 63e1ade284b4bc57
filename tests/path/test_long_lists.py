"""Lists of several pages, over two nodes and two real registries: rarely read, and never without the last write."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from tests.conftest import StartProxy, StartRegistry
from tests.support.product import User, make_image, random_bytes
from tests.support.servers import Server, wait_until

COUNT = 2_000


def add_tags(registry: Server, repository: str, count: int) -> list[str]:
    """Put tags into the storage of a registry, which lists them by their directories; return them."""
    directory = registry.log.parent / "data/docker/registry/v2/repositories" / repository / "_manifests/tags"
    names = [f"v{number:05}" for number in range(count)]
    for name in names:
        Path(directory, name).mkdir(parents=True)
    return names


def pages(user: User, repository: str, size: int) -> Iterator[httpx.Response]:
    """Yield the pages of a list of tags, following their Links."""
    path: str | None = f"tags/list?n={size}"
    while path is not None:
        page = user.get(repository, path)
        assert page.status_code == 200, page.text
        yield page
        path = page.links["next"]["url"].rpartition(f"/{repository}/")[2] if "next" in page.links else None


def reads(registries: list[Server]) -> int:
    """Return the number of requests to the registries for a list of tags."""
    return sum(len(re.findall(r'"GET [^ ]*/tags/list', server.log_text())) for server in registries)


@pytest.mark.parametrize("storage", ["independent", "shared"])
def test_pages_of_a_long_list_come_from_few_readings_and_miss_no_write(
    start_registry: StartRegistry, start_proxy: StartProxy, redis: Server, storage: str
) -> None:
    """A walk reads the list less often than once a page; a push and both deletes through another node show at once."""
    shares = storage == "shared"
    first = start_registry("first", delete_enabled=True)
    second = start_registry("second", delete_enabled=True, storage=first.log.parent / "data" if shares else None)
    registries = [first, second]
    names = add_tags(first, "team/app", COUNT)
    if not shares:
        add_tags(second, "team/app", COUNT)
    extra = {"store": f"redis://127.0.0.1:{redis.port}/0", "upstreams": {"main": {"storage": storage}}}
    one, two = (start_proxy(registries, extra, name=name) for name in ("one", "two"))
    ann = one.add_user("ann", pull_push_delete=["team/**"])
    other = replace(ann, url=two.url)
    assert ann.get("team/app", "tags/list?n=1").status_code == 200
    wait_until(lambda: other.get("team/app", "tags/list?n=1").status_code == 200, "the grant is in force there, too")

    walked = [tag for page in pages(ann, "team/app", 100) for tag in page.json()["tags"]]
    assert walked == names
    before = reads(registries)
    assert len([page.json() for page in pages(ann, "team/app", 100)]) == COUNT // 100
    assert reads(registries) - before < COUNT // 100

    def listed(last: str) -> list[str]:
        tags: list[str] = ann.get("team/app", f"tags/list?n=2&last={last}").json()["tags"]
        return tags

    image = make_image(random_bytes(1000))
    other.push("team/app", "v00500-new", image)
    assert listed("v00500") == ["v00500-new", "v00501"]
    other.push("team/app", "v00500-too", image)
    assert listed("v00500") == ["v00500-new", "v00500-too"]
    with other.client("team/app", "delete") as client:
        assert client.delete("/manifests/v00500-too").status_code == 202
        assert listed("v00500") == ["v00500-new", "v00501"]
        assert client.delete(f"/manifests/{image.digest}").status_code == 202
        assert listed("v00500") == ["v00501", "v00502"]
