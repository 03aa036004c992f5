"""`/v1/keys`: a tenant's API keys, managed by its own admin key or by an operator's."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import Field
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from app.api.guarded_route import GuardedRoute
from app.api.pages import Listed, PagedByName
from app.api.problems import FieldError, Problem
from app.api.surroundings import caller_of, surroundings_of
from app.api.tenants import TenantId
from app.api.values import Body, Moment, Name, Shown, When
from app.api.writes import Answer, Write, write_of
from app.api_keys import Caller, Scope, create_key, list_keys, revoke_key

router = APIRouter(route_class=GuardedRoute, tags=["administration"])

OfTenant = Annotated[
    TenantId | None, Query(description="Whose keys. Needed with an operator's key; otherwise your own tenant.")
]


class NewKey(Body):
    """What a key may do."""

    scopes: Annotated[list[Scope], Field(min_length=1, max_length=6, examples=[["events:write"]])]
    name: Name = ""
    expires_at: Annotated[When | None, Field(description="When it ends; null: when it is revoked.")] = None


class Key(Shown):
    """A key, without itself."""

    id: str = Field(description="Names it in audit trails, as `key:ID`.", examples=["3f9a1c27b0de"])
    tenant_id: str
    name: str
    scopes: list[Scope]
    created_by: str
    created_at: Moment
    expires_at: Moment | None
    revoked_at: Moment | None
    last_used_at: Moment | None = Field(description="To the minute.")


class CreatedKey(Key):
    """A new key; the only time that it is shown."""

    key: str


class KeyFilters(PagedByName):
    """Which keys are shown."""

    tenant_id: Annotated[TenantId | None, Field(description="Needed with an operator's key.")] = None


@router.post("/v1/keys", operation_id="createKey", status_code=201, response_model=CreatedKey)
async def create(new: NewKey, write: Annotated[Write, Depends(write_of)], tenant_id: OfTenant = None) -> Response:
    """Make a key. It is in this answer, and never shown again."""
    tenant = _tenant(write.caller, tenant_id)

    async def work(connection: AsyncConnection) -> Answer:
        made = await create_key(
            connection,
            tenant_id=tenant,
            scopes=new.scopes,
            actor=write.caller.actor,
            name=new.name,
            expires_at=new.expires_at,
        )
        return Answer(201, CreatedKey.model_validate(made), secret=True)

    return await write.once(work, tenant_id=tenant)


@router.get("/v1/keys", operation_id="listKeys", response_model=Listed[Key])
async def list_all(request: Request, asked: Annotated[KeyFilters, Query()]) -> Response:
    """A tenant's keys in order of their ids, revoked and expired ones too."""
    tenant, after = _tenant(caller_of(request), asked.tenant_id), asked.after()
    async with surroundings_of(request).transaction(tenant) as connection:
        found = await list_keys(connection, tenant_id=tenant, after=after, limit=asked.limit + 1)
    return asked.answer(request, Key, found)


@router.delete("/v1/keys/{api_key_id}", operation_id="revokeKey", response_model=Key)
async def revoke(
    api_key_id: Annotated[str, Path(pattern="^[a-z0-9]{12}$", description="The key's id.")],
    write: Annotated[Write, Depends(write_of)],
    tenant_id: OfTenant = None,
) -> Response:
    """End a key, at once and for good."""
    tenant = _tenant(write.caller, tenant_id)

    async def work(connection: AsyncConnection) -> Answer:
        found = await revoke_key(connection, tenant_id=tenant, key_id=api_key_id, actor=write.caller.actor)
        return Answer(200, Key.model_validate(found))

    return await write.once(work, tenant_id=tenant)


def _tenant(caller: Caller, asked: str | None) -> str:
    """Whose keys are meant.

    Raises:
        Problem: an operator does not say whose, or a tenant means another's.
    """
    if caller.tenant_id is None:
        if asked is None:
            error = FieldError(pointer="query/tenant_id", detail="an operator's key must say whose keys are meant")
            raise Problem("INT-400-INVALID-PAYLOAD", "The request is not valid; see errors.", errors=[error])
        return asked
    if asked not in (None, caller.tenant_id):
        raise Problem("INT-404-NOT-FOUND", "There is no such thing, or it is not yours.")
    return caller.tenant_id
