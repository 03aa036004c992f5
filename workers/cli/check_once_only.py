"""Proof that the unique indexes behind idempotency exist and refuse a second write. Leaves nothing behind.

Rows are written inside a transaction that is rolled back, whatever happens. Two rows that differ in everything but the
guarded columns: the first must be taken, the second refused, and by that very index.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.db import is_away
from workers.cli.check import Check

_ONE = UUID("00000000-0000-4000-8000-00000000d0c1")
_OTHER = UUID("00000000-0000-4000-8000-00000000d0c2")
_DOCTOR = "homing-doctor"

Row = Mapping[str, Any]


def _replay(replay_id: UUID, key: str | None) -> dict[str, Any]:
    who = {"tenant_id": _DOCTOR, "request_id": _DOCTOR, "reason": _DOCTOR, "actor": _DOCTOR}
    return who | {"id": replay_id, "idempotency_key": key, "body_digest": b""}


def _dead_letter(event_type: str) -> dict[str, Any]:
    ids = {"delivery_id": _ONE, "generation": 1, "endpoint_id": _ONE, "event_id": _ONE}
    words = {"tenant_id": _DOCTOR, "request_id": _DOCTOR, "payload": "", "failure_class": "none", "attempts": 1}
    return ids | words | {"event_type": event_type}


@dataclass(frozen=True, slots=True)
class Guard:
    """A unique index, and two rows of which it must refuse the second."""

    promise: str
    table: str
    index: str
    first: Row
    second: Row
    needs: tuple[tuple[str, Row], ...] = ()
    """Rows of other tables that must be there before."""


#: Every index that a promise rests on; a new one is one entry here.
GUARDS = (
    Guard(
        "one outbox row per event id",
        "outbox_events",
        "outbox_events_pkey",
        {"id": _ONE, "tenant_id": _DOCTOR, "event_type": "doctor", "payload": "1"},
        {"id": _ONE, "tenant_id": _DOCTOR, "event_type": "doctor", "payload": "2"},
    ),
    Guard(
        "one set of deliveries per idempotency key",
        "event_keys",
        "event_keys_pkey",
        {"tenant_id": _DOCTOR, "idempotency_key": "k", "event_id": _ONE},
        {"tenant_id": _DOCTOR, "idempotency_key": "k", "event_id": _OTHER},
    ),
    Guard(
        "one replay per idempotency key",
        "replays",
        "replays_tenant_id_idempotency_key_key",
        _replay(_ONE, "k"),
        _replay(_OTHER, "k"),
    ),
    Guard(
        "one open replay per delivery",
        "replay_items",
        "replay_items_open",
        {"replay_id": _ONE, "delivery_id": _ONE},
        {"replay_id": _OTHER, "delivery_id": _ONE},
        needs=(("replays", _replay(_ONE, None)), ("replays", _replay(_OTHER, None))),
    ),
    Guard(
        "one dead letter per delivery that ran out",
        "dead_letters",
        "dead_letters_delivery_id_generation_key",
        _dead_letter("doctor.one"),
        _dead_letter("doctor.two"),
    ),
)


async def check_once_only(engine: AsyncEngine) -> list[Check]:
    """One check per guard."""
    return [await check_guard(engine, guard) for guard in GUARDS]


async def check_guard(engine: AsyncEngine, guard: Guard) -> Check:
    """Try to break one promise, and roll everything back.

    Raises:
        sqlalchemy.exc.DBAPIError: Postgres went away.
    """
    async with engine.connect() as connection, connection.begin() as transaction:
        try:
            for table, row in guard.needs:
                await _insert(connection, table, row)
            await _insert(connection, guard.table, guard.first)
            refused_by = await _refused_by(connection, guard)
        except DBAPIError as error:
            if is_away(error):
                raise
            said = str(error.orig).strip().partition("\n")[0]
            return Check(
                guard.promise,
                "fail",
                f"could not be tried: {said}",
                "run doctor as a role that may write to every table",
            )
        finally:
            await transaction.rollback()
    if refused_by == guard.index:
        return Check(guard.promise, "ok", f"{guard.index} refuses a second write")
    what = f"{guard.table} took a second row" if refused_by is None else f"refused by {refused_by}, not {guard.index}"
    return Check(
        guard.promise,
        "fail",
        what,
        f"make the unique index {guard.index} again, as `migrations` has it; look for duplicates first",
    )


async def _refused_by(connection: AsyncConnection, guard: Guard) -> str | None:
    """The index that refuses the guard's second row; None when nothing does."""
    try:
        async with connection.begin_nested():
            await _insert(connection, guard.table, guard.second)
    except IntegrityError as error:
        diagnosis = getattr(error.orig, "diag", None)
        return str(getattr(diagnosis, "constraint_name", None))
    return None


async def _insert(connection: AsyncConnection, table: str, row: Row) -> None:
    """Insert a row; names come from this module only, values go as parameters."""
    columns = ", ".join(row)
    values = ", ".join(
        f"CAST(:{name} AS jsonb)" if name == "payload" and table == "outbox_events" else f":{name}" for name in row
    )
    await connection.execute(text(f"INSERT INTO {table} ({columns}) VALUES ({values})"), dict(row))  # noqa: S608
