"""JSON documents of clients, read where anything but an object counts as an empty one."""

import json
from collections.abc import Mapping
from typing import Any


def parse_object(body: bytes) -> Mapping[str, Any]:
    """Return a JSON object; an empty one for anything else, also for JSON that is nested too deeply."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    return document if isinstance(document, dict) else {}
