"""Claiming deliveries for publication, and giving them back. Run by the poller only.

A claim is a lease: `generation` goes up by one and `due_at` moves a lease ahead, in one statement that skips rows which
another poller has locked. What is claimed is committed before it is published; a poller that dies in between leaves rows
that are simply due again when the lease ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.states import DeliveryState


@dataclass(frozen=True, slots=True)
class Claimed:
    """One delivery to publish: to the dead-letter actor when `state` is failed, else to the deliver actor."""

    delivery_id: UUID
    generation: int
    endpoint_id: UUID
    state: str
    slow: bool = False
    """Its endpoint has held requests lately: it travels apart, so that it cannot hold others up."""


# An expired lease is judged here, in the claim itself: the attempt is stored with outcome unknown, it counts, and a
# delivery that has used up its attempts, or has killed its worker too often, goes on to the dead letters.
_CLAIM_DUE_SKIPPING_LOCKED = text(
    """
    WITH due AS (
        SELECT id, tenant_id, event_id, endpoint_id, state, generation, attempts, unknown_streak, replays, lease_owner,
               last_attempt_at
        FROM deliveries
        WHERE due_at <= now()
        ORDER BY due_at
        LIMIT :limit
        FOR UPDATE SKIP LOCKED
    ), judged AS (
        SELECT due.*, due.state = 'delivering' AS expired, coalesce(p.slow_until > now(), false) AS slow,
               CASE WHEN due.state <> 'delivering' THEN due.state
                    WHEN due.unknown_streak + 1 >= :quarantine_after THEN 'failed'
                    WHEN due.attempts >= coalesce(p.max_attempts, 1) THEN 'failed'
                    ELSE 'retry_scheduled' END AS next_state,
               CASE WHEN due.unknown_streak + 1 >= :quarantine_after THEN 'quarantined' ELSE 'unknown' END AS class
        FROM due LEFT JOIN endpoints p ON p.id = due.endpoint_id
    ), claimed AS (
        UPDATE deliveries d
        SET state = j.next_state,
            generation = d.generation + 1,
            due_at = now() + :lease_s * interval '1 second',
            lease_owner = :owner,
            unknown_streak = d.unknown_streak + j.expired::integer,
            last_outcome = CASE WHEN j.expired THEN 'unknown' ELSE d.last_outcome END,
            last_class = CASE WHEN j.expired THEN j.class ELSE d.last_class END,
            last_status = CASE WHEN j.expired THEN NULL ELSE d.last_status END,
            last_error = CASE WHEN j.expired THEN 'no result was recorded before the lease ended' ELSE d.last_error END,
            failed_at = CASE WHEN j.next_state = 'failed' THEN coalesce(d.failed_at, now()) END
        FROM judged j
        WHERE d.id = ANY(ARRAY(SELECT id FROM due)) AND d.id = j.id AND d.generation = j.generation AND d.state = j.state
        RETURNING d.id, d.generation, d.endpoint_id, d.state, j.expired, j.slow
    ), unknown_attempts AS (
        INSERT INTO delivery_attempts
            (delivery_id, generation, tenant_id, number, started_at, outcome, failure_class, retryable, error, retry_at,
             worker)
        SELECT id, generation, tenant_id, attempts, last_attempt_at, 'unknown', class, true,
               'no result was recorded before the lease ended',
               CASE WHEN next_state <> 'failed' THEN now() END, lease_owner
        FROM judged WHERE expired
        ON CONFLICT (delivery_id, generation) DO NOTHING
    ), audit AS (
        INSERT INTO audit_events (tenant_id, action, subject, before, after, actor, reason, request_id, traceparent)
        SELECT j.tenant_id,
               CASE WHEN j.next_state <> 'failed' THEN 'delivery.retry_scheduled'
                    WHEN j.replays > 0 THEN 'delivery.reprocess_failed'
                    ELSE 'delivery.retry_exhausted' END,
               j.id::text, jsonb_build_object('state', 'delivering', 'attempts', j.attempts),
               jsonb_build_object('state', j.next_state, 'attempts', j.attempts, 'class', j.class),
               'homing', 'no result was recorded before the lease ended', e.request_id, e.traceparent
        FROM judged j
        LEFT JOIN LATERAL (SELECT request_id, traceparent FROM events WHERE id = j.event_id LIMIT 1) e ON true
        WHERE j.expired
    )
    SELECT id, generation, endpoint_id, state, expired, slow FROM claimed
    """
)

_RELEASE_IF_CLAIMED = text(
    """
    UPDATE deliveries d
    SET due_at = now() + :delay_s * interval '1 second', lease_owner = NULL
    FROM unnest(CAST(:ids AS uuid[]), CAST(:generations AS integer[])) AS w (id, generation)
    WHERE d.id = ANY(CAST(:ids AS uuid[])) AND d.id = w.id AND d.generation = w.generation
      AND d.lease_owner = :owner AND d.state <> 'delivering'
    """
)

_RELEASE_ALL_PUBLISHED_NOT_STARTED = text(
    """
    UPDATE deliveries
    SET due_at = now(), lease_owner = NULL
    WHERE due_at > now() AND due_at < 'infinity' AND lease_owner IS NOT NULL AND state <> 'delivering'
    """
)


async def claim_due(
    connection: AsyncConnection, *, limit: int, owner: str, lease_s: float, quarantine_after: int
) -> tuple[list[Claimed], int]:
    """Claim at most `limit` deliveries whose `due_at` has come, longest due first.

    Row locks are taken with SKIP LOCKED: any number of pollers may run, and none waits for or repeats another's work.

    Returns:
        What to publish after the caller's commit, and how many of them had an expired lease.
    """
    rows = (
        await connection.execute(
            _CLAIM_DUE_SKIPPING_LOCKED,
            {"limit": limit, "owner": owner, "lease_s": lease_s, "quarantine_after": quarantine_after},
        )
    ).all()
    return [Claimed(r.id, r.generation, r.endpoint_id, r.state, r.slow) for r in rows], sum(r.expired for r in rows)


async def release_if_claimed(
    connection: AsyncConnection, claimed: Sequence[Claimed], *, owner: str, delay_s: float
) -> int:
    """Give back what could not be published, due again after `delay_s`; no attempt is used up.

    Guard: generation and owner are still the claim's, and no attempt has started. Returns how many were given back.
    """
    result = await connection.execute(
        _RELEASE_IF_CLAIMED,
        {
            "ids": [c.delivery_id for c in claimed],
            "generations": [c.generation for c in claimed],
            "owner": owner,
            "delay_s": delay_s,
        },
    )
    return result.rowcount


async def release_all_published_not_started(connection: AsyncConnection) -> int:
    """Make everything due that was published and not started: Redis has lost its memory, so its messages are gone.

    A message that did survive is harmless: whichever of the two starts first moves the row on.
    """
    return (await connection.execute(_RELEASE_ALL_PUBLISHED_NOT_STARTED)).rowcount


def for_dead_letter(claimed: Claimed) -> bool:
    """True when the dead-letter actor is to have it, not the deliver actor."""
    return claimed.state == DeliveryState.FAILED
