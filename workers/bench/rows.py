"""The benchmark's own hands on a system's rows: it commits events to the outbox, and reads what has been recorded.

Every system has a table `deliveries` with `id`, `event_id` and `state`, so that all are judged by the same queries.
"""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Any, LiteralString, Self

import psycopg
from psycopg.sql import SQL, Identifier

#: Connections that single commits are spread over.
PRODUCERS = 8
#: Below every id.
NIL = "00000000-0000-0000-0000-000000000000"
#: What a row of `many` has around its padding, in bytes.
_AROUND = 30


class Rows:
    """A few connections to one database; an async context manager.

    Args:
        database_url: where the rows are, as the benchmark's role.
        outbox: the table that events are committed to, with the columns `id`, `event_type` and `payload`.
    """

    def __init__(self, database_url: str, outbox: str) -> None:
        self.database = database_url.rpartition("/")[2]
        self._database_url = database_url
        self._first_id = NIL
        self._one = SQL(
            "INSERT INTO {} (event_type, payload) VALUES (%s, jsonb_build_object('n', %s::int, 'pad', repeat('x', 480))) "
            "RETURNING id::text"
        ).format(Identifier(outbox))
        self._many = SQL(
            "INSERT INTO {} (event_type, payload) SELECT 'bench.' || n %% %s, jsonb_build_object('n', n, 'pad', %s::text) "
            "FROM generate_series(1, %s) AS n"
        ).format(Identifier(outbox))
        self._idle: asyncio.Queue[psycopg.AsyncConnection[Any]] = asyncio.Queue()

    async def __aenter__(self) -> Self:
        for _ in range(PRODUCERS):
            self._idle.put_nowait(await psycopg.AsyncConnection.connect(self._database_url))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while not self._idle.empty():
            await self._idle.get_nowait().close()

    async def many(self, count: int, payload_bytes: int, types: int) -> None:
        """Commit `count` events in one transaction, of the types `bench.0` to `bench.<types - 1>` in turn."""
        # Not one letter over and over: a payload that compresses to nothing would be none.
        padding = (f"{n:x}" for n in range(payload_bytes))
        pad = "".join(padding)[: max(0, payload_bytes - _AROUND)]
        await self._run(self._many, (types, pad, count))

    async def one(self, n: int, types: int) -> tuple[str, float]:
        """Commit one event; its id, and the time right before COMMIT was sent, so that no wait looks shorter than it is."""
        connection = await self._idle.get()
        try:
            row = await (await connection.execute(self._one, (f"bench.{n % types}", n))).fetchone()
            assert row is not None
            at = time.time()
            await connection.commit()
            return row[0], at
        finally:
            self._idle.put_nowait(connection)

    async def recorded(self) -> tuple[int, float]:
        """Deliveries that are recorded as delivered, and when the last was committed (seconds, UTC; 0 for none)."""
        rows = await self.fetch(
            "SELECT count(*), coalesce(max(extract(epoch FROM pg_xact_commit_timestamp(xmin))), 0)::float8 "
            "FROM deliveries WHERE state = 'delivered' AND id >= %s",
            (self._first_id,),
        )
        return rows[0][0], rows[0][1]

    async def recorded_at(self) -> dict[str, float]:
        """When each event's delivery was committed as delivered, by webhook-id (seconds, UTC)."""
        rows = await self.fetch(
            "SELECT event_id::text, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 FROM deliveries "
            "WHERE state = 'delivered' AND id >= %s",
            (self._first_id,),
        )
        return dict(rows)

    async def ignore_up_to_now(self) -> None:
        """What is there already counts no more. For ids that begin with the time they were made at (UUID version 7)."""
        rows = await self.fetch("SELECT homing_uuid7_floor(clock_timestamp() + interval '1 millisecond')::text")
        self._first_id = rows[0][0]
        await asyncio.sleep(0.002)

    async def fetch(self, sql: LiteralString, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query, in a transaction of its own."""
        connection = await self._idle.get()
        try:
            rows = await (await connection.execute(sql, parameters)).fetchall()
            await connection.commit()
            return rows
        finally:
            self._idle.put_nowait(connection)

    async def _run(self, sql: Any, parameters: tuple[Any, ...]) -> None:
        connection = await self._idle.get()
        try:
            await connection.execute(sql, parameters)
            await connection.commit()
        finally:
            self._idle.put_nowait(connection)
