"""Bulk replays: exactly what was selected is sent again, once, at its pace, whatever dies in between; and a person can stop it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from app.attempts import Settled, record_if_delivering, start_if_published
from app.bulk_replay import (
    BulkReplay,
    Progress,
    cancel_replay,
    list_replays,
    replay_progress,
    request_bulk_replay,
)
from app.claims import claim_due
from app.dead_letter_groups import groups
from app.dead_letters import file_if_failed, remove_if_resolved
from app.errors import Conflict, IdempotencyConflict, InvalidInput, NotFound
from app.replays import carry_out_if_requested, claim_requested, request_replay
from app.selection import Preview, Selector, preview
from tests.factories import everything, make_delivery, make_endpoint, make_tenant, one, rows

ALL = {"event_type": "invoice.paid"}


async def letters(engine: AsyncEngine, count: int, endpoint_id: UUID | None = None, **columns: Any) -> UUID:
    """Dead-lettered deliveries of one endpoint, made by one statement each table."""
    endpoint_id = endpoint_id or await make_endpoint(engine)
    values = {"event_type": "invoice.paid", "failure_class": "http_status", "detail": "the endpoint answered 503"}
    values |= {"status": 503, "run_id": None, "request_id": None, "tenant_id": "default"} | columns
    await rows(
        engine,
        """
        WITH e AS (
            INSERT INTO events (id, tenant_id, event_type, body, request_id, run_id, created_at)
            SELECT homing_uuid7(), :tenant_id, :event_type, '{}', coalesce(CAST(:request_id AS text), 'req-' || n),
                   CAST(:run_id AS text), now()
            FROM generate_series(1, :count) AS n RETURNING *
        ), d AS (
            INSERT INTO deliveries (tenant_id, event_id, endpoint_id, state, due_at, generation, attempts, last_attempt_at,
                                    last_outcome, last_class, last_status, last_error, failed_at)
            SELECT tenant_id, id, CAST(:endpoint_id AS uuid), 'failed', now() + interval '1 hour', 1, 5, now(),
                   'transient', :failure_class, CAST(:status AS integer), :detail, now() FROM e
            RETURNING id
        )
        SELECT count(*) FROM d
        """,
        count=count,
        endpoint_id=endpoint_id,
        **values,
    )
    failed = await rows(engine, "SELECT id, generation FROM deliveries WHERE state = 'failed'")
    async with engine.begin() as connection:
        assert await file_if_failed(connection, [(r.id, r.generation) for r in failed]) == count
    return endpoint_id


async def ask(engine: AsyncEngine, selector: dict[str, Any] | None = None, **changes: Any) -> BulkReplay:
    arguments: dict[str, Any] = {"tenant_id": "default", "reason": "receiver mended", "actor": "me"} | changes
    async with engine.begin() as connection:
        return await request_bulk_replay(connection, selector=Selector(**(selector or ALL)), **arguments)


async def look(engine: AsyncEngine, selector: dict[str, Any], tenant_id: str = "default", **changes: Any) -> Preview:
    async with engine.connect() as connection:
        return await preview(connection, tenant_id, Selector(**selector), **changes)


async def progress(engine: AsyncEngine, replay_id: UUID) -> Progress:
    async with engine.connect() as connection:
        return await replay_progress(connection, "default", replay_id)


async def time_passes(engine: AsyncEngine) -> None:
    await rows(engine, "UPDATE replays SET due_at = now() - interval '1 s' WHERE due_at IS NOT NULL")


async def claim(engine: AsyncEngine) -> list[tuple[UUID, int]]:
    async with engine.begin() as connection:
        return await claim_requested(connection, limit=10, lease_s=20)


async def carry_out(engine: AsyncEngine, tickets: Sequence[tuple[UUID, int]]) -> list[int | None]:
    done = []
    for ticket in tickets:
        async with engine.begin() as connection:
            done.append(await carry_out_if_requested(connection, *ticket))
    return done


async def batch(engine: AsyncEngine) -> list[int | None]:
    """What poller and actor do once, when the time has come."""
    await time_passes(engine)
    return await carry_out(engine, await claim(engine))


async def answer(engine: AsyncEngine, status: int = 200) -> int:
    """Every delivery that is due is attempted and answered so; definite failures are filed."""
    async with engine.begin() as connection:
        claimed, _ = await claim_due(connection, limit=1000, owner="p", lease_s=20, quarantine_after=5)
        tickets = [(c.delivery_id, c.generation) for c in claimed]
        started = await start_if_published(connection, tickets, worker="w", lease_s=20)
        result = Settled(UUID(int=0), 0, "delivered", 0, "delivered", None, False, status, None, None, 1)
        if status != 200:
            result = replace(result, next_state="failed", outcome="definite", failure_class="http_status", error="no")
        results = [replace(result, delivery_id=s.delivery_id, generation=s.generation) for s in started]
        written = await record_if_delivering(connection, results, worker="w")
        await file_if_failed(connection, sorted(written))
    return len(written)


async def finish(engine: AsyncEngine, status: int = 200) -> int:
    """Batches and answers until nothing moves; how many were sent again."""
    total = 0
    while sent := sum(n or 0 for n in await batch(engine)):
        total += sent
        assert await answer(engine, status) == sent
    return total


# --- what is selected ------------------------------------------------------------------------------------------------


async def test_every_condition_selects_what_it_says(engine: AsyncEngine) -> None:
    await make_tenant(engine, "other")
    theirs = await make_endpoint(engine, tenant_id="other")
    await letters(engine, 3, theirs, tenant_id="other")
    a = await letters(engine, 4, run_id="nightly")
    b = await letters(engine, 2, event_type="order.made", failure_class="timeout", status=None, detail="no answer")
    await letters(engine, 1, event_type="invoice.late", request_id="r-7", status=404)
    some = await one(engine, "SELECT delivery_id, event_id FROM dead_letters WHERE run_id = 'nightly' LIMIT 1")
    now = datetime.now(UTC)
    for selector, count in (
        ({"run_id": "nightly"}, 4),
        ({"job": "nightly"}, 4),
        ({"endpoint_id": a}, 4),
        ({"endpoint_id": b}, 2),
        ({"endpoint_id": theirs}, 0),
        ({"event_id": some.event_id}, 1),
        ({"delivery_id": some.delivery_id}, 1),
        ({"request_id": "r-7"}, 1),
        ({"event_type": "invoice.*"}, 5),
        ({"event_type": "invoice.late"}, 1),
        ({"event_type": "invoice"}, 0),
        ({"source": "order"}, 2),
        ({"failure_class": "timeout"}, 2),
        ({"http_status": 503}, 4),
        ({"look_back_minutes": 1}, 7),
        ({"after": now - timedelta(minutes=1)}, 7),
        ({"after": now + timedelta(minutes=1)}, 0),
        ({"before": now - timedelta(minutes=1)}, 0),
        ({"before": now + timedelta(minutes=1), "source": "invoice", "http_status": 404}, 1),
    ):
        seen = await look(engine, selector)
        assert (selector, seen.count) == (selector, count)
        assert sum(n for _, n in seen.endpoints) == count
    assert (await look(engine, {"endpoint_id": theirs}, "other")).count == 3


async def test_a_preview_shows_ages_and_endpoints_and_knows_the_same_set_again(engine: AsyncEngine) -> None:
    a, b = await letters(engine, 1), await letters(engine, 3)
    first = await look(engine, ALL)
    assert first.endpoints == [(b, 3), (a, 1)]
    assert first.oldest is not None
    assert first.newest is not None
    assert first.oldest <= first.newest
    assert first == await look(engine, ALL)
    await letters(engine, 1, a)
    assert (await look(engine, ALL)).digest != first.digest


async def test_a_scan_that_ends_early_says_so(engine: AsyncEngine) -> None:
    await letters(engine, 5)
    assert [(p.count, p.truncated) for p in [await look(engine, ALL, max_scan=n) for n in (4, 5, 6)]] == [
        (4, True),
        (5, False),
        (5, False),
    ]


async def test_what_was_replayed_is_not_matched_again_until_it_fails_again(engine: AsyncEngine) -> None:
    await letters(engine, 2)
    await ask(engine)
    await batch(engine)
    assert (await look(engine, ALL)).count == 0
    await answer(engine, 404)
    assert (await look(engine, ALL)).count == 2


async def test_failures_are_grouped_by_cause(engine: AsyncEngine) -> None:
    a = await letters(engine, 3)
    await letters(engine, 2, a, failure_class="timeout", status=None, detail="no answer from 10.1.2.3 in 15.0 s")
    await letters(engine, 1, a, failure_class="timeout", status=None, detail="no answer from 10.9.8.7 in 14.2 s")
    await letters(engine, 1, a, status=404)
    async with engine.connect() as connection:
        found = await groups(connection, "default")
        some = await groups(connection, "default", Selector(failure_class="timeout"), 1)
    assert [(g.failure_class, g.http_status, g.count) for g in found] == [
        ("http_status", 503, 3),
        ("timeout", None, 3),
        ("http_status", 404, 1),
    ]
    assert [g.detail for g in found] == [None, "no answer from #.#.#.# in #.# s", None]
    assert len(found[0].samples) == 3
    assert some == found[1:2]


# --- asking ----------------------------------------------------------------------------------------------------------


async def test_asking_writes_items_and_an_audit_row_and_touches_no_delivery(engine: AsyncEngine) -> None:
    await letters(engine, 3)
    before = await everything(engine)
    answered = await ask(engine, rate_per_s=50, concurrency=5)
    after = await everything(engine)
    assert (answered.matched, answered.items, answered.skipped, answered.repeated) == (3, 3, {}, False)
    assert after["deliveries"] == before["deliveries"]
    row = await one(engine, "SELECT action, subject, actor, reason, after FROM audit_events")
    assert row[:4] == ("replay.requested", str(answered.replay_id), "me", "receiver mended")
    assert row.after["selector"] == ALL
    assert (await progress(engine, answered.replay_id)).waiting == 3


async def test_a_set_that_grew_by_more_than_a_tenth_is_refused_and_nothing_is_written(engine: AsyncEngine) -> None:
    await letters(engine, 12)
    before = await everything(engine)
    with pytest.raises(Conflict, match="12 dead letters match"):
        await ask(engine, expected_count=10)
    assert await everything(engine) == before
    assert (await ask(engine, expected_count=11)).items == 12


async def test_no_more_than_the_maximum_is_replayed_oldest_first(engine: AsyncEngine) -> None:
    await letters(engine, 5)
    answered = await ask(engine, max_items=2)
    assert (answered.matched, answered.items, answered.skipped) == (5, 2, {"over_max_items": 3})
    assert await finish(engine) == 2
    left = await rows(engine, "SELECT status FROM dead_letters ORDER BY id")
    assert [r.status for r in left] == ["resolved"] * 2 + ["open"] * 3


@pytest.mark.parametrize(
    "changes",
    [{"reason": " "}, {"rate_per_s": 0}, {"rate_per_s": 1001}, {"max_items": 0}, {"concurrency": 21}, {"max_scan": 0}],
)
async def test_senseless_requests_are_refused(engine: AsyncEngine, changes: dict[str, Any]) -> None:
    await letters(engine, 1)
    with pytest.raises(InvalidInput):
        await ask(engine, **changes)


async def test_nothing_to_replay_is_not_found(engine: AsyncEngine) -> None:
    with pytest.raises(NotFound):
        await ask(engine)


async def test_deliveries_of_another_open_replay_are_left_to_it(engine: AsyncEngine) -> None:
    await letters(engine, 3, run_id="nightly")
    some = await one(engine, "SELECT delivery_id FROM dead_letters LIMIT 1")
    await ask(engine, {"delivery_id": some.delivery_id})
    second = await ask(engine)
    assert (second.items, second.skipped) == (2, {"replay_requested": 1})
    with pytest.raises(Conflict, match="other replays"):
        await ask(engine)
    assert await finish(engine) == 3
    assert (await one(engine, "SELECT max(replays), min(replays) FROM deliveries")) == (1, 1)


async def test_same_key_has_one_effect_and_another_body_is_a_conflict(engine: AsyncEngine) -> None:
    await letters(engine, 2)
    first = await ask(engine, idempotency_key="k")
    again = await ask(engine, idempotency_key="k")
    assert again == replace(first, repeated=True)
    for changes in ({"reason": "another"}, {"max_items": 1}, {"selector": {"source": "invoice"}}):
        with pytest.raises(IdempotencyConflict):
            await ask(engine, idempotency_key="k", **changes)
    with pytest.raises(IdempotencyConflict):
        async with engine.begin() as connection:
            await request_replay(
                connection, tenant_id="default", request_id="req-1", reason="r", actor="me", idempotency_key="k"
            )


async def test_ten_requests_at_once_with_one_key_make_one_replay(engine: AsyncEngine) -> None:
    await letters(engine, 5)
    answers = await asyncio.gather(*(ask(engine, idempotency_key="k") for _ in range(10)))
    assert len({a.replay_id for a in answers}) == 1
    assert sorted(a.repeated for a in answers) == [False] + [True] * 9


async def test_ten_requests_at_once_without_a_key_send_each_delivery_once(engine: AsyncEngine) -> None:
    await letters(engine, 20)
    results = await asyncio.gather(*(ask(engine) for _ in range(10)), return_exceptions=True)
    assert sum(r.items for r in results if isinstance(r, BulkReplay)) == 20
    assert all(isinstance(r, BulkReplay | Conflict) for r in results)
    assert await finish(engine) == 20


# --- carrying out ----------------------------------------------------------------------------------------------------


async def test_items_are_resolved_only_by_delivery_and_letters_with_them(engine: AsyncEngine) -> None:
    await letters(engine, 3)
    asked = await ask(engine)
    await batch(engine)
    seen = await progress(engine, asked.replay_id)
    assert (seen.state, seen.waiting, seen.under_way, seen.resolved, seen.settled) == ("done", 0, 3, 0, False)
    replayed = await rows(engine, "SELECT DISTINCT state, attempts, replays, failed_at FROM deliveries")
    assert replayed == [("replayed", 0, 1, None)]
    await answer(engine)
    seen = await progress(engine, asked.replay_id)
    assert (seen.under_way, seen.resolved, seen.settled) == (0, 3, True)
    actions = await rows(engine, "SELECT action, count(*) FROM audit_events GROUP BY 1 ORDER BY 1")
    assert actions == [("delivery.replayed", 3), ("delivery.reprocess_succeeded", 3), ("replay.requested", 1)]


async def test_what_fails_again_is_counted_and_filed_anew(engine: AsyncEngine) -> None:
    await letters(engine, 3)
    asked = await ask(engine)
    assert await finish(engine, 404) == 3
    seen = await progress(engine, asked.replay_id)
    assert (seen.failed, seen.resolved, seen.settled) == (3, 0, True)
    assert (await look(engine, ALL)).count == 3
    (failed,) = await rows(engine, "SELECT count(*) FROM audit_events WHERE action = 'delivery.reprocess_failed'")
    assert failed.count == 3


async def test_no_more_are_under_way_than_the_concurrency_allows(engine: AsyncEngine) -> None:
    await letters(engine, 10)
    asked = await ask(engine, concurrency=3)
    assert await batch(engine) == [3]
    assert await batch(engine) == [0]
    assert (await progress(engine, asked.replay_id)).state == "running"
    await answer(engine)
    assert await batch(engine) == [3]


async def test_what_waits_for_its_next_attempt_does_not_hold_the_rest_up(engine: AsyncEngine) -> None:
    await letters(engine, 4)
    await ask(engine, concurrency=2)
    assert await batch(engine) == [2]
    await rows(
        engine,
        "UPDATE deliveries SET state = 'retry_scheduled', due_at = now() + interval '1 hour' WHERE state = 'replayed'",
    )
    assert await batch(engine) == [2]


async def test_the_rate_says_when_the_next_batch_is_due(engine: AsyncEngine) -> None:
    await letters(engine, 30)
    await ask(engine, rate_per_s=2, concurrency=10)
    assert await carry_out(engine, await claim(engine)) == [2]
    ahead = await one(engine, "SELECT extract(epoch FROM due_at - now())::float8 AS s, state FROM replays")
    assert (0.5 < ahead.s <= 1, ahead.state) == (True, "running")
    assert await claim(engine) == []


async def test_a_message_that_comes_twice_sends_one_batch(engine: AsyncEngine) -> None:
    await letters(engine, 10)
    await ask(engine, concurrency=2)
    tickets = await claim(engine)
    assert await carry_out(engine, [*tickets, *tickets]) == [2, None]


async def test_two_actors_at_once_send_each_item_once(engine: AsyncEngine) -> None:
    await letters(engine, 40)
    await ask(engine, concurrency=20)
    for _ in range(4):
        await time_passes(engine)
        tickets = await claim(engine)
        await asyncio.gather(*(carry_out(engine, tickets) for _ in range(4)))
        await answer(engine)
    assert (await one(engine, "SELECT count(*), max(replays), min(replays) FROM deliveries")) == (40, 1, 1)


async def test_a_crash_in_a_batch_loses_and_repeats_nothing(engine: AsyncEngine) -> None:
    """Died before its commit; died after it and before the acknowledgement; claimed and never published."""
    await letters(engine, 9)
    asked = await ask(engine, concurrency=3)
    tickets = await claim(engine)
    async with engine.connect() as connection:
        assert await carry_out_if_requested(connection, *tickets[0]) == 3
        await connection.rollback()
    assert (await progress(engine, asked.replay_id)).waiting == 9
    await time_passes(engine)
    assert await carry_out(engine, tickets) == [3]
    assert await carry_out(engine, tickets) == [None]
    await answer(engine)
    await time_passes(engine)
    stranded = await claim(engine)
    await time_passes(engine)
    tickets = await claim(engine)
    assert await carry_out(engine, stranded) == [None]
    assert await carry_out(engine, tickets) == [3]
    await answer(engine)
    assert await finish(engine) == 3
    assert (await progress(engine, asked.replay_id)).resolved == 9


async def test_a_delivery_that_moved_on_is_a_conflict_and_left_alone(engine: AsyncEngine) -> None:
    await letters(engine, 2)
    asked = await ask(engine)
    await rows(
        engine,
        """
        UPDATE deliveries SET state = 'delivered', delivered_at = now(), failed_at = NULL
        WHERE id = (SELECT min(id::text)::uuid FROM deliveries)
        """,
    )
    assert await batch(engine) == [1]
    seen = await progress(engine, asked.replay_id)
    assert (seen.conflict, seen.under_way) == (1, 1)


async def test_records_are_removed_only_where_asked_for_and_only_after_delivery(engine: AsyncEngine) -> None:
    await letters(engine, 2, run_id="keep")
    await letters(engine, 2, run_id="remove")
    await ask(engine, {"run_id": "keep"})
    await ask(engine, {"run_id": "remove"}, delete_after=True)
    await batch(engine)

    async def remove() -> int:
        async with engine.begin() as connection:
            return await remove_if_resolved(connection)

    assert await remove() == 0
    await answer(engine)
    assert await remove() == 2
    assert await remove() == 0
    assert [r.run_id for r in await rows(engine, "SELECT run_id FROM dead_letters")] == ["keep"] * 2
    assert (await one(engine, "SELECT count(*) FROM audit_events WHERE action = 'dead_letter.removed'")).count == 2


# --- stopping and following ------------------------------------------------------------------------------------------


async def stop(engine: AsyncEngine, replay_id: UUID, **changes: Any) -> Progress:
    arguments = {"tenant_id": "default", "actor": "me", "reason": "wrong endpoint"} | changes
    async with engine.begin() as connection:
        return await cancel_replay(connection, replay_id=replay_id, **arguments)


async def test_cancelling_leaves_the_rest_as_it_was(engine: AsyncEngine) -> None:
    await letters(engine, 10)
    asked = await ask(engine, concurrency=4)
    assert await batch(engine) == [4]
    stopped = await stop(engine, asked.replay_id)
    assert (stopped.state, stopped.cancelled, stopped.under_way) == ("cancelled", 6, 4)
    assert (stopped.cancelled_by, stopped.cancel_reason) == ("me", "wrong endpoint")
    assert await batch(engine) == []
    assert (await look(engine, ALL)).count == 6
    await answer(engine)
    assert (await progress(engine, asked.replay_id)).resolved == 4
    assert (await ask(engine)).items == 6
    assert (await one(engine, "SELECT count(*) FROM audit_events WHERE action = 'replay.cancelled'")).count == 1


async def test_a_message_that_comes_after_the_cancellation_does_nothing(engine: AsyncEngine) -> None:
    await letters(engine, 2)
    asked = await ask(engine)
    tickets = await claim(engine)
    await stop(engine, asked.replay_id)
    assert await carry_out(engine, tickets) == [None]


async def test_what_is_over_or_a_strangers_cannot_be_cancelled(engine: AsyncEngine) -> None:
    await letters(engine, 1)
    asked = await ask(engine)
    with pytest.raises(NotFound):
        await stop(engine, asked.replay_id, tenant_id="other")
    with pytest.raises(InvalidInput):
        await stop(engine, asked.replay_id, reason="")
    await batch(engine)
    with pytest.raises(Conflict, match="done"):
        await stop(engine, asked.replay_id)
    with pytest.raises(NotFound):
        async with engine.connect() as connection:
            await replay_progress(connection, "other", asked.replay_id)


async def test_replays_are_listed_newest_first_and_paged(engine: AsyncEngine) -> None:
    await letters(engine, 3)
    ids = []
    for row in await rows(engine, "SELECT delivery_id FROM dead_letters ORDER BY id"):
        ids.append((await ask(engine, {"delivery_id": row.delivery_id})).replay_id)
    await stop(engine, ids[0])
    async with engine.connect() as connection:
        page = await list_replays(connection, "default", limit=2)
        rest = await list_replays(connection, "default", before=page[-1].replay_id)
        cancelled = await list_replays(connection, "default", state="cancelled")
        theirs = await list_replays(connection, "other")
    assert [p.replay_id for p in [*page, *rest]] == ids[::-1]
    assert [p.replay_id for p in cancelled] == ids[:1]
    assert theirs == []


async def test_one_delivery_can_be_sent_again_by_its_id(engine: AsyncEngine) -> None:
    failed = await make_delivery(engine, "failed", request_id="r")
    other = await make_delivery(engine, "failed", request_id="r")

    async def retry(delivery_id: UUID, tenant_id: str = "default") -> Any:
        async with engine.begin() as connection:
            return await request_replay(
                connection,
                tenant_id=tenant_id,
                delivery_id=delivery_id,
                reason="again",
                actor="me",
                idempotency_key="k",
            )

    answered = await retry(failed.id)
    assert [d["delivery_id"] for d in answered.deliveries] == [failed.id]
    assert answered.request_id == "r"
    assert (await retry(failed.id)).repeated
    with pytest.raises(IdempotencyConflict):
        await retry(other.id)
    with pytest.raises(NotFound):
        await retry(failed.id, "other")
    assert await batch(engine) == [1]


# --- plans -----------------------------------------------------------------------------------------------------------


async def test_a_batch_reads_by_key_however_much_history_there_is(engine: AsyncEngine) -> None:
    """The statements of a batch touch a few buffers per item although ten thousand others are there."""
    endpoint_id = await letters(engine, 5000)
    await ask(engine, {"endpoint_id": endpoint_id}, max_items=5000)
    await rows(engine, "ANALYZE deliveries, replay_items, replays, dead_letters, events")
    read = """
        SELECT sum(seq_tup_read)::bigint AS n FROM pg_stat_user_tables
        WHERE relname LIKE 'deliveries%' OR relname LIKE 'events%' OR relname IN ('replay_items', 'dead_letters')
    """
    async with engine.begin() as connection:
        ((replay_id, generation),) = await claim_requested(connection, limit=10, lease_s=20)
    async with engine.begin() as connection:
        await connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
    before = (await one(engine, read)).n
    async with engine.begin() as connection:
        assert await carry_out_if_requested(connection, replay_id, generation) == 10
        await connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
    assert (await one(engine, read)).n - before < 100
