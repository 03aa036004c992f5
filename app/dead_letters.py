"""Filing what ran out: from failed to dead_lettered, with everything needed to send it again; and taking it away again.

A letter is removed only where a person asked for that with the replay, and only after its delivery has succeeded.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.attempts import Ticket

_FILE_IF_FAILED = text(
    """
    WITH filed AS (
        UPDATE deliveries d
        SET state = 'dead_lettered', due_at = NULL, lease_owner = NULL
        FROM unnest(CAST(:ids AS uuid[]), CAST(:generations AS integer[])) AS w (id, generation)
        WHERE d.id = ANY(CAST(:ids AS uuid[])) AND d.id = w.id AND d.generation = w.generation AND d.state = 'failed'
        RETURNING d.*
    ), letter AS (
        INSERT INTO dead_letters
            (delivery_id, generation, tenant_id, endpoint_id, event_id, event_type, request_id, traceparent,
             idempotency_key, run_id, payload, headers, response, failure_class, failure_detail, last_http_status,
             attempts)
        SELECT f.id, f.generation, f.tenant_id, f.endpoint_id, f.event_id, coalesce(e.event_type, 'unknown'),
               coalesce(e.request_id, 'unknown'), e.traceparent, e.idempotency_key, e.run_id, coalesce(e.body, ''),
               e.headers, a.response_excerpt, coalesce(f.last_class, 'unknown'), f.last_error, f.last_status,
               f.attempts
        FROM filed f
        LEFT JOIN events e ON e.id = f.event_id
        LEFT JOIN LATERAL (
            SELECT response_excerpt FROM delivery_attempts WHERE delivery_id = f.id ORDER BY generation DESC LIMIT 1
        ) a ON true
        ON CONFLICT (delivery_id, generation) DO NOTHING
    ), item AS (
        UPDATE replay_items i SET state = 'failed', updated_at = now()
        FROM filed f WHERE f.replays > 0 AND i.delivery_id = f.id AND i.state = 'replayed'
    )
    SELECT id FROM filed
    """
)

_REMOVE_IF_RESOLVED = text(
    """
    WITH removable AS (
        SELECT id FROM dead_letters WHERE delete_when_resolved AND status = 'resolved' ORDER BY id LIMIT :limit
        FOR UPDATE SKIP LOCKED
    ), removed AS (
        DELETE FROM dead_letters l WHERE l.id = ANY(ARRAY(SELECT id FROM removable))
        RETURNING l.id, l.tenant_id, l.delivery_id, l.request_id, l.traceparent, l.failure_class, l.last_http_status
    ), audit AS (
        INSERT INTO audit_events (tenant_id, action, subject, before, actor, reason, request_id, traceparent)
        SELECT tenant_id, 'dead_letter.removed', id::text,
               jsonb_build_object('status', 'resolved', 'delivery_id', delivery_id, 'class', failure_class,
                                  'http_status', last_http_status),
               'homing', 'its replay asked for it, and was delivered', request_id, traceparent
        FROM removed
    )
    SELECT id FROM removed
    """
)


async def file_if_failed(connection: AsyncConnection, tickets: Sequence[Ticket]) -> int:
    """File dead letters, with snapshots of payload and response; returns how many.

    Guard: state is failed under the ticket's generation. Doing it twice files nothing twice.
    """
    rows = await connection.execute(
        _FILE_IF_FAILED, {"ids": [t[0] for t in tickets], "generations": [t[1] for t in tickets]}
    )
    return len(rows.all())


async def remove_if_resolved(connection: AsyncConnection, *, limit: int = 500) -> int:
    """Remove at most so many letters whose replay asked for that, each audited; returns how many.

    Guard: marked by the replay, and its delivery has succeeded since. Run by the poller, any number at once.
    """
    return len((await connection.execute(_REMOVE_IF_RESOLVED, {"limit": limit})).all())
