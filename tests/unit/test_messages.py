from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.claims import Claimed
from workers.messages import (
    DELIVER_QUEUE,
    MESSAGE_MAX_BYTES,
    TICKETS_MAX,
    MessageRefused,
    chunks,
    encode,
    parse_tickets,
)

GENERATIONS = st.integers(1, 2**31 - 1)
TICKETS = st.lists(st.tuples(st.uuids(), GENERATIONS), min_size=1, max_size=TICKETS_MAX, unique_by=lambda t: t[0])
ID = uuid4().hex


@given(TICKETS)
def test_tickets_survive_the_round_trip(tickets: list[tuple[UUID, int]]) -> None:
    message_id, message = encode(DELIVER_QUEUE, "deliver", tickets)
    fields = json.loads(message)
    assert parse_tickets(*fields["args"]) == tickets
    assert message_id == fields["message_id"] == f"{tickets[0][0]}.{tickets[0][1]}"
    assert len(message) <= MESSAGE_MAX_BYTES


def test_message_holds_ids_and_generations_only() -> None:
    tickets = [(UUID(int=1), 2), (UUID(int=3), 4)]
    message_id, message = encode(DELIVER_QUEUE, "deliver", tickets)
    fields = json.loads(message)
    assert isinstance(fields.pop("message_timestamp"), int)
    assert fields == {
        "queue_name": DELIVER_QUEUE,
        "actor_name": "deliver",
        "args": [[UUID(int=1).hex, UUID(int=3).hex], [2, 4]],
        "kwargs": {},
        "options": {"redis_message_id": message_id},
        "message_id": message_id,
    }


@pytest.mark.parametrize(
    ("ids", "generations"),
    [
        (None, None),
        ([], []),
        ([ID], []),
        ([ID], [1, 2]),
        ({ID: 1}, {ID: 1}),
        ((ID,), (1,)),
        (ID, [1] * len(ID)),
        ([ID] * (TICKETS_MAX + 1), [1] * (TICKETS_MAX + 1)),
        ([ID], [0]),
        ([ID], [-1]),
        ([ID], [2**31]),
        ([ID], [True]),
        ([ID], [1.0]),
        ([ID], ["1"]),
        ([ID], [None]),
        ([ID], [[1]]),
        ([1], [1]),
        ([None], [1]),
        ([ID.encode()], [1]),
        ([[ID]], [1]),
        ([UUID(ID)], [1]),
        ([""], [1]),
        ([ID + "0"], [1]),
        (["g" * 32], [1]),
        (["'; DROP TABLE deliveries; --"], [1]),
        (["\x00" * 32], [1]),
    ],
)
def test_forged_arguments_are_refused(ids: Any, generations: Any) -> None:
    with pytest.raises(MessageRefused):
        parse_tickets(ids, generations)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON, JSON)
def test_any_arguments_are_tickets_or_refused(ids: Any, generations: Any) -> None:
    try:
        tickets = parse_tickets(ids, generations)
    except MessageRefused:
        return
    assert all(isinstance(i, UUID) and 0 < g < 2**31 for i, g in tickets)


CLAIMED = st.lists(
    st.builds(Claimed, st.uuids(), GENERATIONS, st.sampled_from([UUID(int=n) for n in range(5)]), st.just("pending")),
    max_size=200,
    unique_by=lambda c: c.delivery_id,
)


@given(CLAIMED, st.integers(1, TICKETS_MAX), st.integers(0, 40))
def test_every_claimed_delivery_is_in_exactly_one_chunk(claimed: list[Claimed], size_max: int, waiting: int) -> None:
    cut = chunks(claimed, size_max=size_max, waiting=waiting)
    assert sorted(t for chunk in cut for t in chunk) == sorted((c.delivery_id, c.generation) for c in claimed)
    assert all(1 <= len(chunk) <= size_max for chunk in cut)


@given(CLAIMED, st.integers(1, TICKETS_MAX))
def test_deliveries_of_one_endpoint_stay_together(claimed: list[Claimed], size_max: int) -> None:
    endpoint_of = {c.delivery_id: c.endpoint_id for c in claimed}
    order = [endpoint_of[i] for chunk in chunks(claimed, size_max=size_max, waiting=1) for i, _ in chunk]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("due", "waiting", "largest"), [(1, 0, 1), (16, 0, 1), (160, 0, 10), (1000, 0, 50), (3, 1, 3), (500, 9, 50)]
)
def test_chunk_size_follows_the_backlog(due: int, waiting: int, largest: int) -> None:
    claimed = [Claimed(uuid4(), 1, UUID(int=0), "pending") for _ in range(due)]
    assert max(len(chunk) for chunk in chunks(claimed, size_max=50, waiting=waiting)) == largest
