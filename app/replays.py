"""Replay: a person's wish to send one request id's deliveries, or one delivery, again, written down.

`app.bulk_replay` writes down the wishes for everything that a selector matches; `app.replay_batches` carries out both.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import Conflict, IdempotencyConflict, InvalidInput, NotFound
from app.replay_batches import WAKE_POLLER
from app.replay_batches import carry_out_if_requested as carry_out_if_requested
from app.replay_batches import claim_requested as claim_requested
from app.states import REPLAYABLE

#: Longest request id, reason and idempotency key, in characters.
TEXT_MAX = 1000

_CANDIDATE = """
    SELECT d.id, d.state, d.endpoint_id, d.attempts, d.last_class, d.last_status, e.request_id,
           EXISTS (SELECT FROM replay_items i
                   WHERE i.delivery_id = d.id AND i.state = 'requested') AS requested
"""

_CANDIDATES = text(
    f"""
    {_CANDIDATE}
    FROM events e JOIN deliveries d ON d.event_id = e.id
    WHERE e.tenant_id = :tenant_id AND e.request_id = :request_id
    ORDER BY d.id
    """
)

_ONE_CANDIDATE = text(
    f"""
    {_CANDIDATE}
    FROM deliveries d JOIN events e ON e.id = d.event_id
    WHERE d.tenant_id = :tenant_id AND d.id = :delivery_id
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
ONE_AT_A_TIME = text("SELECT pg_advisory_xact_lock(hashtextextended(:tenant_id || ' ' || :key, 1752132968))")

BY_KEY = text(
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
    request_id: str | None = None,
    delivery_id: UUID | None = None,
    reason: str,
    actor: str,
    idempotency_key: str | None = None,
    dry_run: bool = False,
) -> ReplayAnswer:
    """Write down that every failed or dead-lettered delivery of a request id, or one of them, is to be sent again.

    Runs in the caller's transaction and wakes the poller when that commits. Deliveries in other states are left alone
    and counted in `skipped`. Exactly one of `request_id` and `delivery_id` is given.

    Raises:
        InvalidInput: no reason was given, or a text is empty or too long.
        NotFound: the tenant has no delivery with this request id, or no such delivery.
        Conflict: none of them is failed or dead-lettered, or all that are have a replay waiting.
        IdempotencyConflict: the key was used for another request id, delivery or reason.
    """
    check_texts(request_id=request_id, reason=reason, idempotency_key=idempotency_key)
    selects = [request_id] if delivery_id is None else ["delivery", str(delivery_id)]
    digest = hashlib.sha256(json.dumps([*selects, reason], separators=(",", ":")).encode()).digest()
    if idempotency_key is not None and (answer := await _repeated(connection, tenant_id, idempotency_key, digest)):
        return answer
    where = {"tenant_id": tenant_id, "request_id": request_id, "delivery_id": delivery_id}
    rows = (await connection.execute(_CANDIDATES if delivery_id is None else _ONE_CANDIDATE, where)).all()
    if not rows and delivery_id is not None:
        raise NotFound(f"tenant {tenant_id!r} has no delivery {delivery_id}")
    if not rows:
        raise NotFound(f"no delivery has request id {request_id!r} in tenant {tenant_id!r}")
    request_id = str(rows[0].request_id)
    wanted = [r for r in rows if r.state in REPLAYABLE and not r.requested]
    skipped: dict[str, int] = {}
    for r in rows:
        if r not in wanted:
            label = "replay_requested" if r.requested else r.state
            skipped[label] = skipped.get(label, 0) + 1
    if not wanted:
        states = ", ".join(f"{count} {state}" for state, count in sorted(skipped.items()))
        whose = f"request id {request_id!r}" if delivery_id is None else f"delivery {delivery_id}"
        raise Conflict(
            f"nothing to replay for {whose}: its deliveries are {states}; "
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
    await connection.execute(WAKE_POLLER)
    return ReplayAnswer(replay_id, request_id, [d for d in listed if d["delivery_id"] in added], skipped)


def check_texts(*, reason: str, **texts: str | None) -> None:
    """Raise InvalidInput unless there is a reason, and every given text is fit to be kept."""
    if not reason.strip():
        raise InvalidInput("reason: a replay needs one; say why it is sent again")
    for name, value in {"reason": reason, **texts}.items():
        if value is not None and (not value or len(value) > TEXT_MAX or "\0" in value):
            raise InvalidInput(f"{name}: must have 1 to {TEXT_MAX} characters, none of them NUL")


async def _repeated(connection: AsyncConnection, tenant_id: str, key: str, digest: bytes) -> ReplayAnswer | None:
    await connection.execute(ONE_AT_A_TIME, {"tenant_id": tenant_id, "key": key})
    row = (await connection.execute(BY_KEY, {"tenant_id": tenant_id, "key": key})).one_or_none()
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
