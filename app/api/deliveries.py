"""`/v1/deliveries`: list them, look at one with its attempts, send one again."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import Field
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from app.api.events import Attempt
from app.api.guarded_route import GuardedRoute
from app.api.pages import Listed, Paged, answer_page
from app.api.problems import Problem
from app.api.recovery import ReplayOrder, ReplayStarted, replay_one
from app.api.surroundings import caller_of, surroundings_of
from app.api.values import Id, Moment, Shown, When, Word
from app.api.writes import Answer, Write, write_of
from app.listings import delivery_with_attempts, page_of_deliveries
from app.states import DeliveryState

router = APIRouter(route_class=GuardedRoute, tags=["deliveries"])

DeliveryId = Annotated[Id, Path(description="The delivery's id.")]


class DeliveryFilters(Paged):
    """Every filter must hold."""

    state: DeliveryState | None = None
    endpoint_id: Id | None = None
    event_id: Id | None = None
    request_id: Word | None = None
    event_type: Annotated[Word | None, Field(description="An exact type.")] = None
    failure_class: Annotated[Word | None, Field(description="Of the last attempt, such as `timeout`.")] = None
    http_status: Annotated[int | None, Field(ge=100, le=999, description="Of the last attempt.")] = None
    since: Annotated[When | None, Field(description="Made then or later (RFC 3339).")] = None
    until: Annotated[When | None, Field(description="Made earlier.")] = None


class Delivery(Shown):
    """One event for one endpoint."""

    id: Id
    event_id: Id
    event_type: str | None
    request_id: str | None
    endpoint_id: Id
    state: DeliveryState
    attempts: int = Field(description="Since the fan-out or the last replay.")
    replays: int
    last_outcome: str | None
    last_class: str | None
    last_status: int | None
    last_error: str | None
    next_attempt_at: Moment | None
    parked: bool = Field(description="Waits because its endpoint is not active.")
    last_attempt_at: Moment | None
    created_at: Moment
    delivered_at: Moment | None
    failed_at: Moment | None


class DeliveryWithAttempts(Delivery):
    """A delivery and every attempt of it, oldest first."""

    timeline: list[Attempt]


@router.get("/v1/deliveries", operation_id="listDeliveries", response_model=Listed[Delivery])
async def list_deliveries(request: Request, asked: Annotated[DeliveryFilters, Query()]) -> Response:
    """Deliveries that match every filter, newest first."""
    tenant = str(caller_of(request).tenant_id)
    before = asked.before()
    async with surroundings_of(request).transaction(tenant) as connection:
        page = await page_of_deliveries(
            connection, tenant_id=tenant, filters=asked.filters(), before=before, limit=asked.limit
        )
    return answer_page(request, Delivery, asked, page)


@router.get("/v1/deliveries/{delivery_id}", operation_id="getDelivery", response_model=DeliveryWithAttempts)
async def show(request: Request, delivery_id: DeliveryId) -> Response:
    """One delivery with its attempts."""
    tenant = str(caller_of(request).tenant_id)
    async with surroundings_of(request).transaction(tenant) as connection:
        found = await delivery_with_attempts(connection, tenant_id=tenant, delivery_id=delivery_id)
    if found is None:
        raise Problem("INT-404-NOT-FOUND", "There is no such thing, or it is not yours.")
    body = DeliveryWithAttempts.model_validate(found).model_dump_json()
    return Response(body, media_type="application/json")


@router.post(
    "/v1/deliveries/{delivery_id}/retry", operation_id="retryDelivery", status_code=202, response_model=ReplayStarted
)
async def retry(delivery_id: DeliveryId, order: ReplayOrder, write: Annotated[Write, Depends(write_of)]) -> Response:
    """Send a failed or dead-lettered delivery again: a replay of one. Any other state is a conflict."""

    async def work(connection: AsyncConnection) -> Answer:
        started = await replay_one(connection, write.caller, delivery_id, order.reason)
        return Answer(202, started, {"location": f"/v1/replays/{started.replay_id}"})

    return await write.once(work)
