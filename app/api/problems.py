"""Problem details (RFC 9457) for every answer that is not a success, and which error becomes which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import structlog
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.db import is_away
from app.errors import Conflict, HomingError, IdempotencyConflict, InvalidInput, NotFound, ServerAway, SettingsInvalid

log = structlog.get_logger(__name__)

MEDIA_TYPE: Final = "application/problem+json"

#: error code -> (status, title, whether the same again may succeed).
CODES: Final[dict[str, tuple[int, str, bool]]] = {
    "INT-400-INVALID-PAYLOAD": (400, "The request is not valid", False),
    "INT-401-UNAUTHENTICATED": (401, "A valid API key is needed", False),
    "INT-403-FORBIDDEN": (403, "The API key may not do this", False),
    "INT-404-NOT-FOUND": (404, "Not found", False),
    "INT-404-RECOVERY-NOT-FOUND": (404, "No such entry in the recovery queue", False),
    "INT-405-METHOD-NOT-ALLOWED": (405, "The method is not allowed here", False),
    "INT-409-CONFLICT": (409, "The state does not allow this", False),
    "INT-409-IDEMPOTENCY-CONFLICT": (409, "The idempotency key was used for something else", False),
    "INT-409-RECOVERY-REPLAY-CONFLICT": (409, "This cannot be replayed now", False),
    "INT-409-RACE-LOST": (409, "Another request was faster", True),
    "INT-412-PRECONDITION-FAILED": (412, "It was changed in the meantime", False),
    "INT-413-TOO-LARGE": (413, "The request is too large", False),
    "INT-415-UNSUPPORTED-MEDIA-TYPE": (415, "Send JSON", False),
    "INT-500-INTERNAL": (500, "Something went wrong here", False),
    "INT-503-DEPENDENCY-UNAVAILABLE": (503, "A server that is needed is away", True),
}

_BY_STATUS: Final = {
    401: "INT-401-UNAUTHENTICATED",
    403: "INT-403-FORBIDDEN",
    404: "INT-404-NOT-FOUND",
    405: "INT-405-METHOD-NOT-ALLOWED",
    413: "INT-413-TOO-LARGE",
    415: "INT-415-UNSUPPORTED-MEDIA-TYPE",
}
#: PostgreSQL, appendix "Error Codes": two transactions met, and this one gave way.
_RACE_LOST: Final = ("40001", "40P01", "23505", "55P03")
#: What the data cannot be: 22 data exception, 54 program limit exceeded.
_BAD_DATA: Final = ("22", "54")
#: The schema is another version's, or the role lacks a right: undefined table, column, function; insufficient privilege.
_NOT_AS_EXPECTED: Final = ("42P01", "42703", "42883", "42501")


class FieldError(BaseModel):
    """One thing that is wrong with a request."""

    pointer: str = Field(
        description="Where: a JSON pointer into the body, or `query/NAME`, `path/NAME`, `header/NAME`."
    )
    detail: str = Field(description="What is wrong there.")


class ProblemDetails(BaseModel):
    """RFC 9457, with what is needed to find the request again and to decide whether to repeat it."""

    model_config = ConfigDict(title="Problem")

    type: str = Field(description="Stable name of the kind of problem.")
    title: str
    status: int
    detail: str = Field(description="What happened, and what to do.")
    error_code: str = Field(description="For programs.", json_schema_extra={"enum": list(CODES)})
    request_id: str = Field(description="Of this HTTP request; also in the header X-Request-Id and in the logs.")
    traceparent: str | None = Field(description="The request's, when it had one (W3C Trace Context).")
    retryable: bool = Field(description="Whether the same request may succeed later, unchanged.")
    errors: list[FieldError] = Field(description="What is wrong with which part of the request; often empty.")


class Problem(Exception):
    """An answer other than a success, raised where it is found out."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})


class StoredRowMalformed(Exception):
    """A stored row is not what it must be; it is not guessed at."""


def example(code: str) -> dict[str, Any]:
    """What a problem looks like, for the description of the API."""
    status, title, retryable = CODES[code]
    return {
        "type": f"urn:homing:problem:{code.lower()}",
        "title": title,
        "status": status,
        "detail": f"{title}.",
        "error_code": code,
        "request_id": "req_0193a5f2c1d87c3e",
        "traceparent": None,
        "retryable": retryable,
        "errors": [],
    }


def render(problem: Problem, request_id: str, traceparent: str | None) -> Response:
    """The answer that a problem is."""
    status, title, retryable = CODES[problem.code]
    body = ProblemDetails(
        type=f"urn:homing:problem:{problem.code.lower()}",
        title=title,
        status=status,
        detail=problem.detail,
        error_code=problem.code,
        request_id=request_id,
        traceparent=traceparent,
        retryable=retryable,
        errors=problem.errors,
    )
    headers = dict(problem.headers)
    if status == 401:
        headers["www-authenticate"] = 'Bearer realm="homing"'
    if status == 503:
        headers["retry-after"] = "2"
    return Response(body.model_dump_json(), status, headers, MEDIA_TYPE)


def explain(error: Exception) -> Problem:
    """The problem that an error is; what nobody has thought of is a 500 that tells nothing, and is logged."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        return Problem("INT-400-INVALID-PAYLOAD", "The request is not valid; see errors.", errors=_fields(error))
    if isinstance(error, HTTPException):
        return _of_framework(error)
    if isinstance(error, HomingError):
        return _of_homing(error)
    if isinstance(error, DBAPIError | PoolTimeout | OSError):
        return _of_database(error)
    if isinstance(error, ValidationError | StoredRowMalformed):
        log.error("api.malformed_row", error=type(error).__name__, exc_info=error)
        return Problem("INT-503-DEPENDENCY-UNAVAILABLE", "A stored row is malformed; an operator must mend it.")
    log.error("api.defect", error=type(error).__name__, exc_info=error)
    return Problem("INT-500-INTERNAL", "Something went wrong here; the request id leads to the log.")


async def answer_error(request: Request, error: Exception) -> Response:
    """Exception handler of the application."""
    return render(explain(error), request.state.request_id, request.state.traceparent)


def _of_framework(error: HTTPException) -> Problem:
    if error.status_code >= 500:
        return Problem("INT-500-INTERNAL", "Something went wrong here; the request id leads to the log.")
    code = _BY_STATUS.get(error.status_code, "INT-400-INVALID-PAYLOAD")
    details = {404: "There is nothing here.", 405: "This method is not allowed here; see the header Allow."}
    return Problem(code, details.get(error.status_code, str(error.detail)), headers=error.headers)


def _of_homing(error: HomingError) -> Problem:
    if isinstance(error, NotFound):
        # Never the error's own words: they may name what was asked for, and a stranger's id must look like a missing one.
        return Problem("INT-404-NOT-FOUND", "There is no such thing, or it is not yours.")
    if isinstance(error, IdempotencyConflict):
        return Problem("INT-409-IDEMPOTENCY-CONFLICT", str(error))
    if isinstance(error, Conflict):
        return Problem("INT-409-CONFLICT", str(error))
    if isinstance(error, InvalidInput):
        return Problem("INT-400-INVALID-PAYLOAD", str(error))
    if isinstance(error, ServerAway | SettingsInvalid):
        log.error("api.dependency_unavailable", error=str(error))
        return Problem("INT-503-DEPENDENCY-UNAVAILABLE", "Something that is needed is not available; try again later.")
    log.error("api.defect", error=type(error).__name__, exc_info=error)
    return Problem("INT-500-INTERNAL", "Something went wrong here; the request id leads to the log.")


def _of_database(error: Exception) -> Problem:
    state = str(getattr(getattr(error, "orig", None), "sqlstate", None) or "")
    if state in _RACE_LOST or (isinstance(error, IntegrityError) and state.startswith("23")):
        return Problem("INT-409-RACE-LOST", "Another request changed the same thing first; look at it, and try again.")
    if state.startswith(_BAD_DATA) or (isinstance(error, DataError) and not state):
        return Problem("INT-400-INVALID-PAYLOAD", "The database refuses a value: it is too large or malformed.")
    # Never the error's own words: they repeat the statement's parameters.
    if is_away(error) or state in _NOT_AS_EXPECTED:
        log.error("api.database_away", sqlstate=state, error=type(error).__name__)
        # Nor that nothing was changed: a connection may break after the commit.
        said = (
            "Postgres is away, busy or not as it should be. Try again later; a write, under the same Idempotency-Key."
        )
        return Problem("INT-503-DEPENDENCY-UNAVAILABLE", said)
    log.error("api.defect", sqlstate=state, error=type(error).__name__)
    return Problem("INT-500-INTERNAL", "Something went wrong here; the request id leads to the log.")


def _fields(error: RequestValidationError) -> list[FieldError]:
    found = []
    for problem in error.errors()[:50]:
        place, *rest = [str(part) for part in problem["loc"]] or ["body"]
        pointer = "/" + "/".join(_escaped(part) for part in rest) if place == "body" else "/".join([place, *rest])
        message = str(problem["msg"]).removeprefix("Value error, ")
        found.append(FieldError(pointer=pointer if rest else "", detail=message[:300]))
    return found


def _escaped(part: str) -> str:
    """One step of a JSON pointer, RFC 6901 section 3; what a client wrote there is cut and kept printable."""
    shown = part[:64].encode("unicode_escape").decode("ascii")
    return shown.replace("~", "~0").replace("/", "~1")
