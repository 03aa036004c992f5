"""Where the events of a request id are (waiting, set aside or taken), and how their deliveries stand. Read-only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import NotFound

#: Events shown at once.
EVENTS_MAX = 100

_FIND = """
    SELECT 'waiting' AS place, id, event_type, request_id, idempotency_key, traceparent, run_id, ordering_key,
           payload::text AS payload, headers, created_at, NULL::timestamptz AS taken_at, NULL::uuid AS duplicate_of,
           NULL AS reason
    FROM outbox_events WHERE tenant_id = :tenant_id AND {column} = :value
    UNION ALL
    SELECT 'set_aside', id, event_type, request_id, idempotency_key, traceparent, run_id, ordering_key, payload::text,
           headers, created_at, NULL, NULL, reason
    FROM outbox_rejected WHERE tenant_id = :tenant_id AND {column} = :value
    UNION ALL
    SELECT 'taken', id, event_type, request_id, idempotency_key, traceparent, run_id, ordering_key, body, headers,
           created_at, taken_at, duplicate_of, NULL
    FROM events WHERE tenant_id = :tenant_id AND {column} = :value
    ORDER BY id LIMIT :limit
"""
_BY_ID = text(_FIND.format(column="id"))
_BY_REQUEST_ID = text(_FIND.format(column="request_id"))

_DELIVERIES = text(
    """
    SELECT event_id, delivery_id, endpoint_id, endpoint_url, state, attempts, last_status, last_class, last_error,
           next_attempt_at, delivered_at
    FROM delivery_status WHERE tenant_id = :tenant_id AND event_id = ANY(CAST(:ids AS uuid[])) ORDER BY delivery_id
    """
)


async def show_events(connection: AsyncConnection, *, tenant_id: str, reference: str) -> list[dict[str, Any]]:
    """At most 100 events with this id or request id, oldest first, each with its deliveries.

    Args:
        connection: to read with.
        tenant_id: whose events.
        reference: the id of one event, or a request id.

    Returns:
        Columns of the event, `place` (waiting: not taken yet; set_aside: with its `reason`; taken) and `deliveries`.

    Raises:
        NotFound: the tenant has no such event.
    """
    where: dict[str, Any] = {"tenant_id": tenant_id, "limit": EVENTS_MAX}
    rows: Sequence[Row[Any]] = []
    if (event_id := _as_uuid(reference)) is not None:
        rows = (await connection.execute(_BY_ID, where | {"value": event_id})).all()
    if not rows:
        rows = (await connection.execute(_BY_REQUEST_ID, where | {"value": reference})).all()
    if not rows:
        raise NotFound(f"tenant {tenant_id!r} has no event with id or request id {reference!r}")
    found: dict[UUID, dict[str, Any]] = {row.id: dict(row._mapping) | {"deliveries": []} for row in rows}
    for row in await connection.execute(_DELIVERIES, {"tenant_id": tenant_id, "ids": list(found)}):
        delivery = dict(row._mapping)
        found[delivery.pop("event_id")]["deliveries"].append(delivery)
    return list(found.values())


def _as_uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None
