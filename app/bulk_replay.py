"""Bulk replay: every open dead letter that a selector matches, sent again in paced batches; asked for and cancelled.

What is asked for is written down whole, one item per delivery, in one transaction: it does not change when the matching set
does. The replay actor carries it out batch by batch (`app.replay_batches`), each batch in a transaction of its own, so a crash at any
point leaves items that were sent again and items that wait, and never one sent twice.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.audit import write_audit
from app.errors import Conflict, IdempotencyConflict, InvalidInput, NotFound
from app.replay_batches import WAKE_POLLER
from app.replay_guard import check_concurrency
from app.replay_progress import Progress as Progress
from app.replay_progress import list_replays as list_replays
from app.replay_progress import replay_progress as replay_progress
from app.replays import BY_KEY, ONE_AT_A_TIME, check_texts
from app.selection import MAX_SCAN, Selector, estimate_s, matching, preview

#: How far the matching set may have grown since it was looked at, as a share of the count that was shown.
GROWTH_MAX = 0.1
#: Items of one replay, at most.
ITEMS_MAX = 50_000

_WRITE_DOWN = text(
    """
    INSERT INTO replays (tenant_id, selector, matched, rate_per_s, concurrency, delete_after, reason, actor,
                         idempotency_key, body_digest)
    VALUES (:tenant_id, CAST(:selector AS jsonb), :matched, :rate_per_s, :concurrency, :delete_after, :reason, :actor,
            :idempotency_key, :body_digest)
    RETURNING id
    """
)

# As for one request id: what was sent again and ran out since, and is not filed yet, gives way. An item of another open replay
# stays where it is (index replay_items_open), and is counted as skipped.
_ADD_ITEMS_UNLESS_OPEN = """
    WITH {ctes}, chosen AS (
        SELECT DISTINCT delivery_id FROM (SELECT delivery_id FROM matched ORDER BY id LIMIT :max_items) AS oldest
    ), added AS (
        INSERT INTO replay_items (replay_id, delivery_id)
        SELECT :replay_id, delivery_id FROM chosen ORDER BY delivery_id
        ON CONFLICT DO NOTHING
        RETURNING delivery_id
    )
    SELECT (SELECT count(*) FROM chosen) AS chosen, (SELECT count(*) FROM added) AS added
"""

_KEEP_SKIPPED = text("UPDATE replays SET skipped = CAST(:skipped AS jsonb) WHERE id = :id")

_LOCK = text("SELECT state, request_id FROM replays WHERE tenant_id = :tenant_id AND id = :id FOR UPDATE")

_CANCEL_ITEMS_THAT_WAIT = text(
    """
    UPDATE replay_items SET state = 'cancelled', updated_at = now()
    WHERE replay_id = :id AND state = 'requested'
    """
)

_CANCEL_IF_NOT_OVER = text(
    """
    UPDATE replays SET state = 'cancelled', due_at = NULL, done_at = now(), cancelled_by = :actor, cancel_reason = :reason
    WHERE id = :id AND state IN ('requested', 'running')
    """
)


@dataclass(frozen=True, slots=True)
class BulkReplay:
    """What a request for a bulk replay came to; the same for every repetition with the same key."""

    replay_id: UUID
    matched: int
    """Open dead letters that the selector matched."""
    items: int
    """How many of them are sent again by this replay."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Why the others are not: `replay_requested` (another replay of them is open), `over_max_items`."""
    estimated_s: float = 0.0
    """Seconds until all are sent again."""
    repeated: bool = False
    """True when the idempotency key had been used for the same thing before: nothing was done again."""


async def request_bulk_replay(
    connection: AsyncConnection,
    *,
    tenant_id: str,
    selector: Selector,
    reason: str,
    actor: str,
    idempotency_key: str | None = None,
    expected_count: int | None = None,
    rate_per_s: float = 100.0,
    max_items: int = 10_000,
    delete_after: bool = False,
    concurrency: int = 10,
    max_scan: int = MAX_SCAN,
) -> BulkReplay:
    """Write down that every open dead letter which matches is to be sent again, oldest first.

    Runs in the caller's transaction, is audited, and wakes the poller when that commits. Whoever lets a person set the
    concurrency calls `app.replay_guard.check_replay` with the preview's count before.

    Args:
        connection: the caller's transaction.
        tenant_id: whose dead letters.
        selector: which of them.
        reason: why, in the actor's words.
        actor: who asks.
        idempotency_key: the same key and arguments are carried out once.
        expected_count: what a preview has shown; None: whatever matches.
        rate_per_s: items sent again per second, at most; 0.01 to 1000.
        max_items: items sent again by this replay; the oldest of those that match. 1 to 50,000.
        delete_after: remove each dead letter once its delivery has succeeded (the event and the audit trail stay).
        concurrency: items under way at once, 1 to 20.
        max_scan: open dead letters to look at, oldest first.

    Raises:
        InvalidInput: a number or a text is out of range, or there is no reason.
        NotFound: no open dead letter matches.
        Conflict: the set has grown by more than a tenth over `expected_count`, or other replays have all of it already.
        IdempotencyConflict: the key was used for something else.
    """
    check_texts(reason=reason, idempotency_key=idempotency_key)
    check_concurrency(concurrency, allow_high=True)
    if not 0.01 <= rate_per_s <= 1000:
        raise InvalidInput(f"rate_per_s: {rate_per_s:g} is not from 0.01 to 1000")
    if not 1 <= max_items <= ITEMS_MAX:
        raise InvalidInput(f"max_items: {max_items} is not from 1 to {ITEMS_MAX}")
    asked = ["bulk", selector.given(), reason, rate_per_s, max_items, delete_after, concurrency, max_scan]
    digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).digest()
    if idempotency_key is not None and (answer := await _repeated(connection, tenant_id, idempotency_key, digest)):
        return answer
    seen = await preview(connection, tenant_id, selector, max_scan=max_scan)
    if not seen.count:
        raise NotFound(f"no open dead letter of tenant {tenant_id!r} matches")
    if expected_count is not None and seen.count > expected_count * (1 + GROWTH_MAX):
        raise Conflict(
            f"{seen.count} dead letters match by now, more than a tenth above the expected {expected_count}: "
            "look again, then ask with the new count"
        )
    arguments = {
        "tenant_id": tenant_id,
        "selector": json.dumps(selector.given()),
        "matched": seen.count,
        "rate_per_s": rate_per_s,
        "concurrency": concurrency,
        "delete_after": delete_after,
        "reason": reason,
        "actor": actor,
        "idempotency_key": idempotency_key,
        "body_digest": digest,
    }
    replay_id: UUID = (await connection.execute(_WRITE_DOWN, arguments)).scalar_one()
    ctes, given = matching(selector)
    limits = {"max_scan": max_scan, "max_items": min(max_items, seen.count)}
    row = (
        await connection.execute(
            text(_ADD_ITEMS_UNLESS_OPEN.format(ctes=ctes)),
            given | limits | {"tenant_id": tenant_id, "replay_id": replay_id},
        )
    ).one()
    if not row.added:
        raise Conflict("other replays have all of it already; wait for them to finish, or cancel them")
    skipped = {"replay_requested": row.chosen - row.added, "over_max_items": max(0, seen.count - row.chosen)}
    skipped = {why: count for why, count in skipped.items() if count}
    await connection.execute(_KEEP_SKIPPED, {"id": replay_id, "skipped": json.dumps(skipped)})
    await write_audit(
        connection,
        tenant_id=tenant_id,
        action="replay.requested",
        subject=replay_id,
        actor=actor,
        reason=reason,
        after={"selector": selector.given(), "matched": seen.count, "items": row.added, "concurrency": concurrency}
        | {"rate_per_s": rate_per_s, "delete_after": delete_after},
        request_id=selector.request_id,
    )
    await connection.execute(WAKE_POLLER)
    estimate = estimate_s(row.added, rate_per_s, concurrency)
    return BulkReplay(replay_id, seen.count, row.added, skipped, estimate)


async def cancel_replay(
    connection: AsyncConnection, tenant_id: str, replay_id: UUID, actor: str, reason: str
) -> Progress:
    """Stop a replay: what waits is left as it is; what was sent again goes on and keeps its retries. Audited.

    Waits for the batch that is under way (milliseconds). In the caller's transaction.

    Raises:
        InvalidInput: there is no reason.
        NotFound: the tenant has no such replay.
        Conflict: it is over.
    """
    check_texts(reason=reason)
    replay = (await connection.execute(_LOCK, {"tenant_id": tenant_id, "id": replay_id})).one_or_none()
    if replay is None:
        raise NotFound(f"tenant {tenant_id!r} has no replay {replay_id}")
    if replay.state not in ("requested", "running"):
        raise Conflict(f"replay {replay_id} is {replay.state}; there is nothing left to cancel")
    stopped = (await connection.execute(_CANCEL_ITEMS_THAT_WAIT, {"id": replay_id})).rowcount
    await connection.execute(_CANCEL_IF_NOT_OVER, {"id": replay_id, "actor": actor, "reason": reason})
    await write_audit(
        connection,
        tenant_id=tenant_id,
        action="replay.cancelled",
        subject=replay_id,
        actor=actor,
        reason=reason,
        before={"state": replay.state},
        after={"state": "cancelled", "items_cancelled": stopped},
        request_id=replay.request_id,
    )
    return await replay_progress(connection, tenant_id, replay_id)


async def _repeated(connection: AsyncConnection, tenant_id: str, key: str, digest: bytes) -> BulkReplay | None:
    await connection.execute(ONE_AT_A_TIME, {"tenant_id": tenant_id, "key": key})
    row = (await connection.execute(BY_KEY, {"tenant_id": tenant_id, "key": key})).one_or_none()
    if row is None:
        return None
    if bytes(row.body_digest) != digest:
        raise IdempotencyConflict(
            f"idempotency key {key!r} was used for another replay; use a new key, or repeat the same request"
        )
    found = await replay_progress(connection, tenant_id, row.id)
    estimate = estimate_s(found.items, found.rate_per_s or 1.0, found.concurrency or 1)
    return BulkReplay(row.id, found.matched or 0, found.items, row.skipped, estimate, repeated=True)
