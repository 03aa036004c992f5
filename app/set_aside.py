"""Outbox rows that were set aside: put back, once the cause is mended, under the id that they always had."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import NotFound

#: Rows put back by one statement, when all are.
_BATCH = 1000

_COLUMNS = (
    "id, tenant_id, event_type, payload, request_id, idempotency_key, traceparent, run_id, ordering_key, headers, "
    "created_at"
)

_PUT_BACK = text(
    f"""
    WITH gone AS (DELETE FROM outbox_rejected WHERE id = ANY(CAST(:ids AS uuid[])) RETURNING {_COLUMNS})
    INSERT INTO outbox_events ({_COLUMNS}) SELECT {_COLUMNS} FROM gone ORDER BY id
    RETURNING id
    """  # noqa: S608 - the only thing put in is the constant above
)

_OLDEST = text("SELECT id FROM outbox_rejected ORDER BY id LIMIT :limit FOR UPDATE SKIP LOCKED")


async def resubmit(connection: AsyncConnection, ids: Sequence[UUID]) -> list[UUID]:
    """Move these rows from `outbox_rejected` back to `outbox_events`, in the caller's transaction; returns their ids.

    Their events keep their ids, so a receiver sees the `webhook-id` that the producer knows. What is still wrong with
    one sets it aside again.

    Raises:
        NotFound: one of them is not set aside. Nothing was moved, provided that the caller rolls back.
    """
    wanted = sorted(set(ids))
    moved = set((await connection.execute(_PUT_BACK, {"ids": wanted})).scalars())
    if missing := [i for i in wanted if i not in moved]:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise NotFound(f"row {missing[0]}{more} is not set aside; `homing events rejected` lists those that are")
    return wanted


async def resubmit_all(connection: AsyncConnection) -> list[UUID]:
    """Move every row that is set aside back, as `resubmit` does; leaves out what another transaction is moving."""
    moved: list[UUID] = []
    while ids := list((await connection.execute(_OLDEST, {"limit": _BATCH})).scalars()):
        moved += (await connection.execute(_PUT_BACK, {"ids": ids})).scalars()
    return sorted(moved)
