"""The API's description (OpenAPI 3.1): what the framework derives, and the errors, scopes and the key that it cannot know."""

from __future__ import annotations

import re
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from app.api.examples import example_of
from app.api.problems import CODES, MEDIA_TYPE, ProblemDetails, example
from app.api.scopes import SCOPE_OF

TEXT: Final = """
Delivers events committed to a Postgres outbox, signed, to HTTP endpoints, and never loses one.

**Keys.** Every route under `/v1` takes `Authorization: Bearer homing_live_...` and names the scope that the key needs. A key sees
its tenant's data only; what is another's looks exactly like what does not exist.

**Errors** are problem details (RFC 9457) with a stable `error_code`; `retryable` says whether the same request may succeed later.

**Writes** take an `Idempotency-Key`: repeated with the same body they have one effect, and the same answer.

**Listings** are newest first (tenants and keys: by id), `limit` at most 200, and give `next` for the next page, also as the header
`Link`. A page may be short and still have a next one.
""".strip()

_ALWAYS: Final = ("INT-400-INVALID-PAYLOAD", "INT-401-UNAUTHENTICATED", "INT-403-FORBIDDEN")
_AWAY: Final = ("INT-500-INTERNAL", "INT-503-DEPENDENCY-UNAVAILABLE")
_WRITES: Final = (
    "INT-409-CONFLICT",
    "INT-409-IDEMPOTENCY-CONFLICT",
    "INT-409-RACE-LOST",
    "INT-413-TOO-LARGE",
    "INT-415-UNSUPPORTED-MEDIA-TYPE",
)
_MORE: Final = {
    "getReadiness": ("INT-503-DEPENDENCY-UNAVAILABLE",),
    "changeEndpoint": ("INT-412-PRECONDITION-FAILED",),
    "archiveEndpoint": ("INT-412-PRECONDITION-FAILED",),
    "createEndpoint": (),
    "createReplay": ("INT-404-NOT-FOUND",),
    "createKey": ("INT-404-NOT-FOUND",),
    "listKeys": ("INT-404-NOT-FOUND",),
    "retryDelivery": ("INT-409-RECOVERY-REPLAY-CONFLICT",),
    "replayRecovery": ("INT-404-RECOVERY-NOT-FOUND", "INT-409-RECOVERY-REPLAY-CONFLICT"),
}
_HEADERS: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "etag": {"ETag": {"description": "For If-Match.", "schema": {"type": "string"}}},
    "location": {"Location": {"description": "Where to look at it.", "schema": {"type": "string"}}},
    "link": {"Link": {"description": 'The next page, `rel="next"`.', "schema": {"type": "string"}}},
}


def describe(application: FastAPI) -> None:
    """Let the application serve the description that `openapi_of` makes, made once."""
    made: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not made:
            made.update(openapi_of(application))
        return made

    application.openapi = openapi  # type: ignore[method-assign]


def openapi_of(application: FastAPI) -> dict[str, Any]:
    """The whole description."""
    found = get_openapi(
        title=application.title, version=application.version, description=TEXT, routes=application.routes
    )
    components = found.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    problem = ProblemDetails.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= problem.pop("$defs")
    schemas["Problem"] = problem | {"examples": [example("INT-400-INVALID-PAYLOAD")]}
    components["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer", "description": "An API key: `homing keys create`."}
    }
    problems = components.setdefault("responses", {})
    for path, operations in found["paths"].items():
        for method, operation in operations.items():
            _complete(path, method, operation, problems)
            _give_examples(operation, schemas)
    for schema in schemas.values():
        # What a client sends takes nothing that is not known; its example is what a person would send.
        schema.setdefault("examples", [example_of(schema, schemas, sparse=schema.get("additionalProperties") is False)])
    return found


def _complete(path: str, method: str, operation: dict[str, Any], problems: dict[str, Any]) -> None:
    name = operation["operationId"]
    operation["summary"] = re.sub(r"([A-Z])", lambda m: " " + m[1].lower(), name).capitalize()
    for parameter in operation.get("parameters", ()):
        _never_null(parameter["schema"])
    responses = operation["responses"]
    responses.pop("422", None)
    codes = list(_MORE.get(name, ()))
    if (scope := SCOPE_OF.get(name)) is not None:
        operation["security"] = [{"key": []}]
        operation["x-required-scope"] = str(scope)
        operation["description"] = f"{operation.get('description', '')}\n\nScope: `{scope}`.".strip()
        codes += [*_ALWAYS, *_AWAY]
        if "{" in path:
            codes.append("INT-404-NOT-FOUND")
        if method != "get":
            codes += _WRITES
    elif name == "getReadiness":
        codes += _AWAY
    by_status: dict[int, list[str]] = {}
    for code in sorted(set(codes)):
        by_status.setdefault(CODES[code][0], []).append(code)
    for status, those in sorted(by_status.items()):
        shared = " or ".join(code.removeprefix("INT-") for code in those).replace(" ", "_")
        problems[shared] = _problem_response(those)
        responses[str(status)] = {"$ref": f"#/components/responses/{shared}"}
    if name == "getMetrics":
        responses["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    if name == "getEndpoint":
        responses["304"] = {"description": "It is still what If-None-Match says."}
    _say_headers(name, responses)


def _never_null(schema: dict[str, Any]) -> None:
    """A parameter is left out, never null."""
    kinds = [kind for kind in schema.pop("anyOf", ()) if kind.get("type") != "null"]
    if len(kinds) == 1:
        schema |= kinds[0] | {name: value for name, value in schema.items() if name in ("pattern", "description")}
    elif kinds:
        schema["anyOf"] = kinds


def _give_examples(operation: dict[str, Any], schemas: dict[str, Any]) -> None:
    for content in operation.get("requestBody", {}).get("content", {}).values():
        content["example"] = example_of(content["schema"], schemas, sparse=True)
    for status, response in operation["responses"].items():
        for media_type, content in response.get("content", {}).items():
            if status.startswith("2") and media_type == "application/json":
                content["example"] = example_of(content["schema"], schemas)


def _say_headers(name: str, responses: dict[str, Any]) -> None:
    if name in ("createEndpoint", "getEndpoint", "changeEndpoint"):
        responses["201" if name == "createEndpoint" else "200"]["headers"] = dict(_HEADERS["etag"])
    if name in ("createEndpoint", "retryDelivery", "replayRecovery", "createReplay", "sendTestEvent"):
        good = responses["201" if name == "createEndpoint" else "202"]
        good["headers"] = good.get("headers", {}) | _HEADERS["location"]
    if name.startswith("list"):
        responses["200"]["headers"] = dict(_HEADERS["link"])


def _problem_response(codes: list[str]) -> dict[str, Any]:
    return {
        "description": "; ".join(dict.fromkeys(CODES[code][1] for code in codes)),
        "content": {
            MEDIA_TYPE: {
                "schema": {"$ref": "#/components/schemas/Problem"},
                "examples": {code: {"value": example(code)} for code in codes},
            }
        },
    }
