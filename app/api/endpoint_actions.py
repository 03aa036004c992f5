"""What is done to an endpoint besides changing it: pause, resume, a new secret, a test event."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import Field
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from app.api.endpoints import Secret
from app.api.guarded_route import GuardedRoute
from app.api.values import Body, EndpointId, Id, Moment, Reason, Shown, Whole
from app.api.writes import Answer, Write, write_of
from app.endpoints import pause_endpoint, resume_endpoint, rotate_secret
from app.event_publication import send_test_event

router = APIRouter(route_class=GuardedRoute, tags=["endpoints"])


class Why(Body):
    """Why something is done to an endpoint."""

    reason: Reason | None = None


class Rotation(Body):
    """How a secret is replaced."""

    overlap_s: Annotated[
        int, Field(strict=True, ge=0, le=604_800, description="How long the old secrets sign too."), Whole
    ] = 86_400
    secret: Secret = None
    reason: Reason | None = None


class Resumed(Shown):
    """An endpoint that is called again."""

    id: Id
    status: Literal["active"]
    deliveries_freed: int = Field(description="How many deliveries had waited.")


class Paused(Shown):
    """An endpoint that is not called for now."""

    id: Id
    status: Literal["paused"]


class ExpiringKey(Shown):
    """An old key, and when it stops signing."""

    key_id: str
    expires_at: Moment


class Rotated(Shown):
    """A new secret; the only time that it is shown."""

    id: Id
    key_id: str
    secret: str | None = Field(description="Shown this once; null when it was yours.")
    expiring: list[ExpiringKey]


class TestSent(Shown):
    """A test event is on its way to this endpoint only."""

    delivery_id: Id
    event_id: Id
    request_id: str


@router.post("/v1/endpoints/{endpoint_id}/pause", operation_id="pauseEndpoint", response_model=Paused)
async def pause(endpoint_id: EndpointId, why: Why, write: Annotated[Write, Depends(write_of)]) -> Response:
    """Hold its deliveries back. New events still fan out to it, and wait without using up attempts."""

    async def work(connection: AsyncConnection) -> Answer:
        await pause_endpoint(
            connection,
            tenant_id=str(write.caller.tenant_id),
            endpoint_id=endpoint_id,
            actor=write.caller.actor,
            reason=why.reason,
        )
        return Answer(200, Paused(id=endpoint_id, status="paused"))

    return await write.once(work)


@router.post("/v1/endpoints/{endpoint_id}/resume", operation_id="resumeEndpoint", response_model=Resumed)
async def resume(endpoint_id: EndpointId, why: Why, write: Annotated[Write, Depends(write_of)]) -> Response:
    """Call a paused or disabled endpoint again; what waited is due at once."""

    async def work(connection: AsyncConnection) -> Answer:
        freed = await resume_endpoint(
            connection,
            tenant_id=str(write.caller.tenant_id),
            endpoint_id=endpoint_id,
            actor=write.caller.actor,
            reason=why.reason,
        )
        return Answer(200, Resumed(id=endpoint_id, status="active", deliveries_freed=freed))

    return await write.once(work)


@router.post("/v1/endpoints/{endpoint_id}/rotate-secret", operation_id="rotateEndpointSecret", response_model=Rotated)
async def rotate(endpoint_id: EndpointId, how: Rotation, write: Annotated[Write, Depends(write_of)]) -> Response:
    """Give it a new signing secret; the old ones sign beside it until the overlap ends."""

    async def work(connection: AsyncConnection) -> Answer:
        made = await rotate_secret(
            connection,
            write.surroundings.keys,
            tenant_id=str(write.caller.tenant_id),
            endpoint_id=endpoint_id,
            actor=write.caller.actor,
            reason=how.reason,
            overlap=timedelta(seconds=how.overlap_s),
            secret=how.secret,
        )
        if how.secret is not None:
            made["secret"] = None
        return Answer(200, Rotated.model_validate(made), secret=True)

    return await write.once(work)


@router.post(
    "/v1/endpoints/{endpoint_id}/test-event", operation_id="sendTestEvent", status_code=202, response_model=TestSent
)
async def send_test(request: Request, endpoint_id: EndpointId, write: Annotated[Write, Depends(write_of)]) -> Response:
    """Send an event of type `homing.test` to this endpoint only, whatever it subscribes to."""

    async def work(connection: AsyncConnection) -> Answer:
        sent = await send_test_event(
            connection,
            tenant_id=str(write.caller.tenant_id),
            endpoint_id=endpoint_id,
            actor=write.caller.actor,
            traceparent=request.state.traceparent,
        )
        return Answer(202, TestSent(**sent), {"location": f"/v1/deliveries/{sent['delivery_id']}"})

    return await write.once(work)
