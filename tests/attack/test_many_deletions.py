"""Each deletion stays in the shared store for a week: one subject makes a bounded number of them."""

from pathlib import Path

import pytest

from registry_proxy.protocol.reference import digest_of
from tests.support.fakes.public import PublicBench


@pytest.mark.parametrize("kind", ["blobs", "manifests"])
async def test_a_subject_deletes_a_bounded_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Beyond the bound the subject gets 429 and nothing is deleted; another subject can still delete."""
    monkeypatch.setattr("registry_proxy.edge.writes.DELETIONS_AT_ONCE", 2)
    public = PublicBench(tmp_path)
    for subject in ("user:ann", "user:bob"):
        public.allow("delete", subject=subject)
    statuses = []
    async with public.serving():
        for subject in ("user:ann", "user:ann", "user:ann", "user:bob"):
            path = f"/v2/team/app/{kind}/{digest_of(b'1')}"
            async with public.session.delete(path, headers=public.bearer(subject)) as answer:
                statuses.append(answer.status)
    assert statuses == [202, 202, 429, 202]
