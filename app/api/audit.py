"""`/v1/audit`: who did what, with the state before and after."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field
from starlette.responses import Response

from app.api.guarded_route import GuardedRoute
from app.api.pages import Listed, Paged, answer_page
from app.api.surroundings import caller_of, surroundings_of
from app.api.values import Id, Moment, Shown, Word
from app.audit import list_audit
from app.listings import Page

router = APIRouter(route_class=GuardedRoute, tags=["audit"])


class AuditFilters(Paged):
    """Which rows are shown."""

    request_id: Annotated[Word | None, Field(description="Only what is about this request id.")] = None


class AuditEvent(Shown):
    """One act."""

    id: Id
    seq: int | None = Field(description="Its number in the tenant's chain; null for the seconds until it is chained.")
    action: str = Field(examples=["delivery.replayed"])
    subject: str = Field(description="Id of what it was done to.")
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    actor: str = Field(examples=["key:3f9a1c27b0de", "cli:anna", "homing"])
    reason: str | None
    request_id: str | None
    traceparent: str | None
    created_at: Moment


@router.get("/v1/audit", operation_id="listAudit", response_model=Listed[AuditEvent])
async def list_all(request: Request, asked: Annotated[AuditFilters, Query()]) -> Response:
    """The audit trail, newest first."""
    tenant = str(caller_of(request).tenant_id)
    before = asked.before()
    async with surroundings_of(request).transaction(tenant) as connection:
        found = await list_audit(connection, tenant, request_id=asked.request_id, limit=asked.limit + 1, before=before)
    page = Page(found[: asked.limit], found[asked.limit - 1]["id"] if len(found) > asked.limit else None)
    return answer_page(request, AuditEvent, asked, page)
