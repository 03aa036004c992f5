"""What a write with an idempotency key answered, remembered in the transaction of its effect.

Requests with one key follow each other: each takes an advisory lock that its transaction holds, so the second one reads
what the first has committed, and fifty at once have one effect. Only what took effect is remembered: a request that was
refused may be repeated under its key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import IdempotencyConflict

#: Days for which an answer is remembered.
REMEMBERED_DAYS = 7

_ONE_AT_A_TIME = text("SELECT pg_advisory_xact_lock(hashtextextended(:tenant_id || ' ' || :key, 1752132969))")

_FIND = text(
    """
    SELECT target, body_digest, status, headers, body, sealed FROM idempotency_keys
    WHERE tenant_id = :tenant_id AND key = :key
    """
)

_REMEMBER = text(
    """
    INSERT INTO idempotency_keys (tenant_id, key, target, body_digest, status, headers, body, sealed)
    VALUES (:tenant_id, :key, :target, :body_digest, :status, CAST(:headers AS jsonb), :body, :sealed)
    """
)

_FORGET_OLD = text(
    f"""
    DELETE FROM idempotency_keys WHERE (tenant_id, key) IN (
        SELECT tenant_id, key FROM idempotency_keys
        WHERE created_at < now() - interval '{REMEMBERED_DAYS} days' ORDER BY created_at LIMIT :limit
        FOR UPDATE SKIP LOCKED)
    """  # noqa: S608 - the only thing put in is the constant above
)


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for under a key."""

    tenant_id: str
    key: str
    target: str
    """Method and path: what is done to what."""
    body_digest: bytes

    @property
    def context(self) -> str:
        """What a sealed answer is bound to."""
        return f"idempotency_keys/{self.tenant_id}/{self.key}"


@dataclass(frozen=True, slots=True)
class Remembered:
    """An answer, byte for byte."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    sealed: bool


async def recall(connection: AsyncConnection, request: Request) -> Remembered | None:
    """What this request answered before; None when its key is new, and now held until the transaction ends.

    Raises:
        IdempotencyConflict: the key was used for another action, target or body.
    """
    where = {"tenant_id": request.tenant_id, "key": request.key}
    await connection.execute(_ONE_AT_A_TIME, where)
    row = (await connection.execute(_FIND, where)).one_or_none()
    if row is None:
        return None
    if row.target != request.target or bytes(row.body_digest) != request.body_digest:
        raise IdempotencyConflict(
            "the idempotency key was used for another action, target or body; use a new key, or repeat the same request"
        )
    return Remembered(row.status, row.headers, bytes(row.body), row.sealed)


async def remember(connection: AsyncConnection, request: Request, answer: Remembered) -> None:
    """Keep an answer for as long as its effect is kept: both are in the caller's transaction."""
    fields: dict[str, Any] = {"tenant_id": request.tenant_id, "key": request.key, "target": request.target}
    fields |= {"body_digest": request.body_digest, "status": answer.status, "body": answer.body}
    await connection.execute(_REMEMBER, fields | {"headers": json.dumps(dict(answer.headers)), "sealed": answer.sealed})


async def forget_old(connection: AsyncConnection, *, limit: int = 1000) -> int:
    """Delete at most `limit` answers that are older than `REMEMBERED_DAYS`; how many there were."""
    return (await connection.execute(_FORGET_OLD, {"limit": limit})).rowcount
