"""The committed description is the one that is served, and says what it must."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest

from app.api.application import openapi_document
from app.api.examples import example_of
from app.api.problems import CODES
from app.api.scopes import SCOPE_OF
from tests.api.conftest import Knock

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"


@pytest.fixture
async def served(knock: Knock) -> dict[str, Any]:
    answer: httpx.Response = await (await knock(key="")).get("/openapi.json")
    return dict(answer.json())


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in document["paths"].values() for operation in path.values()]


def test_committed_description_is_up_to_date() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == openapi_document(), "run: homing api --openapi > docs/openapi.json"


async def test_served_description_is_the_committed_one(served: dict[str, Any]) -> None:
    assert served == json.loads(COMMITTED.read_text(encoding="utf-8"))
    assert served["openapi"].startswith("3.1")


async def test_every_operation_says_what_it_does_needs_and_answers(served: dict[str, Any]) -> None:
    for operation in operations(served):
        name = operation["operationId"]
        assert operation["description"]
        if name in SCOPE_OF:
            assert operation["x-required-scope"] == SCOPE_OF[name]
            assert operation["security"] == [{"key": []}]
            assert {"400", "401", "403", "500", "503"} <= set(operation["responses"]), name
        for parameter in operation.get("parameters", ()):
            assert "null" not in str(parameter["schema"].get("anyOf", "")), (name, parameter["name"])
        bodies = [operation["requestBody"]] if "requestBody" in operation else []
        for content in [*bodies, *operation["responses"].values()]:
            for media_type, shown in content.get("content", {}).items():
                assert media_type != "application/json" or "example" in shown, name


async def test_every_error_is_described_with_an_example(served: dict[str, Any]) -> None:
    shown = [
        e
        for r in served["components"]["responses"].values()
        for e in r["content"]["application/problem+json"]["examples"]
    ]
    assert set(CODES) - set(shown) == {"INT-405-METHOD-NOT-ALLOWED"}


def test_every_example_fits_its_schema() -> None:
    document = json.loads(openapi_document())
    components = document["components"]
    shown = [(name, s, example) for name, s in components["schemas"].items() for example in s["examples"]]
    for operation in operations(document):
        for part in [operation.get("requestBody", {}), *operation["responses"].values()]:
            for content in part.get("content", {}).values():
                if "example" in content:
                    shown.append((operation["operationId"], content["schema"], content["example"]))
        for parameter in operation.get("parameters", ()):
            if "example" in parameter["schema"]:
                shown.append((operation["operationId"], parameter["schema"], parameter["schema"]["example"]))
    for response in components["responses"].values():
        (content,) = response["content"].values()
        shown += [(code, content["schema"], one["value"]) for code, one in content["examples"].items()]
    assert len(shown) > 100
    for name, schema, example in shown:
        fits = jsonschema_rs.Draft202012Validator(schema | {"components": components}, validate_formats=True)
        assert fits.is_valid(example), (name, example)


async def test_every_example_of_a_request_is_accepted(knock: Knock, served: dict[str, Any]) -> None:
    tenant, operator = await knock(), await knock(tenant_id=None, scopes=("admin",))
    for path, item in served["paths"].items():
        for method, operation in item.items():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                client = operator if operation["operationId"] == "createTenant" else tenant
                filled = re.sub(r"\{\w+\}", "0193a5f2-c1d8-7c3e-9b2a-4f5e6d7c8b9a", path)
                answer = await client.request(method, filled, json=content["example"])
                assert answer.is_success or answer.status_code == 404, (operation["operationId"], answer.text)


def test_example_is_made_of_what_the_schema_says() -> None:
    schemas = {"Word": {"type": "string", "enum": ["a", "b"]}}
    schema = {
        "type": "object",
        "properties": {
            "word": {"$ref": "#/components/schemas/Word"},
            "ids": {"type": "array", "items": {"type": "string", "format": "uuid"}},
            "count": {"type": "integer", "minimum": 7},
            "maybe": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
            "nothing": {},
        },
        "required": ["word"],
    }
    assert example_of(schema, schemas) == {
        "word": "a",
        "ids": ["0193a5f2-c1d8-7c3e-9b2a-4f5e6d7c8b9a"],
        "count": 7,
        "maybe": False,
        "nothing": None,
    }
    assert example_of(schema, schemas, sparse=True) == {"word": "a"}
