"""Pages of listings: newest first, after an opaque cursor; nothing is skipped or repeated while rows are added."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Annotated, Any, Generic, TypeVar
from urllib.parse import urlencode
from uuid import UUID

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from app.api.problems import FieldError, Problem
from app.listings import Page

T = TypeVar("T", bound=BaseModel)

LIMIT_MAX = 200
#: How much of a cursor says which listing and which filters it was made with.
_MARK_BYTES = 6


class Continued(BaseModel):
    """Query parameters of every listing; anything else in the query is refused, so that no misspelt filter is ignored."""

    model_config = ConfigDict(extra="forbid")

    limit: Annotated[int, Field(ge=1, le=LIMIT_MAX, description="Entries on a page, at most.")] = 50
    cursor: str | None = None

    def filters(self) -> dict[str, Any]:
        """What is asked for, apart from which page of it."""
        return self.model_dump(exclude_none=True, exclude={"limit", "cursor"})

    def _last(self) -> bytes | None:
        """What the cursor was made of; None on the first page.

        Raises:
            Problem: the cursor is none of ours, or was made with other filters.
        """
        if self.cursor is None:
            return None
        raw = urlsafe_b64decode(self.cursor + "=" * (-len(self.cursor) % 4)) if len(self.cursor) % 4 != 1 else b""
        last = raw[:-_MARK_BYTES]
        if not last or self._cursor(last) != self.cursor:
            raise self._not_ours()
        return last

    def _cursor(self, last: bytes) -> str:
        asked = sorted((name, str(value)) for name, value in self.filters().items())
        mark = sha256(repr((type(self).__name__, asked)).encode()).digest()[:_MARK_BYTES]
        return urlsafe_b64encode(last + mark).rstrip(b"=").decode()

    def _not_ours(self) -> Problem:
        error = FieldError(pointer="query/cursor", detail="is not the next of a page with these filters")
        return Problem("INT-400-INVALID-PAYLOAD", "The request is not valid; see errors.", errors=[error])


class Paged(Continued):
    """A listing in order of ids that are UUIDs, newest first."""

    cursor: Annotated[
        str | None,
        Field(
            min_length=30,
            max_length=30,
            pattern="^[A-Za-z0-9_-]{30}$",
            description="`next` of the page before, with the same filters.",
        ),
    ] = None

    def before(self) -> UUID | None:
        """The id that the page begins below.

        Raises:
            Problem: the cursor is none of ours, or was made with other filters.
        """
        last = self._last()
        return None if last is None else UUID(bytes=last)

    def cursor_after(self, last: UUID) -> str:
        """What leads to the page after the entry with this id."""
        return self._cursor(last.bytes)


class PagedByName(Continued):
    """A listing in order of ids that are words, in order of the alphabet."""

    cursor: Annotated[
        str | None,
        Field(
            min_length=10,
            max_length=94,
            pattern="^[A-Za-z0-9_-]{10,94}$",
            description="`next` of the page before, with the same filters.",
        ),
    ] = None

    def after(self) -> str:
        """The id that the page begins above; empty on the first page.

        Raises:
            Problem: the cursor is none of ours, or was made with other filters.
        """
        last = self._last() or b""
        if not last.isascii():
            raise self._not_ours()
        return last.decode("ascii")

    def answer(self, request: Request, shown: type[T], rows: Sequence[Mapping[str, Any]]) -> Response:
        """The answer for rows with `id`, of which one more than `limit` was looked for."""
        page = rows[: self.limit]
        following = self._cursor(str(page[-1]["id"]).encode()) if len(rows) > self.limit else None
        return answer_items(request, shown, page, following, self)


class Listed(BaseModel, Generic[T]):
    """One page."""

    items: list[T]
    next: str | None = Field(
        description="The `cursor` of the next page; null on the last one. A page may be short, or empty, and still have a "
        "next one: a search looks at a bounded number of rows at a time."
    )


def answer_page(request: Request, shown: type[T], asked: Paged, page: Page) -> Response:
    """The answer for a page of stored rows, with the header `Link` when there are more."""
    following = None if page.next_before is None else asked.cursor_after(page.next_before)
    return answer_items(request, shown, page.rows, following, asked)


def answer_items(
    request: Request,
    shown: type[T],
    rows: Iterable[Mapping[str, Any]] | Sequence[object],
    following: str | None = None,
    asked: BaseModel | None = None,
) -> Response:
    """The answer for a list of stored rows."""
    items = [shown.model_validate(row) for row in rows]
    body = Listed[shown](items=items, next=following)  # type: ignore[valid-type]
    headers = {}
    if following is not None and asked is not None:
        query = asked.model_dump(mode="json", exclude_none=True, exclude={"cursor"}) | {"cursor": following}
        headers["link"] = f'<{request.url.path}?{urlencode(query)}>; rel="next"'
    return Response(body.model_dump_json(), 200, headers, "application/json")
