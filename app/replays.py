"""Replay: a person's wish, written down (by the command line or the API) and carried out (by the replay actor)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import Conflict, IdempotencyConflict, InvalidInput, NotFound
from app.states import REPLAYABLE

#: Longest request id, reason and idempotency key, in characters.
TEXT_MAX = 1000

_CANDIDATES = text(
    """
    SELECT d.id, d.state, d.endpoint_id, d.attempts, d.last_class, d.last_status,
           EXISTS (SELECT FROM replay_items i
                   WHERE i.delivery_id = d.id AND i.state = 'requested') AS requested
    FROM events e JOIN deliveries d ON d.event_id = e.id
    WHERE e.tenant_id = :tenant_id AND e.request_id = :request_id
    ORDER BY d.id
    """
)

_WRITE_DOWN = text(
    """
    INSERT INTO replays (tenant_id, request_id, reason, actor, idempotency_key, body_digest, skipped)
    VALUES (:tenant_id, :request_id, :reason, :actor, :idempotency_key, :body_digest, CAST(:skipped AS jsonb))
    RETURNING id
    """
)

# Requests with the same key follow each other: the second one reads what the first has committed.
_ONE_AT_A_TIME = text("SELECT pg_advisory_xact_lock(hashtextextended(:tenant_id || ' ' || :key, 1752132968))")

_BY_KEY = text(
    """
    SELECT id, request_id, body_digest, skipped FROM replays
    WHERE tenant_id = :tenant_id AND idempotency_key = :key
    """
)

# A replay that was carried out and whose outcome is open gives way to the new one; one still requested does not.
_CLOSE_ITEMS_OF_FAILED = text(
    """
    UPDATE replay_items i SET state = 'failed', updated_at = now()
    FROM deliveries d
    WHERE i.delivery_id = ANY(CAST(:ids AS uuid[])) AND i.state = 'replayed'
      AND d.id = i.delivery_id AND d.state IN ('failed', 'dead_lettered')
    """
)

_ADD_ITEMS_UNLESS_OPEN = text(
    """
    INSERT INTO replay_items (replay_id, delivery_id)
    SELECT :replay_id, id FROM unnest(CAST(:ids AS uuid[])) AS d (id)
    ON CONFLICT DO NOTHING
    RETURNING delivery_id
    """
)

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

_LOCK_IF_REQUESTED = text(
    """
    SELECT id, tenant_id, request_id, reason, actor FROM replays
    WHERE id = :id AND generation = :generation AND state = 'requested'
    FOR UPDATE
    """
)

# A statement of its own: the next one's snapshot then sees what these rows, and their letters, became while it waited.
_LOCK_DELIVERIES = text(
    """
    SELECT d.id FROM deliveries d
    WHERE d.id IN (SELECT delivery_id FROM replay_items WHERE replay_id = :id AND state = 'requested')
    ORDER BY d.id
    FOR UPDATE OF d
    """
)

_REPLAY_IF_FAILED_OR_DEAD_LETTERED = text(
    """
    WITH item AS (
        SELECT delivery_id FROM replay_items WHERE replay_id = :id AND state = 'requested'
    ), before AS (
        SELECT d.id, d.state, d.generation, d.attempts, d.last_class, d.last_status
        FROM deliveries d JOIN item ON item.delivery_id = d.id
        ORDER BY d.id
        FOR UPDATE OF d
    ), sent_again AS (
        UPDATE deliveries d
        SET state = 'replayed', generation = d.generation + 1, due_at = now(), lease_owner = NULL, attempts = 0,
            unknown_streak = 0, replays = d.replays + 1, failed_at = NULL
        FROM before b
        WHERE d.id = b.id AND d.generation = b.generation AND b.state IN ('failed', 'dead_lettered')
        RETURNING d.id
    ), settled AS (
        UPDATE replay_items i
        SET previous_state = b.state, updated_at = now(),
            state = CASE WHEN s.id IS NULL THEN 'conflict' ELSE 'replayed' END
        FROM item
        LEFT JOIN before b ON b.id = item.delivery_id
        LEFT JOIN sent_again s ON s.id = item.delivery_id
        WHERE i.replay_id = :id AND i.delivery_id = item.delivery_id
    ), letter AS (
        UPDATE dead_letters l SET status = 'replayed', updated_at = now()
        FROM sent_again s WHERE l.delivery_id = s.id AND l.status = 'open'
    ), audit AS (
        INSERT INTO audit_events (tenant_id, action, subject, before, after, actor, reason, request_id, traceparent)
        SELECT :tenant_id, 'delivery.replayed', s.id::text,
               jsonb_build_object('state', b.state, 'attempts', b.attempts, 'class', b.last_class,
                                  'status', b.last_status),
               '{"state": "replayed", "attempts": 0}', :actor, :reason, :request_id, e.traceparent
        FROM sent_again s JOIN before b ON b.id = s.id
        JOIN deliveries d ON d.id = s.id LEFT JOIN events e ON e.id = d.event_id
    )
    SELECT (SELECT count(*) FROM sent_again) AS replayed, (SELECT count(*) FROM item) AS items
    """
)

_FINISH = text(
    "UPDATE replays SET state = 'done', due_at = NULL, done_at = now() WHERE id = :id AND state = 'requested'"
)


@dataclass(frozen=True, slots=True)
class ReplayAnswer:
    """What a request for a replay came to; the same for every repetition with the same key."""

    replay_id: UUID | None
    """None for a dry run."""
    request_id: str
    deliveries: list[dict[str, Any]]
    """Each delivery that is (or would be) sent again: `delivery_id`, `endpoint_id`, `previous_state`."""
    skipped: dict[str, int]
    """How many deliveries of the request id are left alone, by state."""
    repeated: bool = False
    """True when the idempotency key had been used for the same thing before: nothing was done again."""


async def request_replay(
    connection: AsyncConnection,
    *,
    tenant_id: str,
    request_id: str,
    reason: str,
    actor: str,
    idempotency_key: str | None = None,
    dry_run: bool = False,
) -> ReplayAnswer:
    """Write down that every failed or dead-lettered delivery of a request id is to be sent again.

    Runs in the caller's transaction and wakes the poller when that commits. Deliveries in other states are left alone
    and counted in `skipped`.

    Raises:
        InvalidInput: no reason was given, or a text is empty or too long.
        NotFound: the tenant has no delivery with this request id.
        Conflict: none of them is failed or dead-lettered, or all that are have a replay waiting.
        IdempotencyConflict: the key was used for another request id or reason.
    """
    if not reason.strip():
        raise InvalidInput("reason: a replay needs one; say why it is sent again")
    for name, value in (("request_id", request_id), ("reason", reason), ("idempotency_key", idempotency_key)):
        if value is not None and (not value or len(value) > TEXT_MAX or "\0" in value):
            raise InvalidInput(f"{name}: must have 1 to {TEXT_MAX} characters, none of them NUL")
    digest = hashlib.sha256(json.dumps([request_id, reason], separators=(",", ":")).encode()).digest()
    if idempotency_key is not None and (answer := await _repeated(connection, tenant_id, idempotency_key, digest)):
        return answer
    rows = (await connection.execute(_CANDIDATES, {"tenant_id": tenant_id, "request_id": request_id})).all()
    if not rows:
        raise NotFound(f"no delivery has request id {request_id!r} in tenant {tenant_id!r}")
    wanted = [r for r in rows if r.state in REPLAYABLE and not r.requested]
    skipped: dict[str, int] = {}
    for r in rows:
        if r not in wanted:
            label = "replay_requested" if r.requested else r.state
            skipped[label] = skipped.get(label, 0) + 1
    if not wanted:
        states = ", ".join(f"{count} {state}" for state, count in sorted(skipped.items()))
        raise Conflict(
            f"nothing to replay for request id {request_id!r}: its deliveries are {states}; "
            "only failed and dead_lettered ones can be sent again"
        )
    listed = [
        {"delivery_id": r.id, "endpoint_id": r.endpoint_id, "previous_state": r.state, "last_class": r.last_class}
        for r in wanted
    ]
    if dry_run:
        return ReplayAnswer(None, request_id, listed, skipped)
    replay_id = (
        await connection.execute(
            _WRITE_DOWN,
            {
                "tenant_id": tenant_id,
                "request_id": request_id,
                "reason": reason,
                "actor": actor,
                "idempotency_key": idempotency_key,
                "body_digest": digest,
                "skipped": json.dumps(skipped),
            },
        )
    ).scalar_one()
    ids = [r.id for r in wanted]
    await connection.execute(_CLOSE_ITEMS_OF_FAILED, {"ids": ids})
    added = {
        r.delivery_id for r in await connection.execute(_ADD_ITEMS_UNLESS_OPEN, {"replay_id": replay_id, "ids": ids})
    }
    if not added:
        raise Conflict(f"request id {request_id!r} is being replayed already; wait for that replay to finish")
    await connection.execute(text("SELECT pg_notify('homing_wake', '')"))
    return ReplayAnswer(replay_id, request_id, [d for d in listed if d["delivery_id"] in added], skipped)


async def _repeated(connection: AsyncConnection, tenant_id: str, key: str, digest: bytes) -> ReplayAnswer | None:
    await connection.execute(_ONE_AT_A_TIME, {"tenant_id": tenant_id, "key": key})
    row = (await connection.execute(_BY_KEY, {"tenant_id": tenant_id, "key": key})).one_or_none()
    if row is None:
        return None
    if bytes(row.body_digest) != digest:
        raise IdempotencyConflict(
            f"idempotency key {key!r} was used for another replay; use a new key, or repeat the same request"
        )
    items = await connection.execute(
        text(
            """
            SELECT i.delivery_id, d.endpoint_id, coalesce(i.previous_state, d.state) AS previous_state, d.last_class
            FROM replay_items i JOIN deliveries d ON d.id = i.delivery_id
            WHERE i.replay_id = :id ORDER BY i.delivery_id
            """
        ),
        {"id": row.id},
    )
    listed = [dict(i._mapping) for i in items]
    return ReplayAnswer(row.id, row.request_id, listed, row.skipped, repeated=True)


async def claim_requested(connection: AsyncConnection, *, limit: int, lease_s: float) -> list[tuple[UUID, int]]:
    """Claim at most `limit` replays for publication: their ids and generations. Skips what another poller holds."""
    rows = await connection.execute(_CLAIM_REQUESTED_SKIPPING_LOCKED, {"limit": limit, "lease_s": lease_s})
    return [(r.id, r.generation) for r in rows]


async def carry_out_if_requested(connection: AsyncConnection, replay_id: UUID, generation: int) -> int | None:
    """Send again what a replay asks for; returns how many deliveries, or None when the message was stale.

    One transaction (the caller's). Guard: the replay is requested under this generation; each delivery is failed or
    dead-lettered at this moment, else its item says conflict with the state it really had.
    """
    arguments = {"id": replay_id, "generation": generation}
    replay = (await connection.execute(_LOCK_IF_REQUESTED, arguments)).one_or_none()
    if replay is None:
        return None
    await connection.execute(_LOCK_DELIVERIES, {"id": replay_id})
    done = (
        await connection.execute(
            _REPLAY_IF_FAILED_OR_DEAD_LETTERED,
            {
                "id": replay_id,
                "tenant_id": replay.tenant_id,
                "actor": replay.actor,
                "reason": replay.reason,
                "request_id": replay.request_id,
            },
        )
    ).one()
    await connection.execute(_FINISH, {"id": replay_id})
    return int(done.replayed)
