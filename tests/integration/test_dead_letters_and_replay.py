"""What ran out is filed whole, and a person can send it again as often as it takes."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.attempts import Settled, record_if_delivering, start_if_published
from app.claims import claim_due
from app.dead_letters import file_if_failed
from app.errors import Conflict, IdempotencyConflict, InvalidInput, NotFound
from app.replays import ReplayAnswer, carry_out_if_requested, claim_requested, request_replay
from tests.factories import MadeDelivery, everything, make_delivery, make_endpoint, one, rows, state_of


async def ask(engine: AsyncEngine, request_id: str, **changes: Any) -> ReplayAnswer:
    arguments: dict[str, Any] = {"tenant_id": "default", "reason": "receiver mended", "actor": "me"} | changes
    async with engine.begin() as connection:
        return await request_replay(connection, request_id=request_id, **arguments)


async def carry_out(engine: AsyncEngine) -> int:
    """What poller and replay actor do."""
    async with engine.begin() as connection:
        tickets = await claim_requested(connection, limit=10, lease_s=20)
    done = 0
    for replay_id, generation in tickets:
        async with engine.begin() as connection:
            done += await carry_out_if_requested(connection, replay_id, generation) or 0
    return done


async def attempt(engine: AsyncEngine, delivery: MadeDelivery, status: int, next_state: str) -> int:
    """Claim, start and record one attempt; returns the generation it was made under."""
    outcome = {"delivered": "delivered", "failed": "definite", "retry_scheduled": "transient"}[next_state]
    async with engine.begin() as connection:
        await claim_due(connection, limit=10, owner="p", lease_s=20, quarantine_after=5)
        generation = (await connection.exec_driver_sql("SELECT max(generation) FROM deliveries")).scalar_one()
        assert await start_if_published(connection, [(delivery.id, generation)], worker="w", lease_s=20)
        failure = None if outcome == "delivered" else "http_status"
        result = Settled(
            delivery.id, generation, next_state, 0.0, outcome, failure, False, status, failure, f"answer {status}", 5
        )
        assert await record_if_delivering(connection, [result], worker="w")
    return int(generation)


async def file(engine: AsyncEngine, delivery: MadeDelivery, generation: int) -> int:
    async with engine.begin() as connection:
        return await file_if_failed(connection, [(delivery.id, generation)])


# --- filing ----------------------------------------------------------------------------------------------------------


async def test_definite_failure_is_filed_without_retries_with_everything_to_send_it_again(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, due_in_s=-1)
    await rows(
        engine,
        """UPDATE events SET traceparent = '00-t', idempotency_key = 'key', run_id = 'run', headers = '{"x-a": "b"}'""",
    )
    generation = await attempt(engine, delivery, 404, "failed")
    assert await file(engine, delivery, generation) == 1
    letter = await one(engine, "SELECT to_jsonb(l) FROM dead_letters l")
    assert letter[0] | {"id": 0, "created_at": 0, "updated_at": 0} == {
        "id": 0,
        "delivery_id": str(delivery.id),
        "generation": generation,
        "tenant_id": "default",
        "endpoint_id": str(delivery.endpoint_id),
        "event_id": str(delivery.event_id),
        "event_type": "invoice.paid",
        "request_id": delivery.request_id,
        "traceparent": "00-t",
        "idempotency_key": "key",
        "run_id": "run",
        "payload": '{"amount": 1}',
        "headers": {"x-a": "b"},
        "response": "answer 404",
        "failure_class": "http_status",
        "failure_detail": "http_status",
        "last_http_status": 404,
        "attempts": 1,
        "status": "open",
        "delete_when_resolved": False,
        "created_at": 0,
        "updated_at": 0,
    }


async def test_filing_twice_files_once(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "failed")
    assert await file(engine, delivery, 1) == 1
    before = await everything(engine)
    assert await file(engine, delivery, 1) == 0
    assert await everything(engine) == before


async def test_delivery_whose_event_is_gone_is_filed_all_the_same(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "failed")
    await rows(engine, "DELETE FROM events")
    assert await file(engine, delivery, 1) == 1
    assert await one(engine, "SELECT request_id, payload FROM dead_letters") == ("unknown", "")


# --- asking for a replay ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["failed", "dead_lettered"])
async def test_replay_starts_again_and_reports_the_true_previous_state(engine: AsyncEngine, state: str) -> None:
    delivery = await make_delivery(engine, state)
    answer = await ask(engine, delivery.request_id)
    assert [d["previous_state"] for d in answer.deliveries] == [state]
    assert (await one(engine, "SELECT state FROM replay_items")).state == "requested"
    assert await carry_out(engine) == 1
    after = await one(engine, "SELECT state, attempts, generation, replays, due_at <= now(), failed_at FROM deliveries")
    assert after == ("replayed", 0, 2, 1, True, None)
    assert await one(engine, "SELECT state, previous_state FROM replay_items") == ("replayed", state)
    assert await one(engine, "SELECT state, due_at FROM replays") == ("done", None)
    letters = {r.status for r in await rows(engine, "SELECT status FROM dead_letters")}
    assert letters == ({"replayed"} if state == "dead_lettered" else set())


async def test_replay_is_audited_with_who_why_and_both_states(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "dead_lettered")
    await ask(engine, delivery.request_id)
    await carry_out(engine)
    row = await one(engine, "SELECT action, subject, before, after, actor, reason, request_id FROM audit_events")
    before = {"state": "dead_lettered", "attempts": 5, "class": "http_status", "status": 503}
    after = {"state": "replayed", "attempts": 0}
    who = ("me", "receiver mended", delivery.request_id)
    assert row == ("delivery.replayed", str(delivery.id), before, after, *who)


@pytest.mark.parametrize("state", ["pending", "delivering", "delivered", "retry_scheduled", "replayed"])
async def test_replay_of_what_has_not_run_out_is_a_conflict(engine: AsyncEngine, state: str) -> None:
    delivery = await make_delivery(engine, state)
    with pytest.raises(Conflict, match=f"1 {state}"):
        await ask(engine, delivery.request_id)
    assert await rows(engine, "SELECT FROM replays") == []


async def test_deliveries_that_went_well_are_left_alone_and_counted(engine: AsyncEngine) -> None:
    failed = await make_delivery(engine, "failed", request_id="r")
    await make_delivery(engine, "delivered", request_id="r")
    answer = await ask(engine, "r")
    assert ([d["delivery_id"] for d in answer.deliveries], answer.skipped) == ([failed.id], {"delivered": 1})


async def test_unknown_request_id_is_not_found(engine: AsyncEngine) -> None:
    with pytest.raises(NotFound):
        await ask(engine, "nobody's")


async def test_request_id_of_another_tenant_is_not_found(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "failed")
    with pytest.raises(NotFound):
        await ask(engine, delivery.request_id, tenant_id="other")


@pytest.mark.parametrize("reason", ["", "  ", "\n"])
async def test_replay_without_a_reason_is_refused(engine: AsyncEngine, reason: str) -> None:
    delivery = await make_delivery(engine, "failed")
    with pytest.raises(InvalidInput):
        await ask(engine, delivery.request_id, reason=reason)


async def test_dry_run_says_what_would_happen_and_writes_nothing(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "dead_lettered")
    before = await everything(engine)
    answer = await ask(engine, delivery.request_id, dry_run=True)
    assert (answer.replay_id, [d["delivery_id"] for d in answer.deliveries]) == (None, [delivery.id])
    assert await everything(engine) == before


async def test_second_replay_while_one_waits_is_a_conflict(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "failed")
    await ask(engine, delivery.request_id)
    with pytest.raises(Conflict, match="1 replay_requested"):
        await ask(engine, delivery.request_id)
    assert (await one(engine, "SELECT count(*) FROM replays")).count == 1


# --- idempotency keys of replays -------------------------------------------------------------------------------------


async def test_same_key_and_body_give_the_same_answer_and_one_effect(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "failed", request_id="r")
    await make_delivery(engine, "delivered", request_id="r")
    first = await ask(engine, "r", idempotency_key="k")
    assert await carry_out(engine) == 1
    await attempt(engine, delivery, 200, "delivered")
    again = await ask(engine, "r", idempotency_key="k")
    assert again.repeated
    assert (again.replay_id, again.request_id) == (first.replay_id, "r")
    assert [d["previous_state"] for d in again.deliveries] == [d["previous_state"] for d in first.deliveries]
    assert await carry_out(engine) == 0


async def test_repeated_answer_says_what_was_skipped_too(engine: AsyncEngine) -> None:
    await make_delivery(engine, "failed", request_id="r")
    await make_delivery(engine, "delivered", request_id="r")
    first = await ask(engine, "r", idempotency_key="k")
    assert (await ask(engine, "r", idempotency_key="k")).skipped == first.skipped


@pytest.mark.parametrize("other", [{"reason": "another"}, {"request_id": "r2"}])
async def test_same_key_with_another_body_is_a_conflict(engine: AsyncEngine, other: dict[str, str]) -> None:
    for request_id in ("r", "r2"):
        await make_delivery(engine, "failed", request_id=request_id)
    await ask(engine, "r", idempotency_key="k")
    with pytest.raises(IdempotencyConflict):
        await ask(engine, **({"request_id": "r", "idempotency_key": "k"} | other))
    assert (await one(engine, "SELECT count(*) FROM replays")).count == 1


async def test_same_key_in_another_tenant_is_independent(engine: AsyncEngine) -> None:
    await rows(engine, "INSERT INTO tenants (id, name) VALUES ('other', '')")
    await make_delivery(engine, "failed", request_id="r")
    endpoint_id = await make_endpoint(engine, tenant_id="other")
    theirs = await make_delivery(engine, "failed", request_id="r", endpoint_id=endpoint_id, tenant_id="other")
    await rows(engine, "UPDATE events SET tenant_id = 'other' WHERE id = :id", id=theirs.event_id)
    await ask(engine, "r", idempotency_key="k")
    assert not (await ask(engine, "r", idempotency_key="k", tenant_id="other")).repeated


async def test_twenty_requests_at_once_with_one_key_have_one_answer_and_one_effect(engine: AsyncEngine) -> None:
    for n in range(5):
        await make_delivery(engine, "failed", request_id=f"r{n}")
        asking = (ask(engine, f"r{n}", idempotency_key=f"k{n}") for _ in range(20))
        results = await asyncio.gather(*asking, return_exceptions=True)
        answers = [result for result in results if isinstance(result, ReplayAnswer)]
        assert [result for result in results if result not in answers] == []
        assert len({a.replay_id for a in answers}) == 1
        assert sorted(a.repeated for a in answers) == [False] + [True] * 19
    assert await carry_out(engine) == 5


async def statuses(engine: AsyncEngine) -> tuple[list[str], list[str]]:
    """Of the replays' items, and of the dead letters; oldest first."""
    items = await rows(engine, "SELECT state FROM replay_items ORDER BY replay_id")
    letters = await rows(engine, "SELECT status FROM dead_letters ORDER BY id")
    return [item.state for item in items], [letter.status for letter in letters]


async def test_replay_is_resolved_only_when_its_delivery_succeeds(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "dead_lettered")
    await ask(engine, delivery.request_id)
    await carry_out(engine)
    await attempt(engine, delivery, 503, "retry_scheduled")
    assert await statuses(engine) == (["replayed"], ["replayed"])
    await attempt(engine, delivery, 200, "delivered")
    assert await statuses(engine) == (["resolved"], ["resolved"])


async def test_replay_that_fails_again_is_filed_again_and_can_be_replayed_again(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "dead_lettered")
    for n in range(1, 4):
        await ask(engine, delivery.request_id)
        await carry_out(engine)
        assert await file(engine, delivery, await attempt(engine, delivery, 500, "failed")) == 1
        assert await statuses(engine) == (["failed"] * n, ["replayed"] * n + ["open"])
    await ask(engine, delivery.request_id)
    await carry_out(engine)
    await attempt(engine, delivery, 200, "delivered")
    assert (await statuses(engine))[0] == ["failed"] * 3 + ["resolved"]
    assert (await one(engine, "SELECT replays, attempts FROM deliveries")) == (4, 1)


async def test_replay_of_a_replay_that_failed_and_is_not_filed_yet_settles_the_first(engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "failed")
    await ask(engine, delivery.request_id)
    await carry_out(engine)
    await attempt(engine, delivery, 500, "failed")
    await ask(engine, delivery.request_id)
    assert await carry_out(engine) == 1
    assert (await statuses(engine))[0] == ["failed", "replayed"]
    assert await state_of(engine, delivery) == "replayed"


async def test_pollers_at_once_claim_each_requested_replay_once(engine: AsyncEngine) -> None:
    for n in range(10):
        await make_delivery(engine, "failed", request_id=f"r{n}")
        await ask(engine, f"r{n}")

    async def claim() -> list[tuple[UUID, int]]:
        async with engine.begin() as connection:
            return await claim_requested(connection, limit=10, lease_s=20)

    claimed = [ticket for tickets in await asyncio.gather(claim(), claim(), claim()) for ticket in tickets]
    assert (len(claimed), len(set(claimed))) == (10, 10)
