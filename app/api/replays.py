"""`/v1/replays`: send everything that a selector matches again; follow it; stop it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from app.api.guarded_route import GuardedRoute
from app.api.pages import Listed, Paged, answer_page
from app.api.surroundings import caller_of, surroundings_of
from app.api.values import Body, Id, Moment, Reason, Shown, When, Whole, Word
from app.api.writes import Answer, Write, write_of
from app.bulk_replay import cancel_replay, list_replays, replay_progress, request_bulk_replay
from app.listings import Page
from app.replay_guard import check_replay
from app.selection import make_selector, preview

router = APIRouter(route_class=GuardedRoute, tags=["replays"])

ReplayId = Annotated[Id, Path(description="The replay's id.")]
#: A condition is left out, never null.
Absent = SkipJsonSchema[None]
ReplayState = Literal["requested", "running", "done", "cancelled"]


class Selection(Body):
    """Which open dead letters; every condition must hold, and at least one must be given."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"minProperties": 1, "examples": [{"failure_class": "timeout"}]}
    )

    request_id: Word | Absent = None
    event_id: Id | Absent = None
    delivery_id: Id | Absent = None
    run_id: Word | Absent = None
    endpoint_id: Id | Absent = None
    event_type: (
        Annotated[
            str,
            Field(pattern=r"^[!-)+-~]{1,254}(\.\*)?$", max_length=256, description="An exact type, or `prefix.*`."),
        ]
        | Absent
    ) = None
    failure_class: Word | Absent = None
    http_status: Annotated[int, Field(strict=True, ge=100, le=999), Whole] | Absent = None
    source: Annotated[Word, Field(description="The event type up to its first dot.")] | Absent = None
    look_back_minutes: Annotated[int, Field(strict=True, ge=1, le=5_256_000), Whole] | Absent = None
    after: Annotated[When, Field(description="Filed then or later.")] | Absent = None
    before: Annotated[When, Field(description="Filed earlier.")] | Absent = None

    @model_validator(mode="after")
    def _says_what_it_means(self) -> Selection:
        if not self.model_fields_set or any(getattr(self, name) is None for name in self.model_fields_set):
            raise ValueError("give at least one condition, and leave out what you do not mean")
        return self


class BulkReplayOrder(Body):
    """What is to be sent again, why, and how fast."""

    selector: Annotated[Selection, Field(examples=[{"endpoint_id": "0193a5f2-c1d8-7c3e-9b2a-4f5e6d7c8b9a"}])]
    reason: Reason
    dry_run: Annotated[
        bool, Field(strict=True, description="Only say what would be sent again. True unless you say otherwise.")
    ] = True
    expected_count: Annotated[
        int | None,
        Field(
            strict=True, ge=0, le=1_000_000, description="`matched` of the dry run: refused when it grew by a tenth."
        ),
        Whole,
    ] = None
    max_items: Annotated[int, Field(strict=True, ge=1, le=50_000, description="The oldest so many."), Whole] = 10_000
    max_scan: Annotated[int, Field(strict=True, ge=1, le=100_000, description="Dead letters to look at."), Whole] = (
        100_000
    )
    rate_per_s: Annotated[float, Field(strict=True, ge=0.01, le=1000)] = 100.0
    concurrency: Annotated[
        int, Field(strict=True, ge=1, le=20, description="Under way at once; above 10 needs the switch."), Whole
    ] = 10
    allow_high_concurrency: Annotated[bool, Field(strict=True)] = False
    confirm_large: Annotated[
        bool, Field(strict=True, description="Needed for 50 or more matches at a concurrency above 10.")
    ] = False
    delete_after: Annotated[bool, Field(strict=True, description="Remove each dead letter once it is delivered.")] = (
        False
    )


class EndpointCount(Shown):
    """How many dead letters of one endpoint match."""

    endpoint_id: Id
    count: int


class BulkReplayPreview(Shown):
    """What a bulk replay would come to; nothing was done."""

    dry_run: Literal[True] = True
    matched: int = Field(description="Open dead letters that match.")
    items: int = Field(description="How many of them would be sent again.")
    estimated_s: float
    truncated: bool = Field(description="More than `max_scan` would have to be looked at: the oldest were.")
    oldest: Moment | None = Field(description="When the first of them was filed.")
    newest: Moment | None
    endpoints: list[EndpointCount] = Field(description="How many match of each endpoint, most first.")


class BulkReplay(Shown):
    """A bulk replay that was ordered."""

    replay_id: Id
    dry_run: Literal[False] = False
    matched: int = Field(description="Open dead letters that match.")
    items: int = Field(description="How many of them are sent again.")
    skipped: dict[str, int] = Field(description="Why the others are not.")
    estimated_s: float


class Progress(Shown):
    """How a replay stands; the numbers from `waiting` to `cancelled` add up to `items`."""

    replay_id: Id
    state: ReplayState
    request_id: str | None
    selector: dict[str, Any] | None
    reason: str
    actor: str
    matched: int | None
    rate_per_s: float | None
    concurrency: int | None
    delete_after: bool
    items: int
    waiting: int
    under_way: int
    retrying: int
    resolved: int
    failed: int
    conflict: int
    cancelled: int
    created_at: Moment
    done_at: Moment | None
    cancelled_by: str | None
    cancel_reason: str | None


class ReplayFilters(Paged):
    """Which replays are shown."""

    state: ReplayState | None = None


class Cancellation(Body):
    """Why a replay is stopped."""

    reason: Reason


@router.post(
    "/v1/replays",
    operation_id="createReplay",
    status_code=202,
    response_model=BulkReplay,
    responses={200: {"model": BulkReplayPreview, "description": "A dry run: nothing was done."}},
)
async def create(order: BulkReplayOrder, write: Annotated[Write, Depends(write_of)]) -> Response:
    """Send every open dead letter that matches again, in paced batches. A dry run (the default) only says how many."""
    tenant = str(write.caller.tenant_id)
    selector = make_selector(**order.selector.model_dump(exclude_none=True))

    async def work(connection: AsyncConnection) -> Answer:
        seen = await preview(
            connection,
            tenant,
            selector,
            max_scan=order.max_scan,
            rate_per_s=order.rate_per_s,
            concurrency=order.concurrency,
        )
        check_replay(
            concurrency=order.concurrency,
            matched=seen.count,
            allow_high=order.allow_high_concurrency,
            confirmed_large=order.confirm_large,
            threshold=write.surroundings.settings.replay_confirm_threshold,
        )
        if order.dry_run:
            return Answer(
                200,
                BulkReplayPreview(
                    matched=seen.count,
                    items=min(seen.count, order.max_items),
                    estimated_s=seen.estimated_s,
                    truncated=seen.truncated,
                    oldest=seen.oldest,
                    newest=seen.newest,
                    endpoints=[EndpointCount(endpoint_id=id_, count=count) for id_, count in seen.endpoints],
                ),
            )
        made = await request_bulk_replay(
            connection,
            tenant_id=tenant,
            selector=selector,
            reason=order.reason,
            actor=write.caller.actor,
            expected_count=order.expected_count,
            rate_per_s=order.rate_per_s,
            max_items=order.max_items,
            delete_after=order.delete_after,
            concurrency=order.concurrency,
            max_scan=order.max_scan,
        )
        body = BulkReplay.model_validate(asdict(made))
        return Answer(202, body, {"location": f"/v1/replays/{made.replay_id}"})

    return await write.once(work)


@router.get("/v1/replays", operation_id="listReplays", response_model=Listed[Progress])
async def list_all(request: Request, asked: Annotated[ReplayFilters, Query()]) -> Response:
    """Replays, newest first, each with its progress."""
    tenant = str(caller_of(request).tenant_id)
    before = asked.before()
    async with surroundings_of(request).transaction(tenant) as connection:
        found = await list_replays(connection, tenant, limit=asked.limit, before=before, state=asked.state)
    following = found[-1].replay_id if len(found) == asked.limit else None
    return answer_page(request, Progress, asked, Page([asdict(replay) for replay in found], following))


@router.get("/v1/replays/{replay_id}", operation_id="getReplay", response_model=Progress)
async def show(request: Request, replay_id: ReplayId) -> Response:
    """How a replay stands. It is over when nothing waits, is under way or will be tried again."""
    tenant = str(caller_of(request).tenant_id)
    async with surroundings_of(request).transaction(tenant) as connection:
        found = await replay_progress(connection, tenant, replay_id)
    return Response(Progress.model_validate(found).model_dump_json(), media_type="application/json")


@router.post("/v1/replays/{replay_id}/cancel", operation_id="cancelReplay", response_model=Progress)
async def cancel(replay_id: ReplayId, why: Cancellation, write: Annotated[Write, Depends(write_of)]) -> Response:
    """Stop a replay: what waits stays a dead letter, what was sent again goes on."""
    tenant = str(write.caller.tenant_id)

    async def work(connection: AsyncConnection) -> Answer:
        found = await cancel_replay(connection, tenant, replay_id, write.caller.actor, why.reason)
        return Answer(200, Progress.model_validate(found))

    return await write.once(work)
