"""From a committed row to a signed request, a retry, a dead letter and a replay: real processes, real receivers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx
import pytest
from standardwebhooks import Webhook

from app.backoff import RetryPolicy
from app.errors import Conflict, IdempotencyConflict
from app.outbox import add_event
from tests.pipeline import QUICK, Pipeline, started_pipeline, until
from tests.receiver import Connection, Receiver, Request, ok, sequence, status


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    with started_pipeline(tmp_path_factory.mktemp("pipeline"), workers=1) as pipeline:
        yield pipeline


@pytest.fixture
async def pipeline(shared: Pipeline) -> Pipeline:
    await shared.clear()
    return shared


TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_committed_event_arrives_signed_with_its_request_id_and_trace(pipeline: Pipeline) -> None:
    async with Receiver(ok) as receiver:
        endpoint = await pipeline.endpoint(receiver.url, event_types=["invoice.*"])
        async with pipeline.engine.begin() as connection:
            event_id, request_id = await connection.run_sync(
                add_event,
                "invoice.paid",
                {"invoice": 42, "total": 10.10},
                traceparent=TRACEPARENT,
                headers={"X-Shop": "north"},
            )
        await pipeline.all_in("delivered", 1)
        (request,) = receiver.requests
        assert Webhook(endpoint["secret"]).verify(request.body, request.headers) == {"invoice": 42, "total": 10.1}
        assert request.headers["webhook-id"] == str(event_id)
        assert request.headers["x-request-id"] == request_id
        assert request.headers["traceparent"] == TRACEPARENT
        assert request.headers["x-shop"] == "north"
        assert request.headers["webhook-attempt"] == "1"
        assert request.headers["content-type"] == "application/json"
        assert request.headers["accept-encoding"] == "identity"
        assert request.headers["user-agent"].startswith("Homing/")


async def test_rolled_back_event_never_arrives(pipeline: Pipeline) -> None:
    async with Receiver(ok) as receiver:
        await pipeline.endpoint(receiver.url)
        async with pipeline.engine.connect() as connection:
            await connection.run_sync(add_event, "phantom", {})
            await connection.rollback()
        await pipeline.publish(3)
        await pipeline.all_in("delivered", 3)
        assert {r.body for r in receiver.requests} == {b'{"n": 1}', b'{"n": 2}', b'{"n": 3}'}


async def test_receiver_that_did_its_work_and_answered_503_sees_the_same_id_again_and_can_drop_it(
    pipeline: Pipeline,
) -> None:
    effects: list[str] = []
    seen: set[str] = set()

    async def work_once(request: Request, connection: Connection) -> None:
        name = request.headers["webhook-id"]
        if name in seen:
            await ok(request, connection)
            return
        seen.add(name)
        effects.append(name)
        await status(503)(request, connection)

    async with Receiver(work_once) as receiver:
        await pipeline.endpoint(receiver.url)
        await pipeline.publish()
        await pipeline.all_in("delivered", 1)
        assert len(effects) == 1
        assert [r.headers["webhook-attempt"] for r in receiver.requests] == ["1", "2"]
        attempts = await pipeline.rows("SELECT number, outcome, http_status FROM delivery_attempts ORDER BY generation")
        assert [tuple(a) for a in attempts] == [(1, "transient", 503), (2, "delivered", 200)]


async def test_exhausted_delivery_is_filed_with_both_snapshots_and_a_replay_delivers_it(pipeline: Pipeline) -> None:
    policy = RetryPolicy(max_attempts=3, base_s=0.1, factor=1.0)
    broken = status(500, {"content-type": "text/plain"}, b"out of order")
    async with Receiver(broken) as receiver:
        await pipeline.endpoint(receiver.url, policy=policy)
        await pipeline.publish(1, request_id="order-4711")
        await pipeline.all_in("dead_lettered", 1)
        (letter,) = await pipeline.rows("SELECT * FROM dead_letters")
        assert (letter.payload, letter.response, letter.attempts) == ('{"n": 1}', "out of order", 3)
        assert (letter.failure_class, letter.last_http_status, letter.request_id) == ("http_status", 500, "order-4711")
        assert len(receiver.requests) == 3

        receiver.behaviour = ok
        first = await pipeline.replay("order-4711", key="night-shift-1")
        again = await pipeline.replay("order-4711", key="night-shift-1")
        assert (again.replay_id, again.repeated) == (first.replay_id, True)
        await pipeline.all_in("delivered", 1)
        assert len(receiver.requests) == 4
        assert len({r.headers["webhook-id"] for r in receiver.requests}) == 1
        assert receiver.requests[3].headers["webhook-attempt"] == "1"
        (settled,) = await pipeline.rows("SELECT state, previous_state FROM replay_items")
        assert tuple(settled) == ("resolved", "dead_lettered")
        with pytest.raises(Conflict):
            await pipeline.replay("order-4711")
        with pytest.raises(IdempotencyConflict):
            await pipeline.replay("another-order", key="night-shift-1")


async def test_definite_failure_is_filed_after_one_attempt(pipeline: Pipeline) -> None:
    async with Receiver(status(404)) as receiver:
        await pipeline.endpoint(receiver.url)
        await pipeline.publish()
        await pipeline.all_in("dead_lettered", 1)
        assert len(receiver.requests) == 1


async def test_endpoint_that_answers_410_is_disabled_and_not_called_again(pipeline: Pipeline) -> None:
    async with Receiver(status(410)) as receiver:
        endpoint = await pipeline.endpoint(receiver.url)
        await pipeline.publish()
        await pipeline.all_in("dead_lettered", 1)
        await pipeline.publish(2)
        await until(lambda: _taken(pipeline, 3))
        assert len(receiver.requests) == 1
        assert [r.status for r in await pipeline.rows("SELECT status FROM endpoints")] == ["disabled"]
        assert (
            len(
                await pipeline.rows(
                    "SELECT FROM audit_events WHERE action = 'endpoint.disabled' AND subject = :id",
                    id=str(endpoint["id"]),
                )
            )
            == 1
        )


async def test_retry_after_is_waited_for(pipeline: Pipeline) -> None:
    behaviour = sequence(status(429, {"retry-after": "1"}), ok)
    async with Receiver(behaviour) as receiver:
        await pipeline.endpoint(receiver.url, policy=RetryPolicy(max_attempts=3, base_s=0.0, cap_s=5.0))
        await pipeline.publish()
        await pipeline.all_in("delivered", 1)
        (gap,) = await pipeline.rows(
            "SELECT extract(epoch FROM max(started_at) - min(started_at)) AS seconds FROM delivery_attempts"
        )
        assert gap.seconds >= 1.0


async def test_processes_answer_for_their_health_and_count_what_they_do(pipeline: Pipeline) -> None:
    behaviour = sequence(status(503), ok)
    async with Receiver(behaviour) as receiver:
        await pipeline.endpoint(receiver.url, policy=QUICK)
        await pipeline.publish()
        await pipeline.all_in("delivered", 1)
        async with httpx.AsyncClient() as client:
            worker, poller = _metrics_port(pipeline, "worker0"), _metrics_port(pipeline, "poller0")
            for port in (worker, poller):
                assert (await client.get(f"http://127.0.0.1:{port}/healthz")).status_code == 200
            told = await _told(client, worker)
            assert told['homing_attempts_total{class="http_status",outcome="transient"}'] >= 1
            assert told['homing_deliveries_total{state="delivered"}'] >= 1
            assert told["homing_retries_total"] >= 1
            assert told["homing_delivered_age_seconds_count"] >= 1
            assert (await _told(client, poller))["homing_outbox_taken_total"] >= 1


async def test_log_has_one_event_per_attempt_without_path_query_or_secret(pipeline: Pipeline) -> None:
    async with Receiver(ok) as receiver:
        endpoint = await pipeline.endpoint(receiver.url + "/path-token?key=query-secret")
        await pipeline.publish(2)
        await pipeline.all_in("delivered", 2)
        log = pipeline.log("worker0")
        events = [json.loads(line) for line in log.splitlines()]
        endpoint_id = str(endpoint["id"])
        attempted = [e for e in events if e["event"] == "delivery.attempted" and e["endpoint_id"] == endpoint_id]
        assert {e["request_id"] for e in attempted} == {"req-1", "req-2"}
        assert {e["host"] for e in attempted} == {re.match(r"http://[^/]+", receiver.url).group()}  # type: ignore[union-attr]
        for secret in ("path-token", "query-secret", endpoint["secret"]):
            assert secret not in log


async def _told(client: httpx.AsyncClient, port: int) -> dict[str, float]:
    lines = (await client.get(f"http://127.0.0.1:{port}/metrics")).text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def _metrics_port(pipeline: Pipeline, name: str) -> int:
    lines = [json.loads(line) for line in pipeline.log(name).splitlines()]
    return int(next(line["port"] for line in lines if line["event"] == "metrics.serving"))


async def _taken(pipeline: Pipeline, count: int) -> bool:
    return bool((await pipeline.rows("SELECT count(*) FROM events"))[0].count == count)
