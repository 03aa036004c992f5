"""Read-only statements: what the poller looks at before it works, and what operators are shown. Nothing here moves a row."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import InvalidInput, NotFound
from app.states import DeliveryState

#: Most rows that a listing gives at once.
LIMIT_MAX = 1000
#: Gauges count no further than this: beyond it, only that there are many matters.
COUNT_MAX = 10_000

_WORK_WAITING = text(
    """
    SELECT (SELECT true FROM outbox_events ORDER BY id LIMIT 1) IS TRUE AS outbox,
           (SELECT extract(epoch FROM r.due_at - now())::float8
            FROM replays r WHERE r.due_at IS NOT NULL ORDER BY r.due_at LIMIT 1) AS next_replay_s,
           (SELECT extract(epoch FROM d.due_at - now())::float8
            FROM deliveries d WHERE d.due_at < 'infinity' ORDER BY d.due_at LIMIT 1) AS next_due_s
    """
)

_BACKLOG = text(
    f"""
    SELECT (SELECT count(*) FROM (SELECT FROM outbox_events LIMIT {COUNT_MAX}) AS o) AS outbox_waiting,
           coalesce((SELECT extract(epoch FROM clock_timestamp() - least(greatest(o.created_at, '2000-01-01'), now()))
                     FROM outbox_events o ORDER BY o.id LIMIT 1), 0)::float8 AS outbox_oldest_s,
           (SELECT count(*) FROM (SELECT FROM outbox_rejected LIMIT {COUNT_MAX}) AS r) AS set_aside,
           (SELECT count(*) FROM (SELECT FROM deliveries WHERE due_at <= now() LIMIT {COUNT_MAX}) AS d) AS due,
           coalesce((SELECT extract(epoch FROM now() - due_at)
                     FROM deliveries WHERE due_at <= now() ORDER BY due_at LIMIT 1), 0)::float8 AS due_oldest_s,
           (SELECT count(*) FROM (SELECT FROM deliveries WHERE due_at > now() AND due_at < 'infinity'
                                  AND state = 'delivering' LIMIT {COUNT_MAX}) AS d) AS delivering,
           (SELECT count(*) FROM (SELECT FROM deliveries WHERE due_at = 'infinity' LIMIT {COUNT_MAX}) AS d) AS parked,
           (SELECT count(*) FROM (SELECT FROM dead_letters WHERE status = 'open' LIMIT {COUNT_MAX}) AS l)
               AS dead_letters_open
    """  # noqa: S608 - the only thing put in is the constant above
)


@dataclass(frozen=True, slots=True)
class Work:
    """What there is to do now, and how long until a delivery, or a replay, is due."""

    outbox: bool
    next_replay_s: float | None
    """Seconds; not above 0 when one is due already; None when no replay waits."""
    next_due_s: float | None
    """The same of deliveries."""

    @property
    def replays(self) -> bool:
        """A replay is due."""
        return self.next_replay_s is not None and self.next_replay_s <= 0

    @property
    def due(self) -> bool:
        """A delivery is due."""
        return self.next_due_s is not None and self.next_due_s <= 0

    @property
    def anything(self) -> bool:
        """There is something to claim or take."""
        return self.outbox or self.replays or self.due


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much waits, each counted up to `COUNT_MAX`, and for how long the oldest has."""

    outbox_waiting: int
    outbox_oldest_s: float
    set_aside: int
    due: int
    due_oldest_s: float
    delivering: int
    parked: int
    dead_letters_open: int


async def work_waiting(connection: AsyncConnection) -> Work:
    """One cheap look at the three places where work comes from."""
    row = (await connection.execute(_WORK_WAITING)).one()
    return Work(row.outbox, row.next_replay_s, row.next_due_s)


async def backlog(connection: AsyncConnection) -> Backlog:
    """How much waits; a few index reads, whatever the history."""
    return Backlog(**(await connection.execute(_BACKLOG)).one()._mapping)


async def list_endpoints(connection: AsyncConnection, *, tenant_id: str, limit: int = 100) -> list[dict[str, Any]]:
    """A tenant's endpoints, oldest first, without secrets."""
    return await _rows(
        connection,
        """
        SELECT id, name, url, event_types, status, status_reason, scheme, created_at FROM endpoints
        WHERE tenant_id = :tenant_id ORDER BY id LIMIT :limit
        """,
        {"tenant_id": tenant_id, "limit": _limit(limit)},
    )


async def show_endpoint(connection: AsyncConnection, *, tenant_id: str, endpoint_id: UUID) -> dict[str, Any]:
    """One endpoint: its settings, the ids of its keys, and how its deliveries stand.

    Raises:
        NotFound: the tenant has none with this id.
    """
    where = {"tenant_id": tenant_id, "id": endpoint_id}
    found = await _rows(
        connection,
        """
        SELECT id, tenant_id, name, url, event_types, status, status_reason, scheme, max_attempts, retry_base_s,
               retry_factor, retry_cap_s, retry_jitter, retry_schedule_s, version, created_at, updated_at,
               (SELECT array_agg(key_id ORDER BY created_at DESC) FROM endpoint_secrets s
                WHERE s.endpoint_id = p.id AND (expires_at IS NULL OR expires_at > now())) AS key_ids
        FROM endpoints p WHERE tenant_id = :tenant_id AND id = :id
        """,
        where,
    )
    if not found:
        raise NotFound(f"tenant {tenant_id!r} has no endpoint {endpoint_id}")
    counts = await _rows(
        connection,
        "SELECT state, count(*) FROM deliveries WHERE tenant_id = :tenant_id AND endpoint_id = :id GROUP BY state",
        where,
    )
    return found[0] | {"deliveries": {c["state"]: c["count"] for c in counts}}


async def list_deliveries(
    connection: AsyncConnection,
    *,
    tenant_id: str,
    state: str | None = None,
    endpoint_id: UUID | None = None,
    request_id: str | None = None,
    event_type: str | None = None,
    limit: int = 50,
) -> list[dict[str, Any]]:
    """Deliveries that match every given filter, newest first, as in the view `delivery_status`.

    Raises:
        InvalidInput: the state is none of `DeliveryState`, or the limit is out of range.
    """
    if state is not None and state not in set(DeliveryState):
        raise InvalidInput(f"state: {state!r} is not one of {', '.join(DeliveryState)}")
    filters = {"state": state, "endpoint_id": endpoint_id, "request_id": request_id, "event_type": event_type}
    return await _filtered(connection, "delivery_status", "delivery_id", tenant_id, filters, limit)


async def show_delivery(connection: AsyncConnection, *, tenant_id: str, delivery_id: UUID) -> dict[str, Any]:
    """One delivery with its attempts, oldest first.

    Raises:
        NotFound: the tenant has none with this id.
    """
    where = {"tenant_id": tenant_id, "id": delivery_id}
    found = await _rows(
        connection, "SELECT * FROM delivery_status WHERE tenant_id = :tenant_id AND delivery_id = :id", where
    )
    if not found:
        raise NotFound(f"tenant {tenant_id!r} has no delivery {delivery_id}")
    attempts = await _rows(
        connection,
        """
        SELECT number, generation, started_at, duration_ms, outcome, failure_class, retryable, http_status, error,
               response_excerpt, retry_at, worker
        FROM delivery_attempts WHERE tenant_id = :tenant_id AND delivery_id = :id ORDER BY generation
        """,
        where,
    )
    return found[0] | {"timeline": attempts}


async def list_dead_letters(
    connection: AsyncConnection,
    *,
    tenant_id: str,
    status: str | None = None,
    endpoint_id: UUID | None = None,
    request_id: str | None = None,
    event_type: str | None = None,
    failure_class: str | None = None,
    since: datetime | None = None,
    limit: int = 50,
) -> list[dict[str, Any]]:
    """Dead letters that match every given filter, newest first, without the snapshots."""
    filters = {
        "status": status,
        "endpoint_id": endpoint_id,
        "request_id": request_id,
        "event_type": event_type,
        "failure_class": failure_class,
    }
    columns = (
        "id, delivery_id, request_id, event_type, endpoint_id, failure_class, failure_detail, last_http_status, attempts, "
        "status, created_at"
    )
    return await _filtered(connection, "dead_letters", "id", tenant_id, filters, limit, columns=columns, since=since)


async def show_dead_letter(connection: AsyncConnection, *, tenant_id: str, dead_letter_id: UUID) -> dict[str, Any]:
    """One dead letter, with its snapshots of payload and response.

    Raises:
        NotFound: the tenant has none with this id.
    """
    found = await _rows(
        connection,
        "SELECT * FROM dead_letters WHERE tenant_id = :tenant_id AND id = :id",
        {"tenant_id": tenant_id, "id": dead_letter_id},
    )
    if not found:
        raise NotFound(f"tenant {tenant_id!r} has no dead letter {dead_letter_id}")
    return found[0]


async def list_rejected(connection: AsyncConnection, *, limit: int = 50) -> list[dict[str, Any]]:
    """Outbox rows that were set aside, newest first, without payloads; of every tenant, since theirs may be unknown."""
    return await _rows(
        connection,
        """
        SELECT id, tenant_id, event_type, request_id, reason, created_at, rejected_at FROM outbox_rejected
        ORDER BY rejected_at DESC, id LIMIT :limit
        """,
        {"limit": _limit(limit)},
    )


async def list_replays(connection: AsyncConnection, *, tenant_id: str, request_id: str) -> list[dict[str, Any]]:
    """A request id's replays, oldest first, with what each of their deliveries came to."""
    return await _rows(
        connection,
        """
        SELECT r.id, r.reason, r.actor, r.state, r.created_at, r.done_at,
               (SELECT jsonb_object_agg(state, n) FROM
                    (SELECT i.state, count(*) AS n FROM replay_items i WHERE i.replay_id = r.id GROUP BY i.state) AS c)
                   AS items
        FROM replays r WHERE r.tenant_id = :tenant_id AND r.request_id = :request_id ORDER BY r.id
        """,
        {"tenant_id": tenant_id, "request_id": request_id},
    )


async def deliveries_by_state(connection: AsyncConnection) -> dict[str, int]:
    """How many deliveries there are in each state. Reads every row: for people, not for a loop."""
    return {
        r["state"]: r["count"]
        for r in await _rows(connection, "SELECT state, count(*) FROM deliveries GROUP BY state", {})
    }


async def _filtered(
    connection: AsyncConnection,
    relation: str,
    key: str,
    tenant_id: str,
    filters: dict[str, Any],
    limit: int,
    *,
    columns: str = "*",
    since: datetime | None = None,
) -> list[dict[str, Any]]:
    """Rows of a relation by equality; names come from this module only, values go as parameters."""
    given = {name: value for name, value in filters.items() if value is not None}
    conditions = ["tenant_id = :tenant_id", *(f"{name} = :{name}" for name in given)]
    if since is not None:
        conditions.append("created_at >= :since")
        given["since"] = since
    return await _rows(
        connection,
        f"SELECT {columns} FROM {relation} WHERE {' AND '.join(conditions)} ORDER BY {key} DESC LIMIT :limit",  # noqa: S608
        given | {"tenant_id": tenant_id, "limit": _limit(limit)},
    )


async def _rows(connection: AsyncConnection, sql: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(row._mapping) for row in await connection.execute(text(sql), parameters)]


def _limit(limit: int) -> int:
    if not 1 <= limit <= LIMIT_MAX:
        raise InvalidInput(f"limit: {limit} is not from 1 to {LIMIT_MAX}")
    return limit
