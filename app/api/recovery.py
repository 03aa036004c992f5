"""The recovery queue: dead letters as work for an operator; each can be replayed with a reason."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import Field
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from app.api.guarded_route import GuardedRoute
from app.api.pages import Listed, Paged, answer_page
from app.api.problems import Problem
from app.api.surroundings import caller_of, surroundings_of
from app.api.values import Body, EndpointId, Id, Moment, Reason, Shown
from app.api.writes import Answer, Write, write_of
from app.api_keys import Caller
from app.errors import Conflict
from app.listings import page_of_dead_letters
from app.replays import request_replay

router = APIRouter(route_class=GuardedRoute, tags=["recovery"])

_ENTRY = text(
    """
    SELECT delivery_id, status FROM dead_letters
    WHERE tenant_id = :tenant_id AND endpoint_id = :endpoint_id AND id = :id
    """
)
_ENDPOINT = text("SELECT id FROM endpoints WHERE tenant_id = :tenant_id AND id = :id")


class QueueFilters(Paged):
    """What of the queue is shown."""

    status: Annotated[
        Literal["open", "replayed", "resolved"],
        Field(description="open: waits for a person. replayed: sent again, no success yet. resolved: delivered since."),
    ] = "open"


class RecoveryEntry(Shown):
    """One entry of the queue."""

    recovery_id: Id = Field(validation_alias="id", description="The dead letter's id.")
    status: Literal["open", "replayed", "resolved"]
    delivery_id: Id
    endpoint_id: Id
    event_id: Id
    event_type: str
    request_id: str
    failure_class: str
    failure_detail: str | None
    last_http_status: int | None
    attempts: int
    created_at: Moment
    updated_at: Moment


class ReplayOrder(Body):
    """Why something is sent again."""

    reason: Reason


class ReplayStarted(Shown):
    """A replay was written down; a poller and a worker carry it out."""

    replay_id: Id
    delivery_id: Id
    request_id: str
    previous_state: str = Field(description="What the delivery really was.")


@router.get("/v1/recovery/queue", operation_id="listRecoveryQueue", response_model=Listed[RecoveryEntry])
async def list_queue(request: Request, asked: Annotated[QueueFilters, Query()]) -> Response:
    """The recovery queue of all endpoints, newest first."""
    return await _queue(request, asked, None)


@router.get(
    "/v1/endpoints/{endpoint_id}/recovery/queue",
    operation_id="listEndpointRecoveryQueue",
    response_model=Listed[RecoveryEntry],
)
async def list_queue_of_endpoint(
    request: Request, endpoint_id: EndpointId, asked: Annotated[QueueFilters, Query()]
) -> Response:
    """One endpoint's recovery queue, newest first."""
    return await _queue(request, asked, endpoint_id)


@router.post(
    "/v1/endpoints/{endpoint_id}/recovery/queue/{recovery_id}/replay",
    operation_id="replayRecovery",
    status_code=202,
    response_model=ReplayStarted,
)
async def replay(
    endpoint_id: EndpointId,
    recovery_id: Annotated[Id, Path(description="The entry's id.")],
    order: ReplayOrder,
    write: Annotated[Write, Depends(write_of)],
) -> Response:
    """Send an open entry's delivery again. It counts as resolved only once that is delivered."""
    tenant = str(write.caller.tenant_id)

    async def work(connection: AsyncConnection) -> Answer:
        where = {"tenant_id": tenant, "endpoint_id": endpoint_id, "id": recovery_id}
        entry = (await connection.execute(_ENTRY, where)).one_or_none()
        if entry is None:
            raise Problem("INT-404-RECOVERY-NOT-FOUND", "There is no such entry in this endpoint's recovery queue.")
        if entry.status != "open":
            said = f"The entry is {entry.status}; only open ones can be replayed."
            raise Problem("INT-409-RECOVERY-REPLAY-CONFLICT", said)
        started = await replay_one(connection, write.caller, entry.delivery_id, order.reason)
        return Answer(202, started, {"location": f"/v1/replays/{started.replay_id}"})

    return await write.once(work)


async def replay_one(connection: AsyncConnection, caller: Caller, delivery_id: UUID, reason: str) -> ReplayStarted:
    """Write down that one delivery is to be sent again.

    Raises:
        Problem: it is not failed or dead-lettered, or has a replay waiting.
        NotFound: the tenant has none with this id.
    """
    try:
        answer = await request_replay(
            connection,
            tenant_id=str(caller.tenant_id),
            delivery_id=delivery_id,
            reason=reason,
            actor=caller.actor,
        )
    except Conflict as error:
        raise Problem("INT-409-RECOVERY-REPLAY-CONFLICT", str(error)) from error
    (one,) = answer.deliveries
    return ReplayStarted.model_validate({"replay_id": answer.replay_id, "request_id": answer.request_id} | one)


async def _queue(request: Request, asked: QueueFilters, endpoint_id: UUID | None) -> Response:
    tenant = str(caller_of(request).tenant_id)
    before, filters = asked.before(), asked.filters()
    async with surroundings_of(request).transaction(tenant) as connection:
        if endpoint_id is not None:
            filters["endpoint_id"] = endpoint_id
            found = await connection.execute(_ENDPOINT, {"tenant_id": tenant, "id": endpoint_id})
            if found.one_or_none() is None:
                raise Problem("INT-404-NOT-FOUND", "There is no such thing, or it is not yours.")
        page = await page_of_dead_letters(
            connection, tenant_id=tenant, filters=filters, before=before, limit=asked.limit
        )
    return answer_page(request, RecoveryEntry, asked, page)
