"""`/v1/events`: commit an event, and see what became of everything with a request id."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Request
from pydantic import Field
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from app.api.guarded_route import GuardedRoute
from app.api.pages import Listed, answer_items
from app.api.surroundings import caller_of, surroundings_of
from app.api.values import Body, Id, Moment, Shown, Word
from app.api.writes import Answer, Write, write_of
from app.delivery_headers import check_event_headers
from app.event_publication import events_of_request, publish_event

router = APIRouter(route_class=GuardedRoute, tags=["events"])


class NewEvent(Body):
    """An event, as a producer's outbox row has it; the tenant is the key's."""

    event_type: Annotated[str, Field(pattern=r"^[!-)+-~]{1,256}$", examples=["invoice.paid"])]
    payload: Annotated[Any, Field(description="Any JSON; becomes the request's body.", examples=[{"invoice": 42}])]
    request_id: Annotated[
        Word | None,
        Field(
            description="Your correlation id; by default the header X-Request-Id, or one that is made.",
            examples=["order-4711"],
        ),
    ] = None
    idempotency_key: Annotated[
        Word | None, Field(description="The same key never causes a second set of deliveries, however it is written.")
    ] = None
    traceparent: Annotated[
        str | None,
        Field(
            pattern="^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
            description="W3C Trace Context, passed on; by default the request's header.",
        ),
    ] = None
    run_id: Word | None = None
    ordering_key: Word | None = None
    headers: Annotated[
        dict[str, str] | None,
        Field(max_length=20, description="Extra request headers.", examples=[{"x-source": "billing"}]),
    ] = None


class Accepted(Shown):
    """The event is committed: it will be delivered, or kept as a dead letter."""

    id: Id = Field(description="Becomes the `webhook-id` that receivers see.")
    request_id: str


class Attempt(Shown):
    """One HTTP call, redacted."""

    number: int = Field(description="1 is the first since the fan-out or the last replay.")
    generation: int
    started_at: Moment
    duration_ms: int | None
    outcome: str
    failure_class: str | None
    retryable: bool
    http_status: int | None
    error: str | None
    response_excerpt: str | None
    retry_at: Moment | None


class EventDelivery(Shown):
    """One event for one endpoint."""

    id: Id
    endpoint_id: Id
    state: str
    attempts: int
    replays: int
    last_status: int | None
    last_class: str | None
    last_error: str | None
    next_attempt_at: Moment | None
    created_at: Moment
    delivered_at: Moment | None
    failed_at: Moment | None
    timeline: list[Attempt]


class Event(Shown):
    """An event, wherever it is."""

    id: Id
    place: Literal["waiting", "set_aside", "taken"] = Field(description="In the outbox, set aside, or fanned out.")
    event_type: str
    request_id: str | None
    idempotency_key: str | None
    traceparent: str | None
    run_id: str | None
    ordering_key: str | None
    payload: str = Field(description="The JSON text exactly as it is signed and sent.")
    created_at: Moment
    taken_at: Moment | None
    duplicate_of: UUID | None = Field(
        description="The event that had this idempotency key first; this one is not sent."
    )
    reason: str | None = Field(description="Why it was set aside.")
    deliveries: list[EventDelivery]


@router.post("/v1/events", operation_id="publishEvent", status_code=202, response_model=Accepted)
async def publish(request: Request, new: NewEvent, write: Annotated[Write, Depends(write_of)]) -> Response:
    """Commit an event to the outbox. 202 means that it is committed, and will be delivered or dead-lettered."""
    headers = check_event_headers(new.headers) if new.headers is not None else None

    async def work(connection: AsyncConnection) -> Answer:
        made = await publish_event(
            connection,
            tenant_id=str(write.caller.tenant_id),
            event_type=new.event_type,
            body=write.body.decode(),
            request_id=new.request_id or request.state.given_request_id,
            idempotency_key=new.idempotency_key,
            traceparent=new.traceparent or request.state.traceparent,
            run_id=new.run_id,
            ordering_key=new.ordering_key,
            headers=headers,
            payload_max_bytes=write.surroundings.settings.payload_max_bytes,
        )
        return Answer(202, Accepted(**made))

    return await write.once(work)


@router.get("/v1/events/{request_id:path}", operation_id="getEvents", response_model=Listed[Event])
async def show(
    request: Request,
    request_id: Annotated[
        str, Path(min_length=1, max_length=256, pattern=r"^[^\x00]+$", description="The producer's correlation id.")
    ],
) -> Response:
    """Every event with this request id, oldest first, with its deliveries and their attempts; at most 100 events."""
    tenant = str(caller_of(request).tenant_id)
    async with surroundings_of(request).transaction(tenant) as connection:
        found = await events_of_request(connection, tenant_id=tenant, request_id=request_id)
    return answer_items(request, Event, found)
