"""The state machine of `test_state_machine`: what producers, pollers, workers, operators and the clock can do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar
from uuid import UUID, uuid4

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from app.attempts import Settled, Started, park_if_endpoint_not_active, record_if_delivering, start_if_published
from app.backoff import RetryPolicy
from app.claims import Claimed, claim_due, for_dead_letter, release_all_published_not_started, release_if_claimed
from app.dead_letters import file_if_failed
from app.endpoints import pause_endpoint, resume_endpoint
from app.errors import Conflict, IdempotencyConflict, NotFound
from app.intake import take_from_outbox
from app.outcome import AttemptResult, FailureClass, Outcome
from app.replays import carry_out_if_requested, claim_requested, request_replay
from app.verdict import settle
from tests.faults.model import (
    LEASE_S,
    NEVER,
    OVER,
    QUARANTINE_AFTER,
    RETRY_S,
    STARTABLE,
    Delivery,
    Endpoint,
    Replay,
    Row,
    Ticket,
    World,
)

T = TypeVar("T")

_CLEAN = """
    DELETE FROM outbox_events; DELETE FROM outbox_rejected; DELETE FROM events; DELETE FROM event_keys;
    DELETE FROM delivery_attempts; DELETE FROM dead_letters; DELETE FROM replay_items; DELETE FROM replays;
    DELETE FROM deliveries; UPDATE endpoints SET status = 'archived' WHERE status <> 'archived';
"""
_SNAPSHOT = """
    SELECT
      (SELECT array_agg(id) FROM outbox_events),
      (SELECT array_agg(id) FROM outbox_rejected),
      (SELECT jsonb_agg(jsonb_build_array(id, duplicate_of)) FROM events),
      (SELECT jsonb_agg(jsonb_build_array(id, event_id, endpoint_id, state, generation, lease_owner, attempts,
                        unknown_streak, replays, due_at = 'infinity',
                        CASE WHEN due_at < 'infinity' THEN extract(epoch FROM due_at - now()) END)) FROM deliveries),
      (SELECT jsonb_agg(jsonb_build_array(delivery_id, generation, number,
                        CASE failure_class WHEN 'quarantined' THEN failure_class ELSE outcome END)) FROM delivery_attempts),
      (SELECT jsonb_agg(jsonb_build_array(delivery_id, generation, status)) FROM dead_letters),
      (SELECT jsonb_agg(jsonb_build_array(id, state, generation, extract(epoch FROM due_at - now()))) FROM replays),
      (SELECT jsonb_agg(jsonb_build_array(replay_id, delivery_id, state)) FROM replay_items),
      (SELECT jsonb_agg(jsonb_build_array(id, status)) FROM endpoints WHERE status <> 'archived')
"""
_INSERT = (
    "INSERT INTO outbox_events (event_type, payload, request_id, idempotency_key, tenant_id) "
    "VALUES (%s, '{}', %s, %s, %s) RETURNING id"
)

types = st.sampled_from(["a", "b", "both", "nobody's"])
request_ids = st.sampled_from(["r1", "r2"])
keys = st.sampled_from([None, None, "k1", "k2"])
owners = st.sampled_from(["poller 1", "poller 2"])
limits = st.sampled_from([50, 50, 2, 1])
which = st.sampled_from([0, 0, 0, 1, 1, 2, 3, 5, 9])
some = st.lists(which, min_size=1, max_size=3)
answers = st.sampled_from(["503", "200", "503", "400", "503", "410", "own"])


@dataclass(frozen=True)
class Publication:
    """A claim and what it published: any of it may be acted on later, again, or never."""

    owner: str
    claimed: tuple[Claimed, ...]


def recent(items: Sequence[T], index: int) -> T:
    """One of the last ten; 0 is the newest."""
    return items[-1 - index % min(len(items), 10)]


class Pipeline(RuleBasedStateMachine):
    """Producers, pollers, workers, operators and time; `world` says what the tables must hold."""

    database_url: ClassVar[str]
    engine: ClassVar[AsyncEngine]
    sync: ClassVar[psycopg.Connection[Any]]
    run: ClassVar[Callable[[Awaitable[Any]], Any]]
    steps: ClassVar[int] = 0
    moves: ClassVar[Counter[tuple[str, str]]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.sync.execute(_CLEAN)
        self.world = World({})
        for covered, max_attempts in ((("a", "both"), 3), (("b", "both"), 2)):
            (endpoint_id,) = self.one(
                "INSERT INTO endpoints (tenant_id, url, event_types, max_attempts) "
                "VALUES ('default', 'http://127.0.0.1:1/', %s, %s) RETURNING id",
                list(covered),
                max_attempts,
            )
            self.world.endpoints[endpoint_id] = Endpoint(endpoint_id, covered, max_attempts)
        self.published: list[Publication] = []
        self.to_deliver: list[Ticket] = []
        self.to_file: list[Ticket] = []
        self.to_replay: list[Ticket] = []
        self.in_flight: list[Started] = []
        self.results: list[tuple[Settled, str]] = []
        self.late: list[tuple[psycopg.Connection[Any], UUID, Row]] = []
        self.never: set[UUID] = set()
        self.committed: dict[UUID, Row] = {}
        self.before: dict[UUID, tuple[str, int, int]] = {}
        self.ending = False
        for request_id in ("r1", "r2"):
            self.publish("both", request_id, None, "default")
        self.intake("poller 1", 50, 500)

    # --- producers ---------------------------------------------------------------------------------------------------
    @rule(event_type=types, request_id=request_ids, key=keys, tenant=st.sampled_from(["default"] * 5 + ["unknown"]))
    def publish(self, event_type: str, request_id: str, key: str | None, tenant: str) -> None:
        row = Row(event_type, request_id, key, tenant)
        (row_id,) = self.one(_INSERT, event_type, request_id, key, tenant)
        self.commit(row_id, row)

    @rule(event_type=types)
    def roll_back(self, event_type: str) -> None:
        with self.sync.transaction(force_rollback=True):
            self.never.add(self.one(_INSERT, event_type, "r1", None, "default")[0])

    @precondition(lambda self: len(self.late) < 2)
    @rule(event_type=types, request_id=request_ids)
    def begin_and_commit_later(self, event_type: str, request_id: str) -> None:
        connection = psycopg.connect(self.database_url)
        cursor = connection.execute(_INSERT, (event_type, request_id, None, "default"))
        (row_id,) = cursor.fetchone() or ()
        self.late.append((connection, row_id, Row(event_type, request_id, None, "default")))

    @precondition(lambda self: self.late)
    @rule(commits=st.sampled_from([True, True, False]))
    def end_late(self, commits: bool) -> None:
        connection, row_id, row = self.late.pop(0)
        if commits:
            connection.commit()
            self.commit(row_id, row)
        else:
            self.never.add(row_id)
        connection.close()

    def commit(self, row_id: UUID, row: Row) -> None:
        self.world.outbox[row_id] = self.committed[row_id] = row

    # --- pollers -----------------------------------------------------------------------------------------------------
    @precondition(lambda self: self.world.outbox or self.late)
    @rule(owner=owners, limit=limits, capacity=st.sampled_from([0, 500, 500]))
    def intake(self, owner: str, limit: int, capacity: int) -> None:
        events, rejected = set(self.world.events), len(self.world.rejected)
        made = self.world.take(limit, capacity, owner)
        intake = self.run(
            take_from_outbox(
                self.engine, limit=limit, capacity=capacity, owner=owner, lease_s=LEASE_S, payload_max_bytes=100
            )
        )
        taken = set(self.world.events) - events
        duplicates = sum(self.world.events[i] is not None for i in taken)
        assert (intake.taken, intake.duplicates) == (len(taken), duplicates)
        assert (intake.deliveries, intake.rejected) == (len(made), len(self.world.rejected) - rejected)
        expected = {(d.event, d.endpoint.id): d for d in made}
        made_rows = self.sync.execute(
            "SELECT id, event_id, endpoint_id FROM deliveries WHERE event_id = ANY(%s) ORDER BY event_id, endpoint_id",
            (list(taken),),
        )
        for delivery_id, event, endpoint in made_rows:
            assert (event, endpoint) in expected, "a delivery that nobody is due"
            self.world.deliveries[delivery_id] = expected.pop((event, endpoint))
        assert not expected, "an event was lost at fan-out"
        self.publish_claimed(owner, intake.claimed)

    @precondition(lambda self: any(d.is_due for d in self.world.deliveries.values()))
    @rule(owner=owners, limit=limits)
    def claim(self, owner: str, limit: int) -> None:
        due = self.longest_due_first()
        claimed, expired = self.transact(lambda connection: self.claim_on(connection, owner, limit))
        assert {c.delivery_id for c in claimed} == set(due[:limit])
        assert expired == self.world.claim(due[:limit], owner)
        self.publish_claimed(owner, claimed)

    @precondition(lambda self: any(d.is_due for d in self.world.deliveries.values()))
    @rule(limit=limits, first_dies=st.booleans())
    def claim_by_two(self, limit: int, first_dies: bool) -> None:
        async def overlapping() -> Any:
            async with self.engine.connect() as one, self.engine.connect() as two:
                first = await self.claim_on(one, "poller 1", limit)
                second = await self.claim_on(two, "poller 2", limit)
                await two.commit()
                await (one.rollback() if first_dies else one.commit())
                return first, second

        due = self.longest_due_first()
        (first, first_expired), (second, second_expired) = self.run(overlapping())
        assert {c.delivery_id for c in first} == set(due[:limit])
        assert {c.delivery_id for c in second} == set(due[limit : 2 * limit]), "waited for, or claimed twice"
        assert second_expired == self.world.claim(due[limit : 2 * limit], "poller 2")
        self.publish_claimed("poller 2", second)
        if not first_dies:
            assert first_expired == self.world.claim(due[:limit], "poller 1")
            self.publish_claimed("poller 1", first)

    @staticmethod
    async def claim_on(connection: AsyncConnection, owner: str, limit: int) -> tuple[list[Claimed], int]:
        return await claim_due(connection, limit=limit, owner=owner, lease_s=LEASE_S, quarantine_after=QUARANTINE_AFTER)

    def longest_due_first(self) -> list[UUID]:
        """What is due, at moments that were made to differ: which come first is certain then, and runs repeat exactly."""
        return self.spread("deliveries", [i for i, d in self.world.deliveries.items() if d.is_due])

    def spread(self, table: str, ids: list[UUID]) -> list[UUID]:
        self.sync.execute(
            f"UPDATE {table} t SET due_at = now() - interval '1 hour' + w.n * interval '1 s' "
            "FROM unnest(%s::uuid[]) WITH ORDINALITY AS w (id, n) WHERE t.id = w.id",
            (ids,),
        )
        return ids

    def publish_claimed(self, owner: str, claimed: list[Claimed]) -> None:
        if claimed:
            self.published.append(Publication(owner, tuple(claimed)))
        order = list(self.world.deliveries)
        for c in sorted(claimed, key=lambda c: order.index(c.delivery_id)):
            assert c.generation == self.world.deliveries[c.delivery_id].generation
            (self.to_file if for_dead_letter(c) else self.to_deliver).append((c.delivery_id, c.generation))

    @precondition(lambda self: self.published)
    @rule(index=which, delay_s=st.sampled_from([0.0, RETRY_S]))
    def give_back(self, index: int, delay_s: float) -> None:
        publication = recent(self.published, index)
        released = self.transact(
            lambda connection: release_if_claimed(
                connection, publication.claimed, owner=publication.owner, delay_s=delay_s
            )
        )
        tickets = [(c.delivery_id, c.generation) for c in publication.claimed]
        assert released == self.world.release(tickets, publication.owner, delay_s)

    @rule()
    def lose_redis(self) -> None:
        assert self.transact(release_all_published_not_started) == self.world.lose_memory()

    @precondition(lambda self: self.world.replays)
    @rule(limit=limits)
    def claim_replays(self, limit: int) -> None:
        due = self.spread("replays", [i for i, r in self.world.replays.items() if r.due is not None and r.due <= 0])
        tickets = self.transact(lambda connection: claim_requested(connection, limit=limit, lease_s=LEASE_S))
        assert {t[0] for t in tickets} == set(due[:limit])
        self.world.claim_replays(due[:limit])
        self.to_replay += sorted(tickets, key=lambda t: due.index(t[0]))

    # --- workers -----------------------------------------------------------------------------------------------------
    @precondition(lambda self: self.to_deliver)
    @rule(indexes=some, dies=st.sampled_from([False] * 4 + [True]))
    def start(self, indexes: list[int], dies: bool) -> None:
        self.start_tickets([self.mostly_current(self.to_deliver, i) for i in indexes], dies)

    @precondition(lambda self: self.startable())
    @rule(index=which, answer=answers)
    def attempt(self, index: int, answer: str) -> None:
        """Start, answer, record, as it mostly goes; the rules around this one do it in pieces."""
        self.start_tickets([recent(self.startable(), index)], False)
        self.the_tables_hold_what_the_model_says()
        self.answer(0, answer)
        self.record([0])

    @precondition(lambda self: self.to_deliver or self.to_file)
    @rule(index=which, off=st.sampled_from([-1, 0, 1]), unknown=st.booleans())
    def start_forged(self, index: int, off: int, unknown: bool) -> None:
        delivery_id, generation = recent(self.to_file + self.to_deliver, index)
        self.start_tickets([(uuid4() if unknown else delivery_id, max(1, generation + off))], False)

    def start_tickets(self, tickets: list[Ticket], dies: bool) -> None:
        tickets = list(dict(tickets).items())

        async def start() -> list[Started]:
            async with self.engine.connect() as connection:
                begun = await start_if_published(connection, tickets, worker="worker", lease_s=LEASE_S)
                refused = sorted(set(tickets) - {(s.delivery_id, s.generation) for s in begun})
                if refused:
                    await park_if_endpoint_not_active(connection, refused)
                await (connection.rollback() if dies else connection.commit())
                return begun

        begun: list[Started] = self.run(start())
        if dies:
            return
        expected = self.world.start(tickets, "worker")
        assert {(s.delivery_id, s.generation) for s in begun} == expected
        for started in begun:
            delivery = self.world.deliveries[started.delivery_id]
            assert (started.attempt, started.replays) == (delivery.attempts, delivery.replays)
            assert (started.event_id, started.endpoint_id) == (delivery.event, delivery.endpoint.id)
        self.in_flight += sorted(begun, key=lambda s: tickets.index((s.delivery_id, s.generation)))

    @precondition(lambda self: self.in_flight)
    @rule(index=which, answer=answers)
    def answer(self, index: int, answer: str) -> None:
        started = recent(self.in_flight, index)
        self.in_flight.remove(started)
        endpoint = self.world.endpoints[started.endpoint_id]
        policy = RetryPolicy(endpoint.max_attempts, RETRY_S, 1, RETRY_S, 0)
        settled = settle(started, policy, _RESULTS[answer], lambda: 0.5)
        if answer == "own":  # seconds by nature; here nothing may fall due by itself
            settled = replace(settled, delay_s=RETRY_S)
        self.results.append((settled, answer))

    @precondition(lambda self: self.results)
    @rule(indexes=some)
    def record(self, indexes: list[int]) -> None:
        chosen = {(r.delivery_id, r.generation): (r, a) for r, a in (recent(self.results, i) for i in indexes)}
        written = self.transact(
            lambda connection: record_if_delivering(connection, [r for r, _ in chosen.values()], worker="worker")
        )
        assert written == {ticket for ticket, (_, answer) in chosen.items() if self.world.record(ticket, answer)}

    @precondition(lambda self: self.to_file)
    @rule(indexes=some)
    def file(self, indexes: list[int]) -> None:
        tickets = list(dict(self.mostly_current(self.to_file, i) for i in indexes).items())
        filed = self.transact(lambda connection: file_if_failed(connection, tickets))
        assert filed == self.world.file(tickets)

    @precondition(lambda self: self.to_replay)
    @rule(index=which)
    def carry_out(self, index: int) -> None:
        # The newest last: its generation, if any, is the replay's.
        ticket = recent(self.to_replay, index)
        done = self.transact(lambda connection: carry_out_if_requested(connection, *ticket))
        assert done == self.world.carry_out(ticket)

    # --- operators ---------------------------------------------------------------------------------------------------
    @rule(index=st.integers(0, 1))
    def pause(self, index: int) -> None:
        endpoint = list(self.world.endpoints.values())[index]
        refused = self.refused_by(lambda c: pause_endpoint(c, **_where(endpoint)))
        assert refused == (None if endpoint.status == "active" else Conflict)
        endpoint.status = "paused" if endpoint.status == "active" else endpoint.status

    @rule(index=st.integers(0, 1))
    def resume(self, index: int) -> None:
        endpoint = list(self.world.endpoints.values())[index]
        if endpoint.status == "active":
            assert self.refused_by(lambda c: resume_endpoint(c, **_where(endpoint))) == Conflict
        else:
            freed = self.transact(lambda c: resume_endpoint(c, **_where(endpoint)))
            assert freed == self.world.resume(endpoint)

    @precondition(lambda self: any(d.state in OVER for d in self.world.deliveries.values()) or self.world.replays)
    @rule(request_id=request_ids, key=keys, reason=st.sampled_from(["mended", "mended", "again"]))
    def ask_for_replay(self, request_id: str, key: str | None, reason: str) -> None:
        known = {i: r for i, r in self.world.replays.items() if key and r.key == key}
        wanted = self.world.replayable(request_id)

        def ask(connection: AsyncConnection) -> Awaitable[Any]:
            return request_replay(
                connection, tenant_id="default", request_id=request_id, reason=reason, actor="op", idempotency_key=key
            )

        if known:
            ((replay_id, replay),) = known.items()
            if (replay.request_id, replay.reason) != (request_id, reason):
                assert self.refused_by(ask) == IdempotencyConflict
            else:
                answer = self.transact(ask)
                assert answer.repeated
                assert answer.replay_id == replay_id
        elif wanted:
            answer = self.transact(ask)
            assert {d["delivery_id"] for d in answer.deliveries} == wanted
            items = dict.fromkeys(wanted, "requested")
            self.world.request(answer.replay_id, Replay(request_id, reason, key, items))
        else:
            exists = any(d.request_id == request_id for d in self.world.deliveries.values())
            assert self.refused_by(ask) == (Conflict if exists else NotFound)

    # --- time --------------------------------------------------------------------------------------------------------
    @precondition(lambda self: any(d.due and d.due < NEVER for d in self.world.deliveries.values()))
    @rule(index=which)
    def time_passes(self, index: int) -> None:
        ahead = [i for i, d in self.world.deliveries.items() if d.due and 0 < d.due < NEVER]
        if ahead:
            chosen = ahead[index % len(ahead)]
            self.sync.execute("UPDATE deliveries SET due_at = now() - interval '1 s' WHERE id = %s", (chosen,))
            self.world.deliveries[chosen].due = -1.0

    @precondition(lambda self: any(d.due and d.due < NEVER for d in self.world.deliveries.values()))
    @rule()
    def time_passes_for_all(self) -> None:
        self.sync.execute("UPDATE deliveries SET due_at = now() - interval '1 s' WHERE due_at < 'infinity'")
        for d in self.world.deliveries.values():
            d.due = -1.0 if d.due is not None and d.due < NEVER else d.due

    @precondition(lambda self: any(r.due for r in self.world.replays.values()))
    @rule()
    def time_passes_for_replays(self) -> None:
        self.sync.execute("UPDATE replays SET due_at = now() - interval '1 s' WHERE due_at IS NOT NULL")
        for replay in self.world.replays.values():
            replay.due = replay.due if replay.due is None else -1.0

    # Chosen more often than the others: without these a delivery hardly ever gets far in one run.
    attempt_2 = attempt_3 = attempt_4 = attempt_5 = attempt
    claim_2 = claim_3 = claim_4 = claim
    time_passes_for_all_2 = time_passes_for_all_3 = time_passes_for_all
    start_2 = start_3 = start
    answer_2 = answer
    record_2 = record_3 = record
    file_2 = file_3 = file
    carry_out_2 = carry_out
    ask_for_replay_2 = ask_for_replay

    # --- the oracle --------------------------------------------------------------------------------------------------
    @invariant()
    def the_tables_hold_what_the_model_says(self) -> None:
        type(self).steps += 1
        world = self.world
        outbox, rejected, events, deliveries, attempts, letters, replays, items, endpoints = self.one(_SNAPSHOT)
        assert set(outbox or ()) == set(world.outbox)
        assert set(rejected or ()) == world.rejected
        taken = {UUID(i): first and UUID(first) for i, first in events or ()}
        assert taken == world.events
        assert not self.never & set(taken), "a phantom: its transaction was rolled back"
        assert set(self.committed) == set(world.outbox) | world.rejected | set(taken), "an event was lost"
        found: dict[UUID, list[Any]] = {UUID(row[0]): row[1:] for row in deliveries or ()}
        assert set(found) == set(world.deliveries)
        for delivery_id, d in world.deliveries.items():
            self.check_delivery(delivery_id, d, found[delivery_id])
        made = {(UUID(i), generation): (number, outcome) for i, generation, number, outcome in attempts or ()}
        assert made == {(i, g): row for i, d in world.deliveries.items() for g, row in d.made.items()}
        filed = {(UUID(i), generation): status for i, generation, status in letters or ()}
        assert filed == {(i, g): status for i, d in world.deliveries.items() for g, status in d.letters.items()}
        assert {UUID(i): (s, g) for i, s, g, _ in replays or ()} == {
            i: (r.state, r.generation) for i, r in world.replays.items()
        }
        for replay_id, _, _, ahead_s in replays or ():
            check_due(world.replays[UUID(replay_id)].due, False, ahead_s)
        assert {(UUID(r), UUID(d)): s for r, d, s in items or ()} == {
            (r, d): s for r, replay in world.replays.items() for d, s in replay.items.items()
        }
        assert {UUID(i): s for i, s in endpoints} == {i: e.status for i, e in world.endpoints.items()}

    def check_delivery(self, delivery_id: UUID, d: Delivery, row: list[Any]) -> None:
        event, endpoint, state, generation, owner, attempts, streak, replays, parked, ahead_s = row
        assert (UUID(event), UUID(endpoint)) == (d.event, d.endpoint.id)
        assert (state, generation, owner) == (d.state, d.generation, d.owner)
        assert (attempts, streak, replays) == (d.attempts, d.streak, d.replays)
        check_due(d.due, bool(parked), ahead_s)
        before_state, before_generation, before_replays = self.before.get(delivery_id, ("", 0, 0))
        assert generation >= before_generation, "the fence went back"
        if before_state == "delivered" or (before_state == "dead_lettered" and replays == before_replays):
            assert (state, generation) == (before_state, before_generation), "what is over has changed"
        if state != before_state and not self.ending:
            self.moves[before_state, state] += 1
        self.before[delivery_id] = (state, generation, replays)

    def teardown(self) -> None:
        """Whatever has happened: when everything works again, each event is delivered to or filed for each of its endpoints."""
        for connection, *_ in self.late:
            connection.close()
        self.late.clear()
        self.ending = True
        for endpoint in self.world.endpoints.values():
            if endpoint.status != "active":
                self.transact(lambda c, e=endpoint: resume_endpoint(c, **_where(e)))
                self.world.resume(endpoint)
        for _ in range(12):
            self.intake("poller 1", 500, 500)
            self.time_passes_for_replays()
            self.claim_replays(500)
            for ticket in self.to_replay:
                done = self.transact(lambda c, t=ticket: carry_out_if_requested(c, *t))
                assert done == self.world.carry_out(ticket)
            self.time_passes_for_all()
            self.claim("poller 1", 500)
            if not self.world.deliveries or all(d.due is None for d in self.world.deliveries.values()):
                break
            self.start_tickets(self.to_deliver, False)
            while self.in_flight:
                self.answer(0, "200")
            self.record_all()
            filed = self.transact(lambda connection: file_if_failed(connection, list(dict(self.to_file).items())))
            assert filed == self.world.file(dict(self.to_file).items())
        self.the_tables_hold_what_the_model_says()
        assert {d.state for d in self.world.deliveries.values()} <= {"delivered", "dead_lettered"}
        assert not self.world.outbox

    def startable(self) -> list[Ticket]:
        """Tickets of attempts that may start now."""
        deliveries = self.world.deliveries
        return [
            t
            for t in dict.fromkeys(self.to_deliver)
            if self.world.is_current(t)
            and deliveries[t[0]].state in STARTABLE
            and deliveries[t[0]].owner is not None
            and deliveries[t[0]].endpoint.status == "active"
        ]

    def mostly_current(self, tickets: list[Ticket], index: int) -> Ticket:
        """One of the last tickets, those that are not stale first."""
        return recent(sorted(tickets, key=self.world.is_current), index)

    def record_all(self) -> None:
        latest = {(r.delivery_id, r.generation): (r, a) for r, a in self.results}
        for ticket, (settled, answer) in latest.items():
            written = self.transact(lambda c, s=settled: record_if_delivering(c, [s], worker="worker"))
            assert bool(written) == self.world.record(ticket, answer)

    # --- the way to the database ---------------------------------------------------------------------------------------
    def one(self, statement: str, *values: Any) -> tuple[Any, ...]:
        row: tuple[Any, ...] | None = self.sync.execute(statement, values, prepare=True).fetchone()
        assert row is not None
        return row

    def transact(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        async def committed() -> T:
            async with self.engine.begin() as connection:
                return await work(connection)

        done: T = self.run(committed())
        return done

    def refused_by(self, work: Callable[[AsyncConnection], Awaitable[Any]]) -> type[Exception] | None:
        try:
            self.transact(work)
        except (Conflict, NotFound) as error:
            return type(error)
        return None


def check_due(due: float | None, parked: bool, ahead_s: float | None) -> None:
    """A column `due_at` against the model: a minute is more than any run takes."""
    if due is None or due == NEVER:
        assert ahead_s is None
        assert parked == (due is not None)
    else:
        assert ahead_s is not None
        assert ahead_s <= 0 if due <= 0 else due - 60 < ahead_s <= due


def _where(endpoint: Endpoint) -> dict[str, Any]:
    return {"tenant_id": "default", "endpoint_id": endpoint.id, "actor": "op", "reason": None}


_RESULTS = {
    "200": AttemptResult(Outcome.DELIVERED, None, 200),
    "503": AttemptResult(Outcome.TRANSIENT, FailureClass.HTTP_STATUS, 503),
    "400": AttemptResult(Outcome.DEFINITE, FailureClass.HTTP_STATUS, 400),
    "410": AttemptResult(Outcome.GONE, FailureClass.GONE, 410),
    "own": AttemptResult(Outcome.TRANSIENT, FailureClass.OWN_FAULT),
}
