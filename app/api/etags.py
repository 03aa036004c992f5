"""ETags in conditional requests (RFC 9110, sections 8.8.3 and 13.1), read by the letter: what cannot be read is refused."""

from __future__ import annotations

import re
from typing import Annotated, Final

from fastapi import Depends, Header, Request

from app.api.problems import FieldError, Problem

_TAG: Final = '(?:W/)?"[!#-~]*"'
#: What If-Match may be, for the API's description and for the API itself: `*`, or ETags with commas between them.
IF_MATCH_PATTERN: Final = rf"^(\*|[ \t,]*{_TAG}([ \t]*,[ \t,]*{_TAG})*[ \t,]*)$"
_IF_MATCH = re.compile(IF_MATCH_PATTERN)
_EACH = re.compile(_TAG)


def tags_that_may_match(
    request: Request,
    if_match: Annotated[
        str | None,
        Header(
            alias="If-Match",
            description="The ETag that you have seen: refused with 412 if the endpoint has changed since. Also a list of them, "
            "or `*`. A weak one never matches.",
            json_schema_extra={"pattern": IF_MATCH_PATTERN, "example": '"3-1"'},
        ),
    ] = None,
) -> list[str] | None:
    """The strong ETags of a request's If-Match, in quotes, or `*`, for routes to depend on; None without a condition.

    Raises:
        Problem: 400, it is empty or malformed. A condition that cannot be read is never taken for one that holds.
    """
    if if_match is None:
        return None
    given = _all_of(request, "if-match")
    if not _IF_MATCH.fullmatch(given):
        error = FieldError(pointer="header/If-Match", detail="must be an ETag as it was sent, in quotes")
        raise Problem("INT-400-INVALID-PAYLOAD", "The request is not valid; see errors.", errors=[error])
    if given == "*":
        return ["*"]
    # Tag by tag: commas and asterisks inside quotes are the tag's.
    return [tag for tag in _EACH.findall(given) if not tag.startswith("W/")]


#: The condition of a write, as `app.endpoint_changes` takes it.
IfMatch = Annotated[list[str] | None, Depends(tags_that_may_match)]


def is_still(request: Request, tag: str) -> bool:
    """Whether a request's If-None-Match names this ETag, weakly or strongly; a malformed one names nothing."""
    given = _all_of(request, "if-none-match")
    tags = _EACH.findall(given) if _IF_MATCH.fullmatch(given) else ()
    return given == "*" or tag in [found.removeprefix("W/") for found in tags]


def _all_of(request: Request, name: str) -> str:
    """A header that is a list, in one line even when it came in several (RFC 9110 section 5.3)."""
    return ", ".join(request.headers.getlist(name)).strip(" \t")
