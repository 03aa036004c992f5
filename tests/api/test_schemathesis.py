"""Generated requests against the API as it is really run: every operation, valid and invalid, with checks of every answer.

Which requests are made depends on a seed and on a number of cases, never on time. By default few are made, with the same seed
each time. At least 5,000 for each role, of a seed of your own:

    HOMING_TEST_SCHEMATHESIS_CASES=5000 HOMING_TEST_SCHEMATHESIS_SEED=7 make test ARGS="tests/api/test_schemathesis.py -s"

A run that finds something ends with all of it: the requests as `curl` commands, and the seed that leads there again.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import httpx
import pytest
from fastapi.routing import APIRoute
from prometheus_client.parser import text_string_to_metric_families

from app.api.application import ROUTERS
from app.api.scopes import SCOPE_OF
from app.api_keys import PREFIX, Scope, _check, create_key
from app.db import make_unpooled_engine
from tests.api.serving import database_of_its_own, served
from tests.conftest import Servers
from tests.factories import make_delivery, make_endpoint, make_outbox_event, make_tenant, rows

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
#: How many cases each role gets at least; 0: what one short run makes.
CASES = int(os.environ.get("HOMING_TEST_SCHEMATHESIS_CASES", "0"))
SEED = int(os.environ.get("HOMING_TEST_SCHEMATHESIS_SEED", "1"))
#: Name of the keys that cannot be revoked here.
KEPT = "kept"
#: What a tenant's admin may not do either.
OPERATORS_ONLY = {"createTenant"}
PATIENCE_S = 600 if not CASES else 7200


@dataclass(frozen=True)
class Role:
    """Who makes the requests; `scopes` of None: nobody, with or without something that looks like a key."""

    name: str
    scopes: tuple[Scope, ...] | None
    tenant_id: str | None = "default"
    key: str = ""


ALL = Role("every scope", tuple(Scope))
ROLES = (
    ALL,
    *(Role(str(scope), (scope,)) for scope in Scope),
    Role("operator", (Scope.ADMIN,), tenant_id=None),
    Role("no key", None),
    Role("wrong key", None, key="wrong"),
)


@dataclass(frozen=True)
class Api:
    """One that serves, with something of everything in its database."""

    url: str
    database_url: str
    folder: Path

    @property
    def log(self) -> str:
        return (self.folder / "api.log").read_text(encoding="utf-8")

    def answered(self) -> dict[tuple[str, str, str], float]:
        """How many requests have been answered, by method, path of the route, and status."""
        told = httpx.get(f"{self.url}/metrics", trust_env=False).text
        return {
            (sample.labels["method"], sample.labels["route"], sample.labels["status"]): sample.value
            for family in text_string_to_metric_families(told)
            for sample in family.samples
            if sample.name == "homing_api_requests_total"
        }


@pytest.fixture(scope="module")
def api(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("schemathesis")
    with database_of_its_own(servers) as database_url:
        asyncio.run(_fill(database_url))
        with served(folder, database_url, servers.running.redis_url) as (url, _):
            yield Api(url, database_url, folder)


async def _fill(database_url: str) -> None:
    """Something in every state, so that those who only read have something to find."""
    engine = make_unpooled_engine(database_url, name="test")
    await make_tenant(engine, "other")
    endpoint_id = await make_endpoint(engine)
    for state in ("pending", "delivering", "delivered", "retry_scheduled", "failed", "dead_lettered", "dead_lettered"):
        delivery = await make_delivery(engine, state, endpoint_id=endpoint_id, request_id="order-4711")
        await rows(
            engine,
            """
            INSERT INTO delivery_attempts (delivery_id, generation, tenant_id, number, started_at, outcome, retryable)
            VALUES (:id, 1, 'default', 1, now(), 'transient', true)
            """,
            id=delivery.id,
        )
    await make_outbox_event(engine, request_id="order-4712")
    # Whoever manages keys may end their own, and would then be told 401 to the end.
    await rows(
        engine,
        """
        CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.revoked_at := NULL; RETURN NEW; END $$
        """,
    )
    await rows(
        engine,
        f"""
        CREATE TRIGGER keep BEFORE UPDATE ON api_keys FOR EACH ROW WHEN (OLD.name = '{KEPT}') EXECUTE FUNCTION keep()
        """,
    )
    await engine.dispose()


def key_of(role: Role, database_url: str) -> str:
    async def make() -> str:
        engine = make_unpooled_engine(database_url, name="test")
        async with engine.begin() as connection:
            made = await create_key(
                connection, tenant_id=role.tenant_id, scopes=role.scopes or tuple(Scope), actor="test", name=KEPT
            )
        await engine.dispose()
        return str(made["key"])

    if role.scopes is not None:
        return asyncio.run(make())
    if not role.key:
        return ""
    start = asyncio.run(make())[: len(PREFIX) + 13] + "A" * 32  # the id of a key that exists
    return start + _check(start)


def run(api: Api, key: str, seed: int, *phases: str, examples: int) -> int:
    """How many cases were made; fails with everything that was found."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIGURATION)]
    command += ["run", f"{api.url}/openapi.json", "--seed", str(seed), "--max-examples", str(examples)]
    command += ["--phases", ",".join(phases), *(("--header", f"Authorization: Bearer {key}") if key else ())]
    # Whatever is slow on this machine is no finding; a reproduction must be whole: its key opens nothing elsewhere.
    command += ["--suppress-health-check", "all", "--generation-database", "none", "--continue-on-failure"]
    command += ["--output-sanitize", "false", "--output-truncate", "false", "--warnings", "off", "--no-color"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=api.folder, check=False)
    found = done.stdout[max(0, done.stdout.find("= FAILURES =")) :]
    assert done.returncode == 0, f"{' '.join(command)}\n{found}\n{done.stderr[-4000:]}\n{api.log[-4000:]}"
    counted = re.search(r"(\d+) generated", done.stdout)
    assert counted is not None, done.stdout
    return int(counted[1])


@pytest.mark.timeout(PATIENCE_S)
@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_no_request_gets_an_answer_that_is_not_described(api: Api, role: Role) -> None:
    began, before, key = monotonic(), api.answered(), key_of(role, api.database_url)
    made, seed = 0, SEED
    if CASES:
        while made < CASES:
            made += run(api, key, seed, "examples", "coverage", "fuzzing", "stateful", examples=160)
            seed += 1
    elif role == ALL:
        made += run(api, key, seed, "examples", "coverage", "fuzzing", "stateful", examples=5)
    else:
        made += run(api, key, seed, "examples", "fuzzing", examples=3)
    seeds = f"seeds {SEED} to {seed - 1}" if CASES else f"seed {SEED}"
    print(f"\n{role.name}: {made} cases, {seeds}, no failure, {monotonic() - began:.0f} s")
    assert made > 60
    assert "api.defect" not in api.log
    _check_that_only_its_routes_opened(role, before, api.answered())


def _check_that_only_its_routes_opened(
    role: Role, before: dict[tuple[str, str, str], float], after: dict[tuple[str, str, str], float]
) -> None:
    statuses: dict[tuple[str, str], set[str]] = defaultdict(set)
    for (method, route, status), count in after.items():
        if count > before.get((method, route, status), 0):
            statuses[method, route].add(status)
    guarded = [r for router in ROUTERS for r in router.routes if isinstance(r, APIRoute) and r.path.startswith("/v1/")]
    for route in guarded:
        seen = statuses[next(iter(route.methods)), route.path]
        assert seen, f"{route.path} was not asked"
        if role.scopes is None:
            assert seen == {"401"}, (route.path, seen)
        elif SCOPE_OF[str(route.operation_id)] not in role.scopes:
            assert seen <= {"401", "403"}, (route.path, seen)
        elif role.tenant_id is None or route.operation_id not in OPERATORS_ONLY:
            assert seen - {"401", "403"}, (route.path, seen)
