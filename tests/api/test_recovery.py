"""The recovery queue over HTTP: what waits for a person, and sending one entry again."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.api.conftest import problem_of
from tests.factories import MadeDelivery, make_delivery, make_endpoint, one, rows


async def entry_of(engine: AsyncEngine, delivery: MadeDelivery) -> UUID:
    return UUID(str((await one(engine, "SELECT id FROM dead_letters WHERE delivery_id = :id", id=delivery.id)).id))


async def test_queue_shows_open_entries_by_endpoint_unless_asked_otherwise(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    mine, other = await make_endpoint(engine), await make_endpoint(engine)
    shown = [await make_delivery(engine, "dead_lettered", endpoint_id=mine) for _ in range(3)]
    elsewhere = await make_delivery(engine, "dead_lettered", endpoint_id=other)
    await rows(
        engine,
        "UPDATE dead_letters SET status = 'resolved' WHERE delivery_id = ANY(:ids)",
        ids=[shown[0].id, elsewhere.id],
    )
    entries = [str(await entry_of(engine, delivery)) for delivery in shown]

    async def queue(path: str) -> list[str]:
        return [item["recovery_id"] for item in (await client.get(path)).json()["items"]]

    of_mine = f"/v1/endpoints/{mine}/recovery/queue"
    assert await queue(of_mine) == entries[:0:-1]
    assert await queue(f"{of_mine}?limit=1") == entries[2:]
    assert await queue(f"{of_mine}?status=resolved") == entries[:1]
    assert await queue("/v1/recovery/queue") == entries[:0:-1]
    assert len(await queue("/v1/recovery/queue?status=resolved")) == 2
    problem_of(await client.get(f"{of_mine}?status=lost"), 400, "INT-400-INVALID-PAYLOAD")
    problem_of(await client.get(f"/v1/endpoints/{uuid4()}/recovery/queue"), 404, "INT-404-NOT-FOUND")


async def test_replay_of_an_entry_is_written_down_with_its_reason(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    delivery = await make_delivery(engine, "dead_lettered")
    path = f"/v1/endpoints/{delivery.endpoint_id}/recovery/queue/{await entry_of(engine, delivery)}/replay"
    answer = await client.post(path, json={"reason": "receiver mended"})
    assert answer.status_code == 202
    assert answer.json()["previous_state"] == "dead_lettered"
    shown = (await client.get(answer.headers["location"])).json()
    assert (shown["reason"], shown["items"], shown["waiting"]) == ("receiver mended", 1, 1)
    problem_of(await client.post(path, json={"reason": "again"}), 409, "INT-409-RECOVERY-REPLAY-CONFLICT")


@pytest.mark.parametrize("status", ["replayed", "resolved"])
async def test_entry_that_is_not_open_is_a_conflict(
    client: httpx.AsyncClient, engine: AsyncEngine, status: str
) -> None:
    delivery = await make_delivery(engine, "dead_lettered")
    await rows(engine, "UPDATE dead_letters SET status = :status", status=status)
    path = f"/v1/endpoints/{delivery.endpoint_id}/recovery/queue/{await entry_of(engine, delivery)}/replay"
    problem_of(await client.post(path, json={"reason": "x"}), 409, "INT-409-RECOVERY-REPLAY-CONFLICT")


async def test_entry_that_is_unknown_or_of_another_endpoint_is_not_found(
    client: httpx.AsyncClient, engine: AsyncEngine
) -> None:
    delivery = await make_delivery(engine, "dead_lettered")
    entry, other = await entry_of(engine, delivery), await make_endpoint(engine)
    for path in (f"{delivery.endpoint_id}/recovery/queue/{uuid4()}", f"{other}/recovery/queue/{entry}"):
        answer = await client.post(f"/v1/endpoints/{path}/replay", json={"reason": "x"})
        problem_of(answer, 404, "INT-404-RECOVERY-NOT-FOUND")


async def test_of_ten_who_replay_the_same_entry_one_does(client: httpx.AsyncClient, engine: AsyncEngine) -> None:
    delivery = await make_delivery(engine, "dead_lettered")
    path = f"/v1/endpoints/{delivery.endpoint_id}/recovery/queue/{await entry_of(engine, delivery)}/replay"
    answers = await asyncio.gather(*(client.post(path, json={"reason": str(n)}) for n in range(10)))
    assert sorted(answer.status_code for answer in answers) == [202] + [409] * 9
    assert (await one(engine, "SELECT count(*) FROM replay_items")).count == 1
    assert (await one(engine, "SELECT count(*) FROM replays")).count == 1
