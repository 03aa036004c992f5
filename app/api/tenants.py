"""`/v1/tenants`: make and list them; for operators' keys, which belong to no tenant."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import Field
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from app.api.guarded_route import GuardedRoute
from app.api.pages import Listed, PagedByName
from app.api.problems import Problem
from app.api.surroundings import caller_of, surroundings_of
from app.api.values import Body, Moment, Name, Shown
from app.api.writes import Answer, Write, write_of
from app.api_keys import OPERATORS, Caller
from app.audit import write_audit
from app.tenants import create_tenant

router = APIRouter(route_class=GuardedRoute, tags=["administration"])

TenantId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$", examples=["acme"])]


_PAGE = text(
    """
    SELECT id, name, created_at FROM tenants
    WHERE id = coalesce(CAST(:mine AS text), id) AND id > :after ORDER BY id LIMIT :limit
    """
)


class NewTenant(Body):
    """Whose data it will be."""

    id: TenantId
    name: Name = ""


class Tenant(Shown):
    """Whose data it is."""

    id: str
    name: str
    created_at: Moment


class TenantFilters(PagedByName):
    """Which page is shown."""


@router.post("/v1/tenants", operation_id="createTenant", status_code=201, response_model=Tenant)
async def create(new: NewTenant, write: Annotated[Write, Depends(write_of)]) -> Response:
    """Make a tenant. Needs an operator's key."""
    _require_operator(write.caller)

    async def work(connection: AsyncConnection) -> Answer:
        made = await create_tenant(connection, new.id, name=new.name)
        await write_audit(
            connection,
            tenant_id=OPERATORS,
            action="tenant.created",
            subject=new.id,
            after={"name": new.name},
            actor=write.caller.actor,
        )
        return Answer(201, Tenant.model_validate(made))

    return await write.once(work)


@router.get("/v1/tenants", operation_id="listTenants", response_model=Listed[Tenant])
async def list_all(request: Request, asked: Annotated[TenantFilters, Query()]) -> Response:
    """Tenants in order of their ids. With a tenant's key, that one only."""
    mine = caller_of(request).tenant_id
    where = {"mine": mine, "after": asked.after(), "limit": asked.limit + 1}
    async with surroundings_of(request).transaction(mine) as connection:
        found = [dict(row._mapping) for row in await connection.execute(_PAGE, where)]
    return asked.answer(request, Tenant, found)


def _require_operator(caller: Caller) -> None:
    if caller.tenant_id is not None:
        raise Problem("INT-403-FORBIDDEN", "This needs an operator's key: `homing keys create --operator`.")
