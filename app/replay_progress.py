"""How replays stand, counted from their items. Read-only."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import InvalidInput, NotFound

_PROGRESS = """
    SELECT r.id AS replay_id, r.state, r.request_id, r.selector, r.reason, r.actor, r.matched, r.rate_per_s, r.concurrency,
           r.delete_after, r.created_at, r.done_at, r.cancelled_by, r.cancel_reason, i.*
    FROM replays r, LATERAL (
        SELECT count(*) AS items,
               count(*) FILTER (WHERE state = 'requested') AS waiting,
               count(*) FILTER (WHERE under_way) AS under_way,
               count(*) FILTER (WHERE state = 'replayed' AND NOT under_way) AS retrying,
               count(*) FILTER (WHERE state = 'resolved') AS resolved,
               count(*) FILTER (WHERE state = 'failed') AS failed,
               count(*) FILTER (WHERE state = 'conflict') AS conflict,
               count(*) FILTER (WHERE state = 'cancelled') AS cancelled
        FROM (
            SELECT i.state, i.state = 'replayed' AND coalesce(
                       (SELECT d.state IN ('replayed', 'delivering', 'failed') AND d.due_at < 'infinity'
                        FROM deliveries d WHERE i.state = 'replayed' AND d.id = i.delivery_id), false) AS under_way
            FROM replay_items i WHERE i.replay_id = r.id
        ) AS i
    ) AS i
    WHERE r.tenant_id = :tenant_id {conditions}
    ORDER BY r.id DESC LIMIT :limit
"""


@dataclass(frozen=True, slots=True)
class Progress:
    """How a replay stands. The items' numbers add up to `items`."""

    replay_id: UUID
    state: str
    """requested, running, done (all were sent again) or cancelled."""
    request_id: str | None
    """What it selects, when it was asked for by request id."""
    selector: dict[str, Any] | None
    """What it selects, when it is a bulk replay."""
    reason: str
    actor: str
    matched: int | None
    rate_per_s: float | None
    concurrency: int | None
    delete_after: bool
    items: int
    waiting: int
    """Not sent again yet."""
    under_way: int
    """Sent again, no result yet."""
    retrying: int
    """Sent again and failed at least once; the next attempt is scheduled, or its endpoint is paused."""
    resolved: int
    """Delivered."""
    failed: int
    """Ran out again: there is a new dead letter."""
    conflict: int
    """Was no longer failed or dead-lettered when its turn came; left alone."""
    cancelled: int
    created_at: datetime
    done_at: datetime | None
    cancelled_by: str | None = None
    cancel_reason: str | None = None

    @property
    def settled(self) -> bool:
        """Nothing of it waits, is under way or will be tried again."""
        return not (self.waiting or self.under_way or self.retrying)


async def replay_progress(connection: AsyncConnection, tenant_id: str, replay_id: UUID) -> Progress:
    """How a replay stands, counted from its items; replays by request id too.

    Raises:
        NotFound: the tenant has no such replay.
    """
    rows = await connection.execute(
        text(_PROGRESS.format(conditions="AND r.id = :id")), {"tenant_id": tenant_id, "id": replay_id, "limit": 1}
    )
    row = rows.one_or_none()
    if row is None:
        raise NotFound(f"tenant {tenant_id!r} has no replay {replay_id}")
    return Progress(**row._mapping)


async def list_replays(
    connection: AsyncConnection,
    tenant_id: str,
    *,
    limit: int = 50,
    before: UUID | None = None,
    state: str | None = None,
) -> list[Progress]:
    """A tenant's replays, newest first.

    Args:
        connection: to read with.
        tenant_id: whose.
        limit: 1 to 200: each is counted from its items.
        before: only replays older than this id: the last one of the page before.
        state: only those in this state.

    Raises:
        InvalidInput: limit or state is out of range.
    """
    if not 1 <= limit <= 200:
        raise InvalidInput(f"limit: {limit} is not from 1 to 200")
    if state not in (None, "requested", "running", "done", "cancelled"):
        raise InvalidInput(f"state: {state!r} is not one of requested, running, done, cancelled")
    conditions = ("AND r.id < CAST(:before AS uuid) " if before is not None else "") + (
        "AND r.state = :state" if state is not None else ""
    )
    given: dict[str, Any] = {"before": before, "state": state}
    rows = await connection.execute(
        text(_PROGRESS.format(conditions=conditions)),
        {name: value for name, value in given.items() if value is not None} | {"tenant_id": tenant_id, "limit": limit},
    )
    return [Progress(**row._mapping) for row in rows]
