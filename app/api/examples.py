"""Examples for the API's description, made from its schemas: an example cannot say what the schema does not. Pure."""

from __future__ import annotations

from typing import Any, Final

_BY_FORMAT: Final = {
    "uuid": "0193a5f2-c1d8-7c3e-9b2a-4f5e6d7c8b9a",
    "date-time": "2026-11-22T10:00:00Z",
}
#: For names that mean the same everywhere.
_BY_NAME: Final[dict[str, Any]] = {
    "url": "https://example.com/hooks",
    "request_id": "order-4711",
    "event_type": "invoice.paid",
    "event_types": ["invoice.*"],
    "payload": '{"invoice": 42}',
    "failure_class": "http_status",
    "last_class": "http_status",
    "http_status": 503,
    "last_http_status": 503,
    "last_status": 503,
    "last_error": "the endpoint answered 503",
    "error": "the endpoint answered 503",
    "reason": "receiver was down, mended now",
    "actor": "key:3f9a1c27b0de",
    "key_id": "k4f5e6d7c8b9a",
    "secret": "whsec_...",
    "key": "homing_live_3f9a1c27b0de_...",
    "tenant_id": "acme",
    "name": "billing",
    "created_by": "cli:anna",
    "outcome": "transient",
    "detail": "connection reset by peer",
    "next": None,
    "timeline": [],
}


def example_of(schema: dict[str, Any], schemas: dict[str, Any], *, name: str = "", sparse: bool = False) -> Any:
    """A value that fits a schema.

    Args:
        schema: of the value.
        schemas: what its references point at, by name.
        name: of the property that it is.
        sparse: of an object, only what is required or has an example of its own: what a person would send.
    """
    if "examples" in schema:
        return schema["examples"][0]
    if "$ref" in schema:
        return example_of(schemas[schema["$ref"].rsplit("/", 1)[1]], schemas, name=name, sparse=sparse)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    kinds = [kind for kind in schema.get("anyOf", ()) if kind.get("type") != "null"]
    if not sparse and name in _BY_NAME:
        return _BY_NAME[name]
    if kinds:
        return example_of(kinds[0], schemas, name=name, sparse=sparse)
    match schema.get("type"):
        case "object":
            return _object(schema, schemas, sparse=sparse)
        case "array":
            items = [schema["items"]] if "items" in schema else schema.get("prefixItems", [])
            return [example_of(item, schemas, sparse=sparse) for item in items]
        case "integer" | "number":
            return schema.get("default", max(1, schema.get("minimum", 1)))
        case "boolean":
            return schema.get("default", False)
        case "string":
            return _BY_NAME.get(name) or _BY_FORMAT.get(schema.get("format", ""), "...")
    return None


def _object(schema: dict[str, Any], schemas: dict[str, Any], *, sparse: bool) -> dict[str, Any]:
    required = schema.get("required", ())
    return {
        name: example_of(part, schemas, name=name, sparse=sparse)
        for name, part in schema.get("properties", {}).items()
        if not sparse or name in required or "examples" in str(part)
    }
