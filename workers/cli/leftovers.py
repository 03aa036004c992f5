"""Takes away what a drill or a smoke test made: everything that hangs on its own endpoint. Its audit rows stay."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

_TENANT = text("INSERT INTO tenants (id, name) VALUES (:id, :name) ON CONFLICT (id) DO NOTHING")

_STEPS = tuple(
    text(statement)
    for statement in (
        # First: what is on its way to a worker finds nothing to start.
        "UPDATE endpoints SET status = 'archived', version = version + 1 WHERE tenant_id = :tenant_id AND id = :id",
        "DELETE FROM outbox_events WHERE tenant_id = :tenant_id AND event_type = :event_type",
        "DELETE FROM replay_items WHERE delivery_id IN (SELECT id FROM deliveries WHERE endpoint_id = :id)",
        """
        DELETE FROM replays r WHERE r.tenant_id = :tenant_id
          AND NOT EXISTS (SELECT FROM replay_items i WHERE i.replay_id = r.id)
        """,
        "DELETE FROM dead_letters WHERE tenant_id = :tenant_id AND endpoint_id = :id",
        "DELETE FROM delivery_attempts WHERE delivery_id IN (SELECT id FROM deliveries WHERE endpoint_id = :id)",
        "DELETE FROM deliveries WHERE endpoint_id = :id",
        "DELETE FROM events WHERE tenant_id = :tenant_id AND event_type = :event_type",
        "DELETE FROM endpoint_secrets WHERE endpoint_id = :id",
        "DELETE FROM endpoints WHERE tenant_id = :tenant_id AND id = :id",
    )
)


async def ensure_tenant(connection: AsyncConnection, tenant_id: str, name: str) -> None:
    """Make the trial's own tenant unless it is there; it stays, since its audit trail does."""
    await connection.execute(_TENANT, {"id": tenant_id, "name": name})


async def take_away(connection: AsyncConnection, tenant_id: str, endpoint_id: UUID, event_type: str) -> None:
    """Remove an endpoint of a trial with all that hangs on it, in the caller's transaction.

    Args:
        connection: the caller's transaction.
        tenant_id: the trial's own tenant: no replay or event of anybody else is in it.
        endpoint_id: the trial's endpoint.
        event_type: the type that this run of the trial alone uses.
    """
    values: dict[str, Any] = {"tenant_id": tenant_id, "id": endpoint_id, "event_type": event_type}
    for statement in _STEPS:
        wanted = set(statement.compile().params)
        await connection.execute(statement, {name: value for name, value in values.items() if name in wanted})
