"""The official conformance suite of the OCI distribution specification, run against one registry."""

import os
import subprocess
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

from tests.acceptance.programs import find_program

_ROOT = "OCI Conformance Test/"


def run_conformance(root: Path, host: str, login: tuple[str, str] | None = None) -> dict[str, Counter[str]]:
    """Run the whole suite; count the checks of each name by outcome: passed, skipped, failure, error.

    Args:
        root: the directory for the reports of the suite.
        host: host and port of the registry, which speaks plain HTTP.
        login: name and password, None to call it without.
    """
    root.mkdir(parents=True, exist_ok=True)
    user, password = login or ("", "")
    settings = {
        "OCI_REGISTRY": host,
        "OCI_TLS": "disabled",
        "OCI_REPO1": "conformance/first",
        "OCI_REPO2": "conformance/second",
        "OCI_USERNAME": user,
        "OCI_PASSWORD": password,
        "OCI_API_BLOBS_DIGEST_HEADER": "true",  # these three are off unless asked for
        "OCI_API_BLOBS_UPLOAD_CANCEL": "true",
        "OCI_API_MANIFESTS_DIGEST_HEADER": "true",
        "OCI_LOG": "error",
        "OCI_RESULTS_DIR": str(root),
    }
    with (root / "log").open("wb") as log:
        subprocess.run(
            [find_program("conformance") or "conformance"],
            env={**os.environ, **settings},
            cwd=root,
            stdout=log,
            stderr=log,
            timeout=240,
            check=False,  # it fails where any check does
        )
    outcomes: dict[str, Counter[str]] = {}
    for case in ET.parse(root / "junit.xml").iter("testcase"):
        name = case.attrib["name"].removeprefix(_ROOT)
        outcomes.setdefault(case.attrib["status"], Counter())[name] += 1
    return outcomes
