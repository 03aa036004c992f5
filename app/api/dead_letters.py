"""`/v1/dead-letters`: what ran out, one by one with its evidence, and grouped by cause."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from app.api.guarded_route import GuardedRoute
from app.api.pages import Listed, Paged, answer_items, answer_page
from app.api.surroundings import caller_of, surroundings_of
from app.api.values import Id, Moment, Shown, When, Word
from app.dead_letter_groups import groups
from app.listings import page_of_dead_letters
from app.reads import show_dead_letter
from app.selection import make_selector

router = APIRouter(route_class=GuardedRoute, tags=["dead letters"])

#: Dead letters that grouping looks at, oldest first.
GROUPED_MAX = 20_000


class DeadLetterFilters(Paged):
    """Every filter must hold."""

    status: Literal["open", "replayed", "resolved"] | None = None
    endpoint_id: Id | None = None
    request_id: Word | None = None
    event_type: Annotated[Word | None, Field(description="An exact type.")] = None
    failure_class: Annotated[Word | None, Field(description="Such as `timeout` or `http_status`.")] = None
    http_status: Annotated[int | None, Field(ge=100, le=999)] = None
    since: Annotated[When | None, Field(description="Filed then or later (RFC 3339).")] = None
    until: Annotated[When | None, Field(description="Filed earlier.")] = None


class DeadLetter(Shown):
    """A delivery that ran out."""

    id: Id
    delivery_id: Id
    event_id: Id
    event_type: str
    request_id: str
    endpoint_id: Id
    failure_class: str
    failure_detail: str | None
    last_http_status: int | None
    attempts: int
    status: Literal["open", "replayed", "resolved"]
    created_at: Moment
    updated_at: Moment


class DeadLetterWithEvidence(DeadLetter):
    """All that is needed to send it again, and to say why it stopped."""

    generation: int
    traceparent: str | None
    idempotency_key: str | None
    run_id: str | None
    payload: str = Field(description="The JSON text exactly as it is signed and sent.")
    headers: dict[str, Any] | None
    response: str | None = Field(description="The last answer's beginning, redacted.")


class GroupFilters(BaseModel):
    """Which open dead letters are grouped; all of them when nothing is given."""

    model_config = ConfigDict(extra="forbid")

    endpoint_id: Id | None = None
    event_type: Annotated[Word | None, Field(description="An exact type.", pattern=r"^[!-)+-~]{1,254}$")] = None
    failure_class: Word | None = None
    after: Annotated[When | None, Field(description="Filed then or later (RFC 3339).")] = None
    limit: Annotated[int, Field(ge=1, le=200, description="Groups, at most.")] = 50


class Group(Shown):
    """Open dead letters of one endpoint with one cause."""

    endpoint_id: Id
    failure_class: str
    http_status: int | None
    detail: str | None = Field(description="The error without ids, numbers and quotations.")
    count: int
    first_seen: Moment
    last_seen: Moment
    samples: list[Id] = Field(description="Ids of at most 3 of them.")


@router.get("/v1/dead-letters", operation_id="listDeadLetters", response_model=Listed[DeadLetter])
async def list_dead_letters(request: Request, asked: Annotated[DeadLetterFilters, Query()]) -> Response:
    """Dead letters that match every filter, newest first."""
    tenant = str(caller_of(request).tenant_id)
    before = asked.before()
    async with surroundings_of(request).transaction(tenant) as connection:
        page = await page_of_dead_letters(
            connection, tenant_id=tenant, filters=asked.filters(), before=before, limit=asked.limit
        )
    return answer_page(request, DeadLetter, asked, page)


@router.get("/v1/dead-letters/groups", operation_id="listDeadLetterGroups", response_model=Listed[Group])
async def list_groups(request: Request, asked: Annotated[GroupFilters, Query()]) -> Response:
    """Open dead letters grouped by endpoint and cause, largest group first. Looks at the 20,000 oldest that match."""
    tenant = str(caller_of(request).tenant_id)
    conditions = asked.model_dump(exclude_none=True, exclude={"limit"})
    selector = make_selector(**conditions) if conditions else None
    async with surroundings_of(request).transaction(tenant) as connection:
        found = await groups(connection, tenant, selector, asked.limit, max_scan=GROUPED_MAX)
    return answer_items(request, Group, found)


@router.get("/v1/dead-letters/{dead_letter_id}", operation_id="getDeadLetter", response_model=DeadLetterWithEvidence)
async def show(request: Request, dead_letter_id: Annotated[Id, Path(description="The dead letter's id.")]) -> Response:
    """One dead letter with its evidence: payload, the last answer, the failure."""
    tenant = str(caller_of(request).tenant_id)
    async with surroundings_of(request).transaction(tenant) as connection:
        found = await show_dead_letter(connection, tenant_id=tenant, dead_letter_id=dead_letter_id)
    return Response(DeadLetterWithEvidence.model_validate(found).model_dump_json(), media_type="application/json")
