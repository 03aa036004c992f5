"""The audit trail: what people and Homing did, in an append-only table whose rows are chained by hashes.

A row is written in the transaction of the act that it tells of, and chained by the poller up to `CHAIN_EVERY_S` later (or
by `chain_audit`, called by anybody): each tenant's rows are numbered from 1, and each carries SHA-256 over the hash before it
and all its own columns. In between, a row is protected by the table's triggers and by the role's missing rights only;
afterwards `verify_audit` finds any edit, exchange, removal or cut. Who can write the whole chain and its head anew
can fake it; the poller therefore writes heads to its log, and `verify_audit` compares with one that was kept elsewhere.

The application's role needs `SELECT, INSERT` on `audit_events`, `SELECT` on `audit_heads` and `EXECUTE` on
`homing_chain_audit(integer)`; it must not own the two tables.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import InvalidInput

#: Seconds between two rounds of the poller's chaining: how long a row may stay unchained.
CHAIN_EVERY_S = 5.0
#: Rows chained in one transaction, at most.
CHAIN_BATCH = 1000
#: Rows read at once when verifying.
_PAGE = 5000
#: Problems that a verification describes; it counts all.
PROBLEMS_MAX = 20

_WRITE = text(
    """
    INSERT INTO audit_events (tenant_id, action, subject, before, after, actor, reason, request_id, traceparent)
    VALUES (:tenant_id, :action, :subject, CAST(:before AS jsonb), CAST(:after AS jsonb), :actor, :reason, :request_id,
            :traceparent)
    """
)

_CHAIN = text("SELECT homing_chain_audit(:at_most)")

_LIST = """
    SELECT id, seq, action, subject, before, after, actor, reason, request_id, traceparent, created_at
    FROM audit_events WHERE tenant_id = :tenant_id {conditions} ORDER BY id DESC LIMIT :limit
"""

# What homing_audit_hash() is fed with, written out again: a verification that asked the same function would learn little.
_LINKS = text(
    """
    SELECT seq, id, hash, jsonb_build_array(
               seq, id, tenant_id, action, subject, before::text, after::text, actor, reason, request_id, traceparent,
               (extract(epoch FROM created_at) * 1000000)::bigint)::text AS content
    FROM audit_events WHERE tenant_id = :tenant_id AND seq > :after ORDER BY seq LIMIT :page
    """
)

_HEAD = text("SELECT seq, hash FROM audit_heads WHERE tenant_id = :tenant_id")

_HEADS = text("SELECT tenant_id, seq, hash FROM audit_heads WHERE updated_at > now() - :age_s * interval '1 second'")

_UNCHAINED = text("SELECT count(*) FROM audit_events WHERE seq IS NULL AND tenant_id = :tenant_id")


@dataclass(frozen=True, slots=True)
class Head:
    """The last link of a tenant's chain."""

    tenant_id: str
    seq: int
    hash: str
    """64 hexadecimal digits."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What a walk along a tenant's whole chain found."""

    tenant_id: str
    rows: int
    """Chained rows that are there."""
    unchained: int
    """Rows that wait for the poller to chain them."""
    head: Head | None
    """The stored head; None when nothing has been chained yet."""
    broken: int = 0
    """How many problems there are."""
    problems: list[str] = field(default_factory=list)
    """The first 20, in words, each with the number of the row."""

    @property
    def ok(self) -> bool:
        """True when every row is as it was written, and none is missing."""
        return not self.broken


async def write_audit(
    connection: AsyncConnection,
    *,
    tenant_id: str,
    action: str,
    subject: str | UUID,
    actor: str,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    reason: str | None = None,
    request_id: str | None = None,
    traceparent: str | None = None,
) -> None:
    """Write one row in the caller's transaction: it tells of the act exactly when the act is committed.

    Args:
        connection: the act's own.
        tenant_id: whose data.
        action: such as `endpoint.paused`; noun, dot, past participle.
        subject: id of what it was done to.
        actor: who did it, such as `cli:anna` or `key:k_123`; `homing` when nobody did.
        before: the state before, never a secret.
        after: the state after, never a secret.
        reason: why, in the actor's words.
        request_id: of the event that it is about.
        traceparent: of that event.
    """
    await connection.execute(
        _WRITE,
        {
            "tenant_id": tenant_id,
            "action": action,
            "subject": str(subject),
            "before": None if before is None else json.dumps(before),
            "after": None if after is None else json.dumps(after),
            "actor": actor,
            "reason": reason,
            "request_id": request_id,
            "traceparent": traceparent,
        },
    )


async def chain_audit(connection: AsyncConnection, *, at_most: int = CHAIN_BATCH) -> int:
    """Number and hash at most so many unchained rows, in the caller's transaction; returns how many.

    One at a time for the whole database (an advisory lock until the transaction ends): while another chains, 0.
    """
    return int((await connection.execute(_CHAIN, {"at_most": at_most})).scalar_one())


async def list_audit(
    connection: AsyncConnection,
    tenant_id: str,
    *,
    request_id: str | None = None,
    limit: int = 50,
    before: UUID | None = None,
) -> list[dict[str, Any]]:
    """A tenant's audit rows, newest first; `seq` is None for those that are not chained yet.

    Args:
        connection: to read with.
        tenant_id: whose.
        request_id: only rows about this request id.
        limit: 1 to 1000.
        before: only rows older than this row id: the last one of the page before.

    Raises:
        InvalidInput: the limit is out of range.
    """
    if not 1 <= limit <= 1000:
        raise InvalidInput(f"limit: {limit} is not from 1 to 1000")
    conditions = ("AND request_id = :request_id " if request_id is not None else "") + (
        "AND id < CAST(:before AS uuid)" if before is not None else ""
    )
    given: dict[str, Any] = {"request_id": request_id, "before": before}
    rows = await connection.execute(
        text(_LIST.format(conditions=conditions)),
        {name: value for name, value in given.items() if value is not None} | {"tenant_id": tenant_id, "limit": limit},
    )
    return [dict(row._mapping) for row in rows]


async def recent_heads(connection: AsyncConnection, *, age_s: float) -> list[Head]:
    """Heads that have moved within these seconds: what the poller writes to its log."""
    return [Head(r.tenant_id, r.seq, bytes(r.hash).hex()) for r in await connection.execute(_HEADS, {"age_s": age_s})]


async def verify_audit(connection: AsyncConnection, tenant_id: str, *, kept: Head | None = None) -> Verification:
    """Walk a tenant's chain from its first row to its head, computing every hash anew.

    Args:
        connection: to read with, best in one REPEATABLE READ transaction, so that the poller does not chain meanwhile.
        tenant_id: whose chain.
        kept: a head that was kept elsewhere (in the poller's log): the chain must go through it. It shows what the
            stored head alone cannot: that chain and head were written anew together.

    Returns:
        Everything that is wrong: a row whose columns or place are not what its hash was made of, a number that is
        missing, an end that was cut off. A row is judged against the hash stored before it, so one edit is one problem.
    """
    found = _Found()
    previous, last = b"", 0
    kept_hash: bytes | None = None
    while True:
        page = (await connection.execute(_LINKS, {"tenant_id": tenant_id, "after": last, "page": _PAGE})).all()
        for row in page:
            if row.seq != last + 1:
                missing = f"row {last + 1} is" if row.seq == last + 2 else f"rows {last + 1} to {row.seq - 1} are"
                found.add(f"{missing} missing")
            stored = bytes(row.hash)
            if sha256(previous + row.content.encode()).digest() != stored:
                found.add(f"row {row.seq} ({row.id}) is not what was chained, or not where it was")
            if kept is not None and row.seq == kept.seq:
                kept_hash = stored
            previous, last = stored, row.seq
            found.rows += 1
        if len(page) < _PAGE:
            break
    head = (await connection.execute(_HEAD, {"tenant_id": tenant_id})).one_or_none()
    if head is None and found.rows:
        found.add("the chain's head is missing")
    elif head is not None and head.seq > last:
        found.add(f"rows {last + 1} to {head.seq}, the end of the chain, were cut off")
    elif head is not None and (head.seq < last or bytes(head.hash) != previous):
        found.add(f"the head (row {head.seq}) does not belong to the chain's end (row {last})")
    if kept is not None and (kept_hash is None or kept_hash.hex() != kept.hash):
        found.add(f"the chain does not go through the head that was kept (row {kept.seq})")
    unchained = (await connection.execute(_UNCHAINED, {"tenant_id": tenant_id})).scalar_one()
    return Verification(
        tenant_id=tenant_id,
        rows=found.rows,
        unchained=unchained,
        head=None if head is None else Head(tenant_id, head.seq, bytes(head.hash).hex()),
        broken=found.broken,
        problems=found.problems,
    )


@dataclass(slots=True)
class _Found:
    rows: int = 0
    broken: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        self.broken += 1
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(problem)
