"""Tenants: whose data it is. Everything else names one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import Conflict, InvalidInput

#: As the table's CHECK has it.
TENANT_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")

_CREATE_UNLESS_THERE = text(
    "INSERT INTO tenants (id, name) VALUES (:id, :name) ON CONFLICT (id) DO NOTHING RETURNING id, name, created_at"
)

_LIST = text("SELECT id, name, created_at FROM tenants ORDER BY id LIMIT :limit")

_KNOWN = text("SELECT id FROM tenants WHERE id = ANY(CAST(:ids AS text[]))")


async def create_tenant(connection: AsyncConnection, tenant_id: str, *, name: str = "") -> dict[str, Any]:
    """Make a tenant.

    Raises:
        InvalidInput: the id or the name is not acceptable.
        Conflict: there is a tenant with this id.
    """
    if not TENANT_ID.fullmatch(tenant_id):
        raise InvalidInput(f"tenant id {tenant_id[:80]!r}: write 1 to 64 of A-Z a-z 0-9 _ . : -")
    if len(name) > 200 or any(ord(c) < 32 for c in name):
        raise InvalidInput("name: at most 200 characters, none of them a control character")
    row = (await connection.execute(_CREATE_UNLESS_THERE, {"id": tenant_id, "name": name})).one_or_none()
    if row is None:
        raise Conflict(f"tenant {tenant_id!r} exists already")
    return dict(row._mapping)


async def list_tenants(connection: AsyncConnection, *, limit: int = 1000) -> list[dict[str, Any]]:
    """Tenants by id."""
    return [dict(row._mapping) for row in await connection.execute(_LIST, {"limit": limit})]


async def unknown_tenants(connection: AsyncConnection, tenant_ids: Iterable[str]) -> set[str]:
    """Those of `tenant_ids` that do not exist."""
    wanted = set(tenant_ids)
    known = await connection.execute(_KNOWN, {"ids": sorted(wanted)})
    return wanted - set(known.scalars())
