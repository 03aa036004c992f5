"""Starting attempts and recording what they came to. Run by workers only; every write is fenced by state and generation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import array

#: Classes of failure that mark an endpoint as slow: it holds requests, or all of its connections are taken.
SLOW_CLASSES = frozenset({"timeout", "connect_timeout", "own_fault"})
#: A delivery's id and the generation it was published with: all that a message carries.
Ticket = tuple[UUID, int]


@dataclass(frozen=True, slots=True)
class Started:
    """One delivery whose attempt has been started (counted and leased) and must now be made."""

    delivery_id: UUID
    generation: int
    tenant_id: str
    event_id: UUID
    endpoint_id: UUID
    endpoint_version: int
    attempt: int
    replays: int
    body: str | None
    """None when the event's row is gone, which is a definite failure."""
    headers: dict[str, Any] | None
    event_type: str | None
    request_id: str | None
    traceparent: str | None
    committed_at: datetime | None
    started_at: datetime
    """Database clock; signatures use it, so a worker's wrong clock does not matter."""


@dataclass(frozen=True, slots=True)
class Settled:
    """What an attempt came to and where its delivery goes: exactly what is written."""

    delivery_id: UUID
    generation: int
    next_state: str
    """delivered, retry_scheduled or failed."""
    delay_s: float
    """Seconds from the recording to the next attempt; 0 unless retry_scheduled."""
    outcome: str
    failure_class: str | None
    retryable: bool
    http_status: int | None
    error: str | None
    response_excerpt: str | None
    duration_ms: int
    counted: bool = True
    """False for a fault of our own: the attempt is stored, but does not use up one of the delivery's attempts."""
    disable_endpoint: bool = False


# In every statement here `d.id = ANY(...)` repeats what the join says: it ties the plan to the primary key. The lowest and the
# highest id say which partitions can hold any, which an array cannot in a plan that is made once; so the cost never depends on
# history. Endpoints are looked up one by one for the same reason.
_START_IF_PUBLISHED = text(
    """
    WITH wanted AS (
        SELECT * FROM unnest(CAST(:ids AS uuid[]), CAST(:generations AS integer[])) AS w (id, generation)
    ), started AS (
        UPDATE deliveries d
        SET state = 'delivering', attempts = d.attempts + 1, last_attempt_at = now(),
            due_at = now() + :lease_s * interval '1 second', lease_owner = :worker
        FROM wanted w
        WHERE d.id = ANY(CAST(:ids AS uuid[])) AND d.id BETWEEN CAST(:lowest AS uuid) AND CAST(:highest AS uuid)
          AND d.id = w.id AND d.generation = w.generation
          AND d.state IN ('pending', 'retry_scheduled', 'replayed') AND d.lease_owner IS NOT NULL
          AND (SELECT p.status FROM endpoints p WHERE p.id = d.endpoint_id) = 'active'
        RETURNING d.id, d.generation, d.tenant_id, d.event_id, d.endpoint_id, d.attempts, d.replays, d.last_attempt_at,
                  (SELECT p.version FROM endpoints p WHERE p.id = d.endpoint_id) AS version
    )
    SELECT s.*, e.body, e.headers, e.event_type, e.request_id, e.traceparent, e.created_at
    FROM started s LEFT JOIN events e ON e.id = s.event_id
    """
)

# The endpoint's row is locked FOR SHARE and judged again under the lock: an operator who resumes it at this moment either
# finds the parked rows and frees them, or has resumed before, and nothing is parked. An archived one is never resumed: what
# would wait for it has failed, and goes on to the dead letters. Whoever moves an endpoint holds its lock while all that it holds
# back is moved; nobody waits here for that: the ticket keeps its lease, and comes round again.
_PARK_IF_ENDPOINT_NOT_ACTIVE = text(
    """
    WITH closed AS (
        SELECT id, status = 'archived' AS archived FROM endpoints
        WHERE status <> 'active'
          AND id IN (SELECT endpoint_id FROM deliveries WHERE id = ANY(CAST(:ids AS uuid[])))
        ORDER BY id
        FOR SHARE SKIP LOCKED
    ), put_aside AS (
        UPDATE deliveries d
        SET state = CASE WHEN closed.archived THEN 'failed' ELSE d.state END,
            due_at = CASE WHEN closed.archived THEN now() ELSE 'infinity' END,
            failed_at = CASE WHEN closed.archived THEN now() END,
            last_class = CASE WHEN closed.archived THEN 'endpoint_archived' ELSE d.last_class END,
            last_status = CASE WHEN NOT closed.archived THEN d.last_status END,
            last_error = CASE WHEN closed.archived THEN 'its endpoint is archived' ELSE d.last_error END,
            lease_owner = NULL
        FROM unnest(CAST(:ids AS uuid[]), CAST(:generations AS integer[])) AS w (id, generation), closed
        WHERE d.id = ANY(CAST(:ids AS uuid[])) AND d.id = w.id AND d.generation = w.generation
          AND d.state IN ('pending', 'retry_scheduled', 'replayed') AND d.lease_owner IS NOT NULL
          AND d.endpoint_id = closed.id
        RETURNING d.id, d.tenant_id, d.event_id, d.attempts, d.replays, closed.archived
    ), audit AS (
        INSERT INTO audit_events (tenant_id, action, subject, before, after, actor, reason, request_id, traceparent)
        SELECT a.tenant_id, CASE WHEN a.replays > 0 THEN 'delivery.reprocess_failed' ELSE 'delivery.given_up' END, a.id::text,
               jsonb_build_object('attempts', a.attempts), '{"state": "failed", "class": "endpoint_archived"}',
               'homing', 'its endpoint is archived', e.request_id, e.traceparent
        FROM put_aside a
        LEFT JOIN LATERAL (SELECT request_id, traceparent FROM events WHERE id = a.event_id LIMIT 1) e ON true
        WHERE a.archived
    )
    SELECT id FROM put_aside
    """
)

_RECORD_IF_DELIVERING = text(
    """
    WITH r AS (
        SELECT * FROM json_to_recordset(CAST(:results AS json)) AS r (
            delivery_id uuid, generation integer, next_state text, delay_s double precision, outcome text,
            failure_class text, retryable boolean, http_status integer, error text, response_excerpt text,
            duration_ms integer, counted boolean)
    ), written AS (
        UPDATE deliveries d
        SET state = r.next_state,
            due_at = CASE WHEN r.next_state <> 'delivered' THEN now() + r.delay_s * interval '1 second' END,
            lease_owner = NULL, unknown_streak = 0, attempts = d.attempts - (NOT r.counted)::integer,
            last_outcome = r.outcome, last_class = r.failure_class, last_status = r.http_status, last_error = r.error,
            delivered_at = CASE WHEN r.next_state = 'delivered' THEN now() END,
            failed_at = CASE WHEN r.next_state = 'failed' THEN now() END
        FROM r
        WHERE d.id = ANY(CAST(:ids AS uuid[])) AND d.id BETWEEN CAST(:lowest AS uuid) AND CAST(:highest AS uuid)
          AND d.id = r.delivery_id
          AND d.generation = r.generation AND d.state = 'delivering'
        RETURNING d.id, d.generation, d.tenant_id, d.event_id, d.endpoint_id, d.attempts, d.last_attempt_at, d.due_at,
                  d.state, d.replays
    ), attempt AS (
        INSERT INTO delivery_attempts
            (delivery_id, generation, tenant_id, number, started_at, duration_ms, outcome, failure_class, retryable,
             http_status, error, response_excerpt, retry_at, worker)
        SELECT w.id, w.generation, w.tenant_id, w.attempts + (NOT r.counted)::integer, w.last_attempt_at,
               r.duration_ms, r.outcome, r.failure_class, r.retryable, r.http_status, r.error, r.response_excerpt,
               CASE WHEN w.state = 'retry_scheduled' THEN w.due_at END, :worker
        FROM written w JOIN r ON r.delivery_id = w.id AND r.generation = w.generation
    ), resolved_item AS (
        UPDATE replay_items i SET state = 'resolved', updated_at = now()
        FROM written w
        WHERE w.replays > 0 AND w.state = 'delivered' AND i.delivery_id = w.id AND i.state = 'replayed'
    ), resolved_letter AS (
        UPDATE dead_letters l SET status = 'resolved', updated_at = now()
        FROM written w
        WHERE w.replays > 0 AND w.state = 'delivered' AND l.delivery_id = w.id AND l.status = 'replayed'
    ), audit AS (
        INSERT INTO audit_events (tenant_id, action, subject, before, after, actor, reason, request_id, traceparent)
        SELECT w.tenant_id,
               CASE WHEN w.state = 'retry_scheduled' THEN 'delivery.retry_scheduled'
                    WHEN w.state = 'delivered' THEN 'delivery.reprocess_succeeded'
                    WHEN w.replays > 0 THEN 'delivery.reprocess_failed'
                    ELSE 'delivery.retry_exhausted' END,
               w.id::text, jsonb_build_object('state', 'delivering', 'attempts', w.attempts + (NOT r.counted)::integer),
               jsonb_build_object('state', w.state, 'attempts', w.attempts, 'class', r.failure_class, 'status', r.http_status),
               'homing', r.error, e.request_id, e.traceparent
        FROM written w JOIN r ON r.delivery_id = w.id AND r.generation = w.generation
        LEFT JOIN LATERAL (SELECT request_id, traceparent FROM events WHERE id = w.event_id LIMIT 1) e ON true
        WHERE w.state = 'retry_scheduled' OR w.replays > 0 OR (w.state = 'failed' AND r.retryable)
    )
    SELECT id, generation FROM written
    """
)

_MARK_SLOW_UNLESS_MARKED = text(
    """
    UPDATE endpoints SET slow_until = now() + interval '30 seconds'
    WHERE id IN (SELECT endpoint_id FROM deliveries WHERE id = ANY(CAST(:ids AS uuid[])))
      AND (slow_until IS NULL OR slow_until < now() + interval '15 seconds')
    """
)

_DISABLE_ENDPOINT_IF_ACTIVE = text(
    """
    WITH disabled AS (
        UPDATE endpoints p
        SET status = 'disabled', status_reason = :reason, version = version + 1, updated_at = now()
        FROM deliveries d
        WHERE d.id = :delivery_id AND p.id = d.endpoint_id AND p.status = 'active'
        RETURNING p.id, p.tenant_id, d.event_id
    )
    INSERT INTO audit_events (tenant_id, action, subject, before, after, actor, reason, request_id, traceparent)
    SELECT x.tenant_id, 'endpoint.disabled', x.id::text, '{"status": "active"}', '{"status": "disabled"}', 'homing',
           :reason, e.request_id, e.traceparent
    FROM disabled x LEFT JOIN events e ON e.id = x.event_id
    """
)


async def start_if_published(
    connection: AsyncConnection, tickets: Sequence[Ticket], *, worker: str, lease_s: float
) -> list[Started]:
    """Count and lease an attempt of each delivery that may start: the last write before its request goes out.

    Guard: the ticket's generation is the row's and is leased (a message that is read again after its result was recorded
    finds no lease), its state is one of `STARTABLE`, and its endpoint is active. A ticket
    that fails the guard is left out of the answer and its row is untouched: it is stale, forged or paused.
    """
    tickets = sorted(tickets)  # whatever the plan, rows are locked in one order: chunks that overlap cannot deadlock
    rows = await connection.execute(
        _START_IF_PUBLISHED,
        _among([t[0] for t in tickets])
        | {"generations": array(t[1] for t in tickets), "worker": worker, "lease_s": lease_s},
    )
    return [
        Started(
            delivery_id=r.id,
            generation=r.generation,
            tenant_id=r.tenant_id,
            event_id=r.event_id,
            endpoint_id=r.endpoint_id,
            endpoint_version=r.version,
            attempt=r.attempts,
            replays=r.replays,
            body=r.body,
            headers=r.headers,
            event_type=r.event_type,
            request_id=r.request_id,
            traceparent=r.traceparent,
            committed_at=r.created_at,
            started_at=r.last_attempt_at,
        )
        for r in rows
    ]


async def park_if_endpoint_not_active(connection: AsyncConnection, tickets: Sequence[Ticket]) -> int:
    """Put deliveries of endpoints that are not active out of the schedule until they are resumed; none is used up.

    Those of archived ones, which are never resumed, have failed by that. Guard: published under the ticket's generation, and
    not started. Returns how many were put aside; the rest of the tickets were stale.
    """
    tickets = sorted(tickets)
    result = await connection.execute(
        _PARK_IF_ENDPOINT_NOT_ACTIVE, {"ids": array(t[0] for t in tickets), "generations": array(t[1] for t in tickets)}
    )
    return len(result.all())


def recorded_by_one_statement(settled: Settled) -> bool:
    """Whether a result touches nothing but its delivery: no endpoint is marked slow or disabled with it."""
    return settled.failure_class not in SLOW_CLASSES and not settled.disable_endpoint


async def record_if_delivering(
    connection: AsyncConnection, settled: Sequence[Settled], *, worker: str
) -> set[tuple[UUID, int]]:
    """Write results: the delivery's next state, its attempt, what a replay of it came to, and audit rows, in one statement.

    Audited are retries scheduled, retries exhausted, and what came of a replay; a first delivery that succeeds, or fails
    definitely, is not: its attempt says it all.

    Guard: state is delivering under the same generation. A result that comes too late (its lease ended and the row was
    claimed again) writes nothing at all.

    Returns:
        The (delivery, generation) pairs that were written. Writing the same result twice is harmless.
    """
    settled = sorted(settled, key=lambda s: s.delivery_id)  # locked in one order, as at the start
    results = [
        {
            "delivery_id": s.delivery_id.hex,
            "generation": s.generation,
            "next_state": s.next_state,
            "delay_s": s.delay_s,
            "outcome": s.outcome,
            "failure_class": s.failure_class,
            "retryable": s.retryable,
            "http_status": s.http_status,
            "error": s.error,
            "response_excerpt": s.response_excerpt,
            "duration_ms": s.duration_ms,
            "counted": s.counted,
        }
        for s in settled
    ]
    rows = await connection.execute(
        _RECORD_IF_DELIVERING,
        _among([s.delivery_id for s in settled]) | {"results": json.dumps(results), "worker": worker},
    )
    written = {(r.id, r.generation) for r in rows}
    if slow := [s.delivery_id for s in settled if s.failure_class in SLOW_CLASSES]:
        await connection.execute(_MARK_SLOW_UNLESS_MARKED, {"ids": array(slow)})
    for result in settled:
        if result.disable_endpoint and (result.delivery_id, result.generation) in written:
            await connection.execute(
                _DISABLE_ENDPOINT_IF_ACTIVE,
                {"delivery_id": result.delivery_id, "reason": "the endpoint answered 410 Gone"},
            )
    return written


def _among(ids: Sequence[UUID]) -> dict[str, Any]:
    """The parameters `ids`, `lowest` and `highest`."""
    return {"ids": array(ids), "lowest": min(ids, default=None), "highest": max(ids, default=None)}
