"""From the outbox to events and deliveries: taken, checked, de-duplicated and fanned out in one transaction.

Rows are claimed by row lock, never by "id greater than the last one seen": a transaction that commits late is not skipped.
A row that cannot be taken is moved to `outbox_rejected` with its reason and never blocks the rows behind it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app import failpoints
from app.claims import Claimed
from app.db import array, is_away
from app.delivery_headers import check_event_headers
from app.errors import InvalidInput
from app.subscription import EVENT_TYPE, covering_patterns

#: Longest headers column that is looked at, in bytes; `app.delivery_headers` allows half of it.
HEADERS_MAX_BYTES = 8192

# What is judged, never more of it than is needed: producers write these columns, and a row may hold anything. A small jsonb
# can be large as text, so what is stored is measured first.
_MEASURED = """
    SELECT o.id, left(o.tenant_id, 100) AS tenant_id, left(o.event_type, 300) AS event_type,
           char_length(o.request_id) AS request_id, char_length(o.idempotency_key) AS idempotency_key,
           char_length(o.run_id) AS run_id, char_length(o.ordering_key) AS ordering_key,
           o.headers IS NOT NULL AS has_headers,
           CASE WHEN pg_column_size(o.headers) <= :headers_max THEN left(o.headers::text, :headers_max) END AS headers,
           CASE WHEN pg_column_size(o.payload) <= 16 * :payload_max THEN octet_length(o.payload::text) END
               AS payload_bytes,
           EXISTS (SELECT FROM tenants t WHERE t.id = o.tenant_id) AS tenant_known
    FROM outbox_events o
"""

_LOCK_AND_MEASURE_WAITING_ROWS = text(f"{_MEASURED} ORDER BY o.id LIMIT :limit FOR UPDATE SKIP LOCKED")

# Apart, where a row that cannot even be measured must be known by its id.
_LOCK_NEXT_WAITING_ROW = text("SELECT id FROM outbox_events ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED")
_MEASURE_LOCKED_ROW = text(f"{_MEASURED} WHERE o.id = :id")

_SET_ASIDE = text(
    """
    WITH gone AS (DELETE FROM outbox_events WHERE id = ANY(CAST(:ids AS uuid[])) RETURNING *)
    INSERT INTO outbox_rejected
        (id, tenant_id, event_type, payload, request_id, idempotency_key, traceparent, run_id, ordering_key, headers,
         created_at, reason)
    SELECT g.id, g.tenant_id, g.event_type, g.payload, g.request_id, g.idempotency_key, g.traceparent, g.run_id,
           g.ordering_key, g.headers, least(greatest(g.created_at, '2000-01-01'), clock_timestamp()), r.reason
    FROM gone g JOIN unnest(CAST(:ids AS uuid[]), CAST(:reasons AS text[])) AS r (id, reason) ON r.id = g.id
    ON CONFLICT (id) DO UPDATE SET reason = excluded.reason, rejected_at = now()
    """
)

# Ordered, so that two pollers that meet the same keys take them in the same order and cannot deadlock.
_REMEMBER_KEYS = text(
    """
    INSERT INTO event_keys (tenant_id, idempotency_key, event_id)
    SELECT tenant_id, idempotency_key, id FROM outbox_events
    WHERE id = ANY(CAST(:ids AS uuid[])) AND idempotency_key IS NOT NULL
    ORDER BY tenant_id, idempotency_key, id
    ON CONFLICT (tenant_id, idempotency_key) DO NOTHING
    """
)

# A statement of its own: its snapshot sees the key that another poller committed while this one waited for it.
_TAKE_AND_FAN_OUT = text(
    """
    WITH taken AS (
        DELETE FROM outbox_events WHERE id = ANY(CAST(:ids AS uuid[])) RETURNING *
    ), event AS (
        INSERT INTO events
            (id, tenant_id, event_type, body, request_id, idempotency_key, traceparent, run_id, ordering_key, headers,
             created_at, duplicate_of)
        SELECT t.id, t.tenant_id, t.event_type, t.payload::text, coalesce(t.request_id, 'req_' || t.id),
               t.idempotency_key, left(t.traceparent, 256), t.run_id, t.ordering_key, t.headers,
               least(greatest(t.created_at, '2000-01-01'), clock_timestamp()), nullif(k.event_id, t.id)
        FROM taken t
        LEFT JOIN event_keys k ON k.tenant_id = t.tenant_id AND k.idempotency_key = t.idempotency_key
        RETURNING id, tenant_id, event_type, duplicate_of
    ), covering AS (
        SELECT event_type, string_to_array(patterns, ' ') AS patterns
        FROM unnest(CAST(:types AS text[]), CAST(:patterns AS text[])) AS c (event_type, patterns)
    ), matched AS (
        SELECT e.id AS event_id, e.tenant_id, p.id AS endpoint_id,
               p.status = 'active' AND row_number() OVER (ORDER BY e.id) <= :capacity AS claim
        FROM event e
        JOIN covering c ON c.event_type = e.event_type
        JOIN endpoints p ON p.tenant_id = e.tenant_id AND p.status IN ('active', 'paused')
                        AND p.event_types && c.patterns
        WHERE e.duplicate_of IS NULL
    ), fanned_out AS (
        INSERT INTO deliveries (tenant_id, event_id, endpoint_id, due_at, generation, lease_owner)
        SELECT tenant_id, event_id, endpoint_id,
               CASE WHEN claim THEN now() + :lease_s * interval '1 second' ELSE now() END,
               claim::integer, CASE WHEN claim THEN :owner END
        FROM matched
        RETURNING id, generation, endpoint_id, state
    )
    SELECT f.id, f.generation, f.endpoint_id, f.state, NULL::boolean AS duplicate,
           coalesce((SELECT p.slow_until > now() FROM endpoints p WHERE p.id = f.endpoint_id), false) AS slow
    FROM fanned_out f
    UNION ALL
    SELECT NULL, NULL, NULL, NULL, true, false FROM event WHERE duplicate_of IS NOT NULL
    """
)


@dataclass(slots=True)
class Intake:
    """What one round came to. `claimed` is to be published after the commit; the other numbers count rows."""

    taken: int = 0
    duplicates: int = 0
    deliveries: int = 0
    rejected: int = 0
    claimed: list[Claimed] = field(default_factory=list)


def why_refused(row: Row[Any], payload_max_bytes: int) -> str | None:
    """The reason why an outbox row cannot be taken, naming the column and the remedy; None when it can."""
    if not row.tenant_known:
        return f"tenant_id {row.tenant_id!r} is unknown: make the tenant, then resubmit"
    if not EVENT_TYPE.fullmatch(row.event_type):
        return "event_type must be 1 to 256 visible ASCII characters without '*'"
    if row.payload_bytes is None or row.payload_bytes > payload_max_bytes:
        return f"payload has {row.payload_bytes or 'too many'} bytes, more than HOMING_PAYLOAD_MAX_BYTES={payload_max_bytes} allows"
    for name in ("request_id", "idempotency_key", "run_id", "ordering_key"):
        length = getattr(row, name)
        if length is not None and not 0 < length <= 256:
            return f"{name} must have 1 to 256 characters"
    return _why_headers_refused(row.headers) if row.has_headers else None


def _why_headers_refused(headers: str | None) -> str | None:
    """The same for the headers column, as text; None as text means that it is too long to look at."""
    if headers is None:
        return f"headers: more than {HEADERS_MAX_BYTES} bytes"
    try:
        check_event_headers(json.loads(headers))
    except InvalidInput as error:
        return f"headers: {error}"
    except (ValueError, RecursionError):
        return "headers: must be one flat object of names and string values"
    return None


async def take_from_outbox(
    engine: AsyncEngine, *, limit: int, capacity: int, owner: str, lease_s: float, payload_max_bytes: int
) -> Intake:
    """Take at most `limit` rows, oldest first; the first `capacity` deliveries are claimed for this poller at once.

    Commits. When the database refuses the batch because of what is in it, the rows are taken one by one, each in a
    transaction of its own, and the one that is refused alone is set aside.

    Raises:
        sqlalchemy.exc.DBAPIError: the database is away; nothing of this round has happened.
    """
    arguments = {"capacity": capacity, "owner": owner, "lease_s": lease_s}
    limits = {"payload_max": payload_max_bytes, "headers_max": HEADERS_MAX_BYTES}
    try:
        async with engine.begin() as connection:
            rows = (await connection.execute(_LOCK_AND_MEASURE_WAITING_ROWS, {"limit": limit} | limits)).all()
            intake = await _take(connection, rows, payload_max_bytes, arguments)
            failpoints.reach("intake.before_commit")
        failpoints.reach("intake.committed")
        return intake
    except DBAPIError as error:
        if is_away(error):
            raise
    total = Intake()
    for _ in range(limit):
        one = await _take_one(engine, payload_max_bytes, arguments | {"capacity": capacity - len(total.claimed)})
        if not one.taken + one.rejected:
            break
        total.taken += one.taken
        total.duplicates += one.duplicates
        total.deliveries += one.deliveries
        total.rejected += one.rejected
        total.claimed += one.claimed
    return total


async def _take_one(engine: AsyncEngine, payload_max_bytes: int, arguments: dict[str, Any]) -> Intake:
    row_id: UUID | None = None
    try:
        async with engine.begin() as connection:
            row_id = (await connection.execute(_LOCK_NEXT_WAITING_ROW)).scalar_one_or_none()
            limits = {"payload_max": payload_max_bytes, "headers_max": HEADERS_MAX_BYTES}
            rows = (await connection.execute(_MEASURE_LOCKED_ROW, {"id": row_id} | limits)).all()
            return await _take(connection, rows, payload_max_bytes, arguments)
    except DBAPIError as error:
        if is_away(error) or row_id is None:
            raise
        reason = f"the database refuses it: {_first_line(error)}"
        async with engine.begin() as connection:
            await connection.execute(_SET_ASIDE, {"ids": [row_id], "reasons": [reason]})
        return Intake(rejected=1)


async def _take(
    connection: AsyncConnection, rows: Sequence[Row[Any]], payload_max_bytes: int, arguments: dict[str, Any]
) -> Intake:
    if not rows:
        return Intake()
    refused = {row.id: reason for row in rows if (reason := why_refused(row, payload_max_bytes))}
    if refused:
        await connection.execute(_SET_ASIDE, {"ids": list(refused), "reasons": list(refused.values())})
    good = array(row.id for row in rows if row.id not in refused)
    if len(refused) == len(rows):
        return Intake(rejected=len(refused))
    if any(row.idempotency_key is not None for row in rows):
        await connection.execute(_REMEMBER_KEYS, {"ids": good})
    types = {row.event_type for row in rows if row.id not in refused}
    subscriptions = {"types": list(types), "patterns": [" ".join(covering_patterns(t)) for t in types]}
    made = (await connection.execute(_TAKE_AND_FAN_OUT, {"ids": good} | subscriptions | arguments)).all()
    duplicates = sum(row.duplicate is not None for row in made)
    return Intake(
        taken=len(rows) - len(refused),
        duplicates=duplicates,
        deliveries=len(made) - duplicates,
        rejected=len(refused),
        claimed=[Claimed(r.id, r.generation, r.endpoint_id, r.state, r.slow) for r in made if r.generation],
    )


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).partition("\n")[0][:300]
