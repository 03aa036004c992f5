"""Every move of app/states.py by its real statement, and nothing written by any statement in any other state."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.attempts import Settled, park_if_endpoint_not_active, record_if_delivering, start_if_published
from app.claims import Claimed, claim_due, release_if_claimed
from app.dead_letters import file_if_failed
from app.replays import carry_out_if_requested
from app.states import MOVES, DeliveryState
from tests.conftest import Servers
from tests.factories import OWNER, MadeDelivery, everything, make_delivery, make_endpoint, one, rows, state_of

STATES = [state.value for state in DeliveryState]
STARTABLE = {"pending": "delivering", "retry_scheduled": "delivering", "replayed": "delivering"}
WAITING = ("pending", "retry_scheduled", "replayed", "failed")
LEASE_S = 20.0

Run = Callable[[AsyncConnection, MadeDelivery, int], Awaitable[Any]]


@pytest.fixture(scope="module")
def database_url(servers: Servers) -> Iterator[str]:
    """One database for the whole table: each case looks only at a delivery of its own."""
    name = f"homing_test_{os.getpid()}_transitions"
    with psycopg.connect(servers.running.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE homing_template_{os.getpid()}")
    yield servers.url_of(name)
    with psycopg.connect(servers.running.database_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(autouse=True)
async def _nothing_else_is_there(engine: AsyncEngine) -> None:
    await rows(engine, "TRUNCATE deliveries, delivery_attempts, dead_letters, replays, replay_items, audit_events")


def settled(delivery: MadeDelivery, generation: int, next_state: str, **changes: Any) -> Settled:
    outcome = {"delivered": "delivered", "retry_scheduled": "transient", "failed": "definite"}[next_state]
    values: dict[str, Any] = {
        "delay_s": 30.0 if next_state == "retry_scheduled" else 0.0,
        "outcome": outcome,
        "failure_class": None if outcome == "delivered" else "http_status",
        "retryable": outcome == "transient",
        "http_status": {"delivered": 200, "transient": 503, "definite": 404}[outcome],
        "error": None if outcome == "delivered" else "no",
        "response_excerpt": "answer",
        "duration_ms": 12,
    }
    return Settled(delivery_id=delivery.id, generation=generation, next_state=next_state, **(values | changes))


def record(next_state: str) -> Run:
    async def run(connection: AsyncConnection, delivery: MadeDelivery, generation: int) -> None:
        await record_if_delivering(connection, [settled(delivery, generation, next_state)], worker=OWNER)

    return run


async def start(connection: AsyncConnection, delivery: MadeDelivery, generation: int) -> int:
    ticket = (delivery.id, generation)
    return len(await start_if_published(connection, [ticket], worker=OWNER, lease_s=LEASE_S))


async def claim(connection: AsyncConnection, *_: object, quarantine_after: int = 5) -> int:
    claimed, _expired = await claim_due(
        connection, limit=100, owner=OWNER, lease_s=LEASE_S, quarantine_after=quarantine_after
    )
    return len(claimed)


async def release(connection: AsyncConnection, delivery: MadeDelivery, generation: int) -> int:
    claimed = Claimed(delivery.id, generation, delivery.endpoint_id, "pending")
    return await release_if_claimed(connection, [claimed], owner=OWNER, delay_s=1)


async def file(connection: AsyncConnection, delivery: MadeDelivery, generation: int) -> int:
    return await file_if_failed(connection, [(delivery.id, generation)])


async def park(connection: AsyncConnection, delivery: MadeDelivery, generation: int) -> int:
    return await park_if_endpoint_not_active(connection, [(delivery.id, generation)])


@dataclass(frozen=True)
class Statement:
    run: Run
    moves: dict[str, str]
    """From each legal state to the state that the row has afterwards."""
    due_in_s: float = 60
    endpoint: dict[str, Any] = field(default_factory=dict)


STATEMENTS = {
    "start": Statement(start, STARTABLE),
    "start_of_paused": Statement(start, {}, endpoint={"status": "paused"}),
    "start_of_disabled": Statement(start, {}, endpoint={"status": "disabled"}),
    "start_of_archived": Statement(start, {}, endpoint={"status": "archived"}),
    "deliver": Statement(record("delivered"), {"delivering": "delivered"}),
    "schedule_retry": Statement(record("retry_scheduled"), {"delivering": "retry_scheduled"}),
    "fail": Statement(record("failed"), {"delivering": "failed"}),
    "claim_not_due": Statement(claim, {}),
    "expire": Statement(claim, {s: s for s in WAITING} | {"delivering": "retry_scheduled"}, due_in_s=-1),
    "exhaust": Statement(
        claim, {s: s for s in WAITING} | {"delivering": "failed"}, due_in_s=-1, endpoint={"max_attempts": 1}
    ),
    "release": Statement(release, {s: s for s in WAITING}),
    "file": Statement(file, {"failed": "dead_lettered"}),
    "park": Statement(park, {s: s for s in WAITING if s != "failed"}, endpoint={"status": "paused"}),
    "park_of_active": Statement(park, {}),
    "give_up": Statement(park, dict.fromkeys(STARTABLE, "failed"), endpoint={"status": "archived"}),
}
FENCED = {"start", "deliver", "schedule_retry", "fail", "release", "file", "park", "give_up"}


async def delivery_for(engine: AsyncEngine, statement: Statement, state: str) -> MadeDelivery:
    endpoint_id = await make_endpoint(engine, **statement.endpoint)
    return await make_delivery(engine, state, endpoint_id=endpoint_id, due_in_s=statement.due_in_s)


async def run(engine: AsyncEngine, statement: Statement, delivery: MadeDelivery, generation: int) -> Any:
    async with engine.begin() as connection:
        return await statement.run(connection, delivery, generation)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", STATEMENTS)
async def test_statement_moves_legal_states_and_writes_nothing_in_others(
    engine: AsyncEngine, name: str, state: str
) -> None:
    statement = STATEMENTS[name]
    delivery = await delivery_for(engine, statement, state)
    before = await everything(engine)
    await run(engine, statement, delivery, delivery.generation)
    if state in statement.moves:
        assert await state_of(engine, delivery) == statement.moves[state]
        assert await everything(engine) != before
    else:
        assert await everything(engine) == before


@pytest.mark.parametrize("generation", [0, 2])
@pytest.mark.parametrize("name", sorted(FENCED))
async def test_stale_generation_writes_nothing(engine: AsyncEngine, name: str, generation: int) -> None:
    for state in STATEMENTS[name].moves:
        delivery = await delivery_for(engine, STATEMENTS[name], state)
        before = await everything(engine)
        await run(engine, STATEMENTS[name], delivery, generation)
        assert await everything(engine) == before


def test_table_above_covers_every_move() -> None:
    for name, (froms, to) in MOVES.items():
        if name != "replay":
            assert {s: STATEMENTS[name].moves.get(s) for s in froms} == dict.fromkeys(froms, to.value)


async def requested_replay(engine: AsyncEngine, delivery: MadeDelivery) -> UUID:
    replay = await one(
        engine,
        """
        WITH r AS (INSERT INTO replays (tenant_id, request_id, reason, actor, body_digest, generation)
                   VALUES ('default', :request_id, 'because', 'me', '', 1) RETURNING id)
        INSERT INTO replay_items (replay_id, delivery_id) SELECT id, :delivery_id FROM r RETURNING replay_id
        """,
        request_id=delivery.request_id,
        delivery_id=delivery.id,
    )
    return UUID(str(replay.replay_id))


@pytest.mark.parametrize("state", STATES)
async def test_replay_moves_failed_and_dead_lettered_only(engine: AsyncEngine, state: str) -> None:
    delivery = await make_delivery(engine, state)
    replay_id = await requested_replay(engine, delivery)
    before = await one(engine, "SELECT * FROM deliveries WHERE id = :id", id=delivery.id)
    async with engine.begin() as connection:
        replayed = await carry_out_if_requested(connection, replay_id, 1)
    after = await one(engine, "SELECT * FROM deliveries WHERE id = :id", id=delivery.id)
    item = await one(engine, "SELECT * FROM replay_items")
    legal = state in MOVES["replay"][0]
    assert replayed == legal
    assert (item.state, item.previous_state) == ("replayed" if legal else "conflict", state)
    assert (after.state == "replayed") if legal else (after == before)


@pytest.mark.parametrize("generation", [0, 2])
async def test_stale_replay_message_writes_nothing(engine: AsyncEngine, generation: int) -> None:
    replay_id = await requested_replay(engine, await make_delivery(engine, "failed"))
    before = await everything(engine)
    async with engine.begin() as connection:
        assert await carry_out_if_requested(connection, replay_id, generation) is None
    assert await everything(engine) == before


@pytest.mark.parametrize("name", ["start", "deliver", "file", "release", "park", "give_up"])
async def test_unknown_delivery_writes_nothing(engine: AsyncEngine, name: str) -> None:
    stranger = MadeDelivery(uuid4(), 1, uuid4(), uuid4(), "req")
    before = await everything(engine)
    await run(engine, STATEMENTS[name], stranger, 1)
    assert await everything(engine) == before


async def test_release_by_another_owner_writes_nothing(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "pending", lease_owner="somebody else")
    before = await everything(engine)
    await run(engine, STATEMENTS["release"], delivery, 1)
    assert await everything(engine) == before


# --- what counts, and what does not ----------------------------------------------------------------------------------


async def test_only_a_start_counts_an_attempt(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "pending", due_in_s=-1)
    for generation in range(2, 12):
        assert await run(engine, STATEMENTS["expire"], delivery, 0) == 1
        assert await run(engine, STATEMENTS["release"], delivery, generation) == 1
        await rows(engine, "UPDATE deliveries SET due_at = now()")
    assert (await one(engine, "SELECT attempts, generation FROM deliveries")) == (0, 11)
    assert await run(engine, STATEMENTS["start"], delivery, 11) == 0, "what was released has no lease"
    assert await run(engine, STATEMENTS["expire"], delivery, 0) == 1
    assert await run(engine, STATEMENTS["start"], delivery, 12) == 1
    assert (await one(engine, "SELECT attempts FROM deliveries")).attempts == 1


async def test_expired_lease_is_recorded_as_unknown_attempt_and_counts(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "delivering", due_in_s=-1)
    await run(engine, STATEMENTS["expire"], delivery, 0)
    after = await one(engine, "SELECT * FROM deliveries")
    attempt = await one(engine, "SELECT * FROM delivery_attempts")
    assert (after.attempts, after.unknown_streak, after.generation, after.last_outcome) == (1, 1, 2, "unknown")
    assert (attempt.outcome, attempt.generation, attempt.number, attempt.retryable) == ("unknown", 1, 1, True)
    assert (attempt.worker, attempt.duration_ms, attempt.started_at) == (OWNER, None, after.last_attempt_at)


async def test_late_result_after_lease_was_reclaimed_writes_nothing(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "delivering", due_in_s=-1)
    await run(engine, STATEMENTS["expire"], delivery, 0)
    before = await everything(engine)
    for name in ("deliver", "schedule_retry", "fail"):
        await run(engine, STATEMENTS[name], delivery, 1)
    assert await everything(engine) == before


async def test_result_after_lease_end_counts_while_nobody_reclaimed(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "delivering", due_in_s=-1)
    await run(engine, STATEMENTS["deliver"], delivery, 1)
    assert await state_of(engine, delivery) == "delivered"


@pytest.mark.parametrize(
    ("streak", "attempts", "state", "failure_class"),
    [(0, 4, "retry_scheduled", "unknown"), (0, 5, "failed", "unknown"), (2, 3, "failed", "quarantined")],
)
async def test_expired_lease_goes_where_attempts_and_streak_say(
    engine: AsyncEngine, streak: int, attempts: int, state: str, failure_class: str
) -> None:
    await make_delivery(engine, "delivering", due_in_s=-1, unknown_streak=streak, attempts=attempts)
    async with engine.begin() as connection:
        await claim(connection, quarantine_after=3)
    after = await one(engine, "SELECT state, last_class, unknown_streak FROM deliveries")
    assert after == (state, failure_class, streak + 1)
    assert (await one(engine, "SELECT retryable FROM delivery_attempts")).retryable is True


async def test_a_result_ends_the_streak_of_unknowns(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "delivering", unknown_streak=4)
    await run(engine, STATEMENTS["schedule_retry"], delivery, 1)
    assert (await one(engine, "SELECT unknown_streak FROM deliveries")).unknown_streak == 0


async def test_uncounted_result_gives_the_attempt_back_and_is_kept(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "delivering", attempts=3)
    async with engine.begin() as connection:
        result = settled(delivery, 1, "retry_scheduled", counted=False, failure_class="own_fault", http_status=None)
        assert await record_if_delivering(connection, [result], worker=OWNER) == {(delivery.id, 1)}
    assert (await one(engine, "SELECT attempts FROM deliveries")).attempts == 2
    assert await one(engine, "SELECT number, failure_class FROM delivery_attempts") == (3, "own_fault")


async def test_retry_is_due_after_its_delay_and_the_attempt_says_when(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "delivering")
    await run(engine, STATEMENTS["schedule_retry"], delivery, 1)
    row = await one(
        engine,
        """
        SELECT d.due_at - now() <= interval '30 s' AND d.due_at - now() > interval '20 s' AS in_time,
               a.retry_at = d.due_at AS said, a.number, a.http_status, a.response_excerpt, a.duration_ms
        FROM deliveries d JOIN delivery_attempts a ON a.delivery_id = d.id
        """,
    )
    assert row == (True, True, 1, 503, "answer", 12)


# --- impossible rows -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "columns"),
    [
        ("pending", {"state": "lost"}),
        ("pending", {"due_at": None}),
        ("pending", {"attempts": 1}),
        ("pending", {"replays": 1}),
        ("pending", {"attempts": -1}),
        ("delivering", {"lease_owner": None}),
        ("delivering", {"last_attempt_at": None}),
        ("delivering", {"due_at": None}),
        ("delivered", {"due_at": "now"}),
        ("delivered", {"delivered_at": None}),
        ("delivered", {"failed_at": "now"}),
        ("retry_scheduled", {"delivered_at": "now"}),
        ("retry_scheduled", {"failed_at": "now"}),
        ("failed", {"failed_at": None}),
        ("failed", {"due_at": None}),
        ("dead_lettered", {"due_at": "now"}),
        ("dead_lettered", {"failed_at": None}),
        ("replayed", {"due_at": None}),
        ("replayed", {"failed_at": "now"}),
    ],
)
async def test_impossible_delivery_is_refused(engine: AsyncEngine, state: str, columns: dict[str, Any]) -> None:
    delivery = await make_delivery(engine, state)
    changes = ", ".join(f"{name} = :{name}" for name in columns)
    with pytest.raises(IntegrityError):
        await rows(engine, f"UPDATE deliveries SET {changes} WHERE id = :id", id=delivery.id, **columns)
