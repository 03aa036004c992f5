"""What the routes work with: settings, Postgres, the keys that seal secrets; and the one way into a transaction."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import structlog
from fastapi import Request
from prometheus_client import CollectorRegistry
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.api_keys import OPERATORS, Caller
from app.config import Settings
from app.sealing import SecretKeys

log = structlog.get_logger(__name__)

#: The role that the API's transactions run as; row-level security holds for it alone.
ROLE = "homing_api"
#: Longest statement of a read, and of a write.
READ_TIMEOUT, WRITE_TIMEOUT = "5s", "20s"

_MAY_ACT_AS = text(
    """
    SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = :role AND pg_has_role(current_user, oid, 'MEMBER')
                   AND has_table_privilege(oid, 'endpoints', 'INSERT'))
    """
)

# `is_local` is true: all of it ends with the transaction, so a pooled connection never keeps a tenant. A plan that is made for
# any tenant reads the whole table for one that has a thousandth of it.
_ENTER = text(
    "SELECT set_config('homing.tenant', :tenant, true), set_config('statement_timeout', :timeout, true), "
    "set_config('plan_cache_mode', 'force_custom_plan', true), set_config('role', :role, true)"
)


@dataclass
class Surroundings:
    """One per application."""

    settings: Settings
    engine: AsyncEngine
    keys: SecretKeys
    ping_redis: Callable[[], Awaitable[object]] | None = None
    """Raises when Redis is away; None when there is none to ask."""
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    walled: bool | None = None
    """Whether transactions run as `ROLE`; found out at the first one."""

    @asynccontextmanager
    async def transaction(
        self, tenant_id: str | None, *, at_most: str = READ_TIMEOUT
    ) -> AsyncIterator[AsyncConnection]:
        """A transaction that sees one tenant's rows only (None: tenants, and what is no tenant's); commits at its end."""
        async with self.engine.begin() as connection:
            if self.walled is None:
                await self.find_wall(connection)
            role = ROLE if self.walled else "none"
            await connection.execute(_ENTER, {"tenant": tenant_id or OPERATORS, "role": role, "timeout": at_most})
            yield connection

    async def find_wall(self, connection: AsyncConnection) -> bool:
        """Whether this login may act as `ROLE`; remembered, and complained about once when it may not."""
        found = bool((await connection.execute(_MAY_ACT_AS, {"role": ROLE})).scalar_one())
        if not found and self.walled is not False:
            log.warning(
                "api.no_row_level_security",
                detail=f"this login may not act as {ROLE}: tenants are kept apart by the statements alone",
                do="let a role with CREATEROLE run: SELECT homing_build_api_wall()",
            )
        self.walled = found
        return found


def surroundings_of(request: Request) -> Surroundings:
    """Those of the application that answers the request."""
    found = request.app.state.surroundings
    assert isinstance(found, Surroundings)
    return found


def caller_of(request: Request) -> Caller:
    """Who makes the request; `GuardedRoute` has seen to it that there is somebody."""
    caller = request.state.caller
    assert isinstance(caller, Caller)
    return caller
