"""Check of what the HTTP API rests on: the wall between tenants."""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from workers.cli.check import Check

_WALL = text(
    """
    SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = 'homing_api') AS there,
           coalesce((SELECT pg_has_role(current_user, oid, 'MEMBER') AND has_table_privilege(oid, 'endpoints', 'INSERT')
                     FROM pg_roles WHERE rolname = 'homing_api'), false) AS usable,
           ARRAY(SELECT c.relname::text FROM pg_class c JOIN pg_policy p ON p.polrelid = c.oid
                 WHERE p.polname = 'homing_wall' AND NOT c.relrowsecurity) AS off
    """
)


async def check_wall(connection: AsyncConnection) -> Check:
    """Whether row-level security stands behind the API's tenant filters."""
    row = (await connection.execute(_WALL)).one()
    if row.off:
        found = f"row-level security is switched off for {', '.join(row.off)}"
        return Check("tenant wall", "warn", found, "ALTER TABLE ... ENABLE ROW LEVEL SECURITY")
    if row.usable:
        return Check("tenant wall", "ok", "the API acts as homing_api, under row-level security")
    found = "the role homing_api is not there" if not row.there else "this role may not act as homing_api"
    do = "as a role with CREATEROLE: SELECT homing_build_api_wall(); then GRANT homing_api TO this role"
    return Check("tenant wall", "warn", found + ": the API keeps tenants apart by its statements alone", do)
