"""The OpenAPI document of the admin API: complete, and true to the answers."""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
from pytest_aiohttp import AiohttpClient

from registry_proxy.access.subject import SUBJECT_PATTERN
from tests.support.admin_bench import ADMIN_ROUTES, admin_node, contract_of


async def test_every_route_is_described(tmp_path: Path, aiohttp_client: AiohttpClient) -> None:
    """Each route below /admin/v1 is an operation, and each operation is a route; the slots of paths are parameters."""
    async with admin_node(tmp_path) as node:
        http = await aiohttp_client(node.app)
        document = (await contract_of(node, http)).document
    operations = {
        f"{method.upper()} {path}": operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    assert set(operations) == {
        route.replace(" ", " /admin/v1", 1)
        for route in ADMIN_ROUTES
        if route.split()[1] not in {"/metrics", "/healthz", "/readyz"}
    }
    for route, operation in operations.items():
        in_path = [each["name"] for each in operation["parameters"] if each["in"] == "path"]
        assert in_path == re.findall(r"{(\w+)}", route), route
        assert ("requestBody" in operation) <= (not route.startswith(("GET", "DELETE"))), route
    names = [operation["operationId"] for operation in operations.values()]
    assert len(set(names)) == len(names)


async def test_every_reference_leads_somewhere(tmp_path: Path, aiohttp_client: AiohttpClient) -> None:
    """Every reference resolves, every definition is used, and all schemas are valid."""
    async with admin_node(tmp_path) as node:
        http = await aiohttp_client(node.app)
        document = (await contract_of(node, http)).document
    references = set(re.findall(r'"\$ref": "#/components/([^"]+)"', json.dumps(document)))
    parts: dict[str, Any] = document["components"]
    assert references == {f"{kind}/{name}" for kind in ("schemas", "responses") for name in parts[kind]}
    for schema in parts["schemas"].values():
        jsonschema_rs.meta.validate({**schema, "$schema": "https://json-schema.org/draft/2020-12/schema"})


async def test_every_default_is_one_that_its_schema_takes(tmp_path: Path, aiohttp_client: AiohttpClient) -> None:
    """Every default fits its schema: generators of clients validate them."""
    async with admin_node(tmp_path) as node:
        http = await aiohttp_client(node.app)
        document = (await contract_of(node, http)).document

    def check(schema: Any) -> None:
        if isinstance(schema, dict):
            if "default" in schema:
                jsonschema_rs.validate({**schema, "components": document["components"]}, schema["default"])
            schema = list(schema.values())
        if isinstance(schema, list):
            for each in schema:
                check(each)

    check(document["components"]["schemas"])


async def test_subjects_are_described_by_a_pattern(tmp_path: Path, aiohttp_client: AiohttpClient) -> None:
    """Every body that takes a subject describes it by the pattern."""
    async with admin_node(tmp_path) as node:
        http = await aiohttp_client(node.app)
        schemas = (await contract_of(node, http)).document["components"]["schemas"]
    for name in ("GrantBody", "ExplainBody", "RevocationBody"):
        subject = schemas[name]["properties"]["subject"]
        assert SUBJECT_PATTERN in {each.get("pattern") for each in [subject, *subject.get("anyOf", [])]}, name
