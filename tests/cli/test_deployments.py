"""`registry-proxy deployment` against a real admin listener."""

import json

from tests.cli.conftest import Run
from tests.support.admin_bench import Node

MANIFEST = b'{"schemaVersion": 2, "config": {"mediaType": "a/b", "digest": "sha256:%s", "size": 9}, "layers": []}'


def test_a_deployment_is_reported_and_listed(run: Run, listener: tuple[str, Node]) -> None:
    """The image is named as for docker, by its digest; the table is for people, JSON has everything."""
    digest = listener[1].reader.add_manifest("team/app", MANIFEST % (b"0" * 64))
    assert "No deployment is on record." in run("deployment", "list").stderr
    made = run("deployment", "report", "production", f"team/app:1.2@{digest}", "--at", "5m", "--json")
    assert made.exit_code == 0, made.output
    assert run("deployment", "report", "production", f"team/app@{digest}", "--outcome", "failed").exit_code == 0
    heading, failed, runs = run("deployment", "list", "--repository", "team/app").stdout.splitlines()
    columns = [
        "ENVIRONMENT",
        "REPOSITORY",
        "TAG",
        "DIGEST",
        "OUTCOME",
        "RUNS",
        "SINCE",
        "SUBJECT",
        "REVISION",
        "BEHIND",
    ]
    assert heading.split() == columns
    assert runs.split()[:6] == ["production", "team/app", "1.2", str(digest)[:19], "succeeded", "yes"]
    assert failed.split()[4:6] == ["failed", "no"] or "failed" in failed
    listed = json.loads(run("deployment", "list", "--history", "--json").stdout)
    assert json.loads(made.stdout) in listed
    assert run("deployment", "list", "--environment", "staging", "--json").stdout.strip() == "[]"


def test_an_image_without_a_digest_is_refused(run: Run) -> None:
    """A tag does not identify the running image; the error shows the right form."""
    for image in ("team/app:1.2", "registry.example:5000/team/app@sha256:0"):
        refused = run("deployment", "report", "production", image)
        assert refused.exit_code == 1
        assert "REPOSITORY@DIGEST" in refused.stderr
