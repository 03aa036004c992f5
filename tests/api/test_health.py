"""Health and metrics: what orchestrators and Prometheus ask, without a key."""

from __future__ import annotations

import httpx

from app.api.surroundings import Surroundings
from app.migrate import head_revision
from tests.api.conftest import Knock, problem_of
from tests.factories import rows


async def test_ready_says_what_is_there(knock: Knock) -> None:
    answer = await (await knock(key="")).get("/readyz")
    assert answer.json() == {
        "status": "ok",
        "postgres": "up",
        "schema_revision": head_revision(),
        "redis": "not used",
        "row_level_security": True,
    }


async def test_without_redis_it_is_degraded_and_serves(knock: Knock, surroundings: Surroundings) -> None:
    async def away() -> None:
        raise ConnectionError

    surroundings.ping_redis = away
    answer = await (await knock(key="")).get("/readyz")
    assert (answer.status_code, answer.json()["status"], answer.json()["redis"]) == (200, "degraded", "away")


async def test_another_schema_is_not_ready(knock: Knock, surroundings: Surroundings) -> None:
    await rows(surroundings.engine, "UPDATE alembic_version SET version_num = '0001'")
    problem_of(await (await knock(key="")).get("/readyz"), 503, "INT-503-DEPENDENCY-UNAVAILABLE")


async def test_without_the_wall_it_is_degraded_and_says_so(knock: Knock, surroundings: Surroundings) -> None:
    client = await knock()
    await rows(surroundings.engine, "REVOKE INSERT ON endpoints FROM homing_api")
    answer = await client.get("/readyz")
    assert (answer.json()["status"], answer.json()["row_level_security"]) == ("degraded", False)
    assert (await client.get("/v1/deliveries")).status_code == 200


async def test_metrics_count_by_route_and_never_by_tenant_or_id(client: httpx.AsyncClient) -> None:
    for n in range(20):
        await client.get(f"/v1/events/order-{n}")
        await client.get(f"/v1/nothing/{n}")
    shown = (await client.get("/metrics")).text
    assert 'homing_api_requests_total{method="GET",route="/v1/events/{request_id:path}",status="404"} 20.0' in shown
    assert 'homing_api_requests_total{method="GET",route="none",status="404"} 20.0' in shown
    assert "order-" not in shown
    assert "default" not in shown
