"""Hostile rows in the outbox, through the real intake, actor and transport: each is set aside with a reason or delivered
unharmed, and nothing behind it is held up."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote
from uuid import UUID

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.claims import Claimed
from app.config import Settings
from app.endpoints import create_endpoint
from app.reads import backlog, list_rejected
from app.sealing import SecretKeys
from tests.conftest import Servers
from tests.factories import make_outbox_event, one, rows, take
from tests.faults.hostile_rows import GOES_THROUGH, REFUSED_BY_POSTGRES, SET_ASIDE, Columns
from tests.receiver import Receiver, Request
from workers.deliver import deliver
from workers.runtime import Runtime

ALWAYS = {
    *("host", "content-length", "content-type", "accept-encoding", "user-agent", "x-request-id"),
    *("webhook-id", "webhook-timestamp", "webhook-signature", "webhook-attempt"),
}


class Line:
    """Everything between a committed row and a receiver, except Redis."""

    def __init__(self, engine: AsyncEngine, runtime: Runtime, receiver: Receiver) -> None:
        self.engine, self.runtime, self.receiver = engine, runtime, receiver

    async def deliver_all(self) -> None:
        claimed: list[Claimed] = []
        while (intake := await take(self.engine, limit=100)).taken + intake.rejected:
            claimed += intake.claimed
        for n in range(0, len(claimed), 50):
            chunk = claimed[n : n + 50]
            await deliver(self.runtime, [c.delivery_id.hex for c in chunk], [c.generation for c in chunk])

    @property
    def arrived(self) -> dict[UUID, Request]:
        return {UUID(request.headers["webhook-id"]): request for request in self.receiver.requests}


@pytest.fixture
async def line(
    settings: Settings, database_url: str, servers: Servers, keys: SecretKeys, engine: AsyncEngine
) -> AsyncIterator[Line]:
    async with (
        Receiver() as receiver,
        _open(Runtime(settings, database_url, servers.running.redis_url, keys)) as runtime,
    ):
        async with engine.begin() as connection:
            await create_endpoint(connection, keys, tenant_id="default", url=receiver.url, actor="test")
        yield Line(engine, runtime, receiver)


@asynccontextmanager
async def _open(runtime: Runtime) -> AsyncIterator[Runtime]:
    await runtime._enter()
    try:
        yield runtime
    finally:
        await runtime._open.aclose()


async def insert(engine: AsyncEngine, columns: Columns) -> UUID:
    row: dict[str, Any] = {"payload": "{}"} | columns
    return await make_outbox_event(engine, row.pop("payload"), **row)


async def test_each_bad_row_is_set_aside_with_its_reason_and_every_good_row_behind_is_delivered(line: Line) -> None:
    bad, good = {}, set()
    for name, (columns, _) in SET_ASIDE.items():
        bad[await insert(line.engine, columns)] = name
        good.add(await make_outbox_event(line.engine))
    await line.deliver_all()
    assert line.arrived.keys() == good
    aside = {r.id: r.reason for r in await rows(line.engine, "SELECT id, reason FROM outbox_rejected")}
    wrong = {
        name: aside.get(row_id)
        for row_id, name in bad.items()
        if not (aside.get(row_id) or "").startswith(SET_ASIDE[name][1])
    }
    assert wrong == {}
    assert aside.keys() == bad.keys()
    # Shown to people in terminals and tables.
    assert [reason for reason in aside.values() if len(reason) > 500 or not reason.isprintable()] == []
    assert await rows(line.engine, "SELECT FROM outbox_events") == []


async def test_each_odd_row_arrives_with_exactly_its_bytes(line: Line) -> None:
    names, bodies = {}, {}
    for name, columns in GOES_THROUGH.items():
        row_id = await insert(line.engine, columns)
        names[row_id] = name
        bodies[row_id] = (
            await one(line.engine, "SELECT payload::text AS p FROM outbox_events WHERE id = :id", id=row_id)
        ).p
    before = {
        r.id: r.row for r in await rows(line.engine, "SELECT id, to_jsonb(o) - 'payload' AS row FROM outbox_events o")
    }
    await line.deliver_all()
    assert {names[i] for i in names.keys() - line.arrived.keys()} == set()
    assert {names[i] for i, request in line.arrived.items() if request.body.decode() != bodies[i]} == set()
    for row_id, request in line.arrived.items():
        columns = GOES_THROUGH[names[row_id]]
        own = {name.lower() for name in line_headers(columns)}
        assert request.headers.keys() == ALWAYS | own, names[row_id]
        assert "x-evil" not in request.headers
        assert all(re.fullmatch(rb"[\t -~]*", value) for _, value in request.raw_headers), names[row_id]
        if columns.get("request_id"):
            assert unquote(request.headers["x-request-id"]) == columns["request_id"]
    kept = "SELECT id, to_jsonb(e) - 'body' - 'taken_at' - 'duplicate_of' AS row FROM events e"
    for event in await rows(line.engine, kept):
        expected = before[event.id]
        expected["request_id"] = expected["request_id"] or f"req_{event.id}"
        expected["traceparent"] = expected["traceparent"] and expected["traceparent"][:256]
        if "created_at" in GOES_THROUGH[names[event.id]]:  # kept within what every client can read
            expected["created_at"] = event.row["created_at"]
        assert event.row == expected, names[event.id]
    assert await rows(line.engine, "SELECT FROM deliveries WHERE state <> 'delivered'") == []


def line_headers(columns: Columns) -> dict[str, str]:
    return json.loads(columns.get("headers") or "{}") or {}


async def test_row_that_postgres_refuses_never_was(line: Line) -> None:
    accepted = []
    for name, columns in REFUSED_BY_POSTGRES.items():
        try:
            await insert(line.engine, columns)
            accepted.append(name)
        except DBAPIError:
            continue
    assert accepted == []
    good = await make_outbox_event(line.engine)
    await line.deliver_all()
    assert line.arrived.keys() == {good}


async def test_id_that_was_delivered_before_is_set_aside_and_not_sent_twice(line: Line) -> None:
    first = await make_outbox_event(line.engine)
    await line.deliver_all()
    await make_outbox_event(line.engine, '{"other": true}', id=first)
    behind = await make_outbox_event(line.engine)
    await line.deliver_all()
    assert [UUID(request.headers["webhook-id"]) for request in line.receiver.requests] == [first, behind]
    assert (await one(line.engine, "SELECT id, reason FROM outbox_rejected")).reason.startswith(
        "the database refuses it"
    )


@pytest.mark.parametrize("time", ["infinity", "-infinity", "20000-01-01", "4000-01-01 BC", "0001-01-01 00:00:00+14"])
async def test_time_that_python_cannot_read_holds_nothing_up(line: Line, time: str) -> None:
    await insert(line.engine, {"created_at": time})
    behind = await make_outbox_event(line.engine)
    await line.deliver_all()
    assert behind in line.arrived
    assert len(line.arrived) + len(await rows(line.engine, "SELECT FROM outbox_rejected")) == 2


@pytest.mark.parametrize("time", ["infinity", "-infinity"])
async def test_row_with_an_unreadable_time_can_be_counted_and_listed(engine: AsyncEngine, time: str) -> None:
    await insert(engine, {"created_at": time, "tenant_id": "nobody"})
    async with engine.connect() as connection:
        waiting = await backlog(connection)
    await take(engine)
    async with engine.connect() as connection:
        assert len(await list_rejected(connection)) == 1
    assert 0 <= waiting.outbox_oldest_s < 1e12


async def test_headers_that_the_intake_missed_are_not_sent(line: Line) -> None:
    """The last line: rows that somebody wrote into `events` by hand, or that an older version took."""
    row_id = await make_outbox_event(line.engine)
    claimed = (await take(line.engine)).claimed
    forged = '{"webhook-id": "forged", "Host": "evil", "webhook_signature": "v1,x", "x-fine": "1"}'
    async with line.engine.begin() as connection:
        await connection.execute(text("UPDATE events SET headers = :h"), {"h": forged})
    await deliver(line.runtime, [c.delivery_id.hex for c in claimed], [c.generation for c in claimed])
    (request,) = line.receiver.requests
    assert UUID(request.headers["webhook-id"]) == row_id
    assert request.headers.keys() == ALWAYS | {"x-fine"}
    assert request.headers["host"] == f"127.0.0.1:{line.receiver.port}"
