"""Carrying replays out: claimed by the poller, sent again by the replay actor, in transactions that end one by one.

A replay of one request id is one batch. A bulk replay is as many as its rate and its concurrency make of it: after each it is
due again, under the next generation, so that a crash at any point leaves items that were sent again and items that wait.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

#: Items that one transaction sends again, at most.
BATCH_MAX = 50
#: Seconds until a replay with as many items under way as it may have is looked at again.
ROOM_AGAIN_S = 0.1

WAKE_POLLER = text("SELECT pg_notify('homing_wake', '')")

_CLAIM_REQUESTED_SKIPPING_LOCKED = text(
    """
    WITH due AS (
        SELECT id FROM replays WHERE due_at <= now() ORDER BY due_at LIMIT :limit FOR UPDATE SKIP LOCKED
    )
    UPDATE replays r SET generation = r.generation + 1, due_at = now() + :lease_s * interval '1 second'
    FROM due WHERE r.id = due.id
    RETURNING r.id, r.generation
    """
)

_LOCK_IF_NOT_OVER = text(
    """
    SELECT id, tenant_id, request_id, reason, actor, rate_per_s, concurrency, delete_after FROM replays
    WHERE id = :id AND generation = :generation AND state IN ('requested', 'running')
    FOR UPDATE
    """
)

# Sent again and without a result yet; what waits for its next attempt, or for its endpoint to be resumed, is not under way.
_UNDER_WAY = text(
    """
    SELECT count(*) FROM replay_items i JOIN deliveries d ON d.id = i.delivery_id
    WHERE i.replay_id = :id AND i.state = 'replayed' AND d.state IN ('replayed', 'delivering') AND d.due_at < 'infinity'
    """
)

# A statement of its own: the next one's snapshot then sees what these rows, and their letters, became while it waited. Both
# take the same items: nobody else moves them while the replay's row is locked.
_LOCK_DELIVERIES = text(
    """
    SELECT d.id FROM deliveries d
    WHERE d.id = ANY(ARRAY(SELECT delivery_id FROM replay_items WHERE replay_id = :id AND state = 'requested'
                           ORDER BY delivery_id LIMIT CAST(:batch AS bigint)))
    ORDER BY d.id
    FOR UPDATE OF d
    """
)

_REPLAY_IF_FAILED_OR_DEAD_LETTERED = text(
    """
    WITH item AS (
        SELECT delivery_id FROM replay_items WHERE replay_id = :id AND state = 'requested'
        ORDER BY delivery_id LIMIT CAST(:batch AS bigint)
    ), before AS (
        SELECT d.id, d.state, d.generation, d.attempts, d.last_class, d.last_status
        FROM deliveries d WHERE d.id = ANY(ARRAY(SELECT delivery_id FROM item))
        ORDER BY d.id
        FOR UPDATE OF d
    ), sent_again AS (
        UPDATE deliveries d
        SET state = 'replayed', generation = d.generation + 1, due_at = now(), lease_owner = NULL, attempts = 0,
            unknown_streak = 0, replays = d.replays + 1, failed_at = NULL
        FROM before b
        WHERE d.id = ANY(ARRAY(SELECT delivery_id FROM item)) AND d.id = b.id AND d.generation = b.generation
          AND b.state IN ('failed', 'dead_lettered')
        RETURNING d.id, d.event_id
    ), settled AS (
        UPDATE replay_items i
        SET previous_state = b.state, updated_at = now(),
            state = CASE WHEN s.id IS NULL THEN 'conflict' ELSE 'replayed' END
        FROM item
        LEFT JOIN before b ON b.id = item.delivery_id
        LEFT JOIN sent_again s ON s.id = item.delivery_id
        WHERE i.replay_id = :id AND i.delivery_id = item.delivery_id
    ), letter AS (
        UPDATE dead_letters l SET status = 'replayed', updated_at = now(), delete_when_resolved = :delete_after
        FROM sent_again s WHERE l.delivery_id = s.id AND l.status = 'open'
    ), audit AS (
        INSERT INTO audit_events (tenant_id, action, subject, before, after, actor, reason, request_id, traceparent)
        SELECT :tenant_id, 'delivery.replayed', s.id::text,
               jsonb_build_object('state', b.state, 'attempts', b.attempts, 'class', b.last_class,
                                  'status', b.last_status),
               '{"state": "replayed", "attempts": 0}', :actor, :reason, coalesce(e.request_id, :request_id), e.traceparent
        FROM sent_again s JOIN before b ON b.id = s.id LEFT JOIN events e ON e.id = s.event_id
    )
    SELECT (SELECT count(*) FROM sent_again) AS replayed, (SELECT count(*) FROM item) AS items
    """
)

# Something waits, and its turn comes after a pause. The generation goes up: the message that brought this batch brings no second one.
_GO_ON_AFTER = text(
    """
    UPDATE replays SET state = 'running', generation = generation + 1, due_at = now() + :pause_s * interval '1 second'
    WHERE id = :id AND state IN ('requested', 'running')
      AND EXISTS (SELECT FROM replay_items WHERE replay_id = :id AND state = 'requested')
    RETURNING id
    """
)

_FINISH = text(
    """
    UPDATE replays SET state = 'done', due_at = NULL, done_at = now()
    WHERE id = :id AND state IN ('requested', 'running')
    """
)


async def claim_requested(connection: AsyncConnection, *, limit: int, lease_s: float) -> list[tuple[UUID, int]]:
    """Claim at most `limit` replays for publication: their ids and generations. Skips what another poller holds."""
    rows = await connection.execute(_CLAIM_REQUESTED_SKIPPING_LOCKED, {"limit": limit, "lease_s": lease_s})
    return [(r.id, r.generation) for r in rows]


async def carry_out_if_requested(connection: AsyncConnection, replay_id: UUID, generation: int) -> int | None:
    """Send again what a replay asks for; returns how many deliveries, or None when the message was stale.

    One transaction (the caller's). Guard: the replay is not over, and under this generation; each delivery is failed or
    dead-lettered at this moment, else its item says conflict with the state it really had.

    A replay of one request id is carried out whole. Of a bulk replay one batch is, no larger than its concurrency leaves
    room for; if more waits, it becomes due again (its rate says when) under the next generation.
    """
    arguments = {"id": replay_id, "generation": generation}
    replay = (await connection.execute(_LOCK_IF_NOT_OVER, arguments)).one_or_none()
    if replay is None:
        return None
    batch: int | None = None
    if replay.concurrency is not None:
        under_way = (await connection.execute(_UNDER_WAY, {"id": replay_id})).scalar_one()
        batch = min(replay.concurrency - under_way, BATCH_MAX, max(1, int(replay.rate_per_s)))
        if batch <= 0:
            await connection.execute(_GO_ON_AFTER, {"id": replay_id, "pause_s": ROOM_AGAIN_S})
            return 0
    await connection.execute(_LOCK_DELIVERIES, {"id": replay_id, "batch": batch})
    done = (
        await connection.execute(
            _REPLAY_IF_FAILED_OR_DEAD_LETTERED,
            {
                "id": replay_id,
                "batch": batch,
                "tenant_id": replay.tenant_id,
                "actor": replay.actor,
                "reason": replay.reason,
                "request_id": replay.request_id,
                "delete_after": replay.delete_after,
            },
        )
    ).one()
    again = None
    if batch is not None:
        pace = {"id": replay_id, "pause_s": done.items / replay.rate_per_s}
        again = (await connection.execute(_GO_ON_AFTER, pace)).one_or_none()
    if again is None:
        await connection.execute(_FINISH, {"id": replay_id})
    # Their due time has come, and the poller may be asleep.
    await connection.execute(WAKE_POLLER)
    return int(done.replayed)
