"""A new signing secret for an endpoint: both sign during the overlap, only the new one afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from app.attempts import Started
from app.endpoints import create_endpoint, rotate_secret
from app.sealing import SecretKeys
from app.signing import new_secret
from tests.conftest import Servers
from tests.factories import one, rows
from tests.integration.command_line import CommandLine, command_line
from tests.pipeline import Pipeline, running_pipeline, until
from tests.receiver import Receiver, Request, ok
from workers.endpoint_cache import EndpointCache


@pytest.fixture
def homing(servers: Servers, tmp_path: Path) -> Iterator[CommandLine]:
    with command_line(servers, tmp_path) as cli:
        yield cli


def signed_by(request: Request, secret: str) -> bool:
    try:
        Webhook(secret).verify(request.body, request.headers)
    except WebhookVerificationError:
        return False
    return True


async def _deliver(pipeline: Pipeline, receiver: Receiver) -> Request:
    (before,) = await pipeline.rows("SELECT count(*) FROM deliveries")
    await pipeline.publish()
    await pipeline.all_in("delivered", before.count + 1)
    return receiver.requests[-1]


async def test_both_keys_sign_during_the_overlap_and_only_the_new_one_afterwards(tmp_path: Path) -> None:
    async with Receiver(ok) as receiver, running_pipeline(tmp_path, workers=1) as pipeline:
        endpoint = await pipeline.endpoint(receiver.url)
        old = endpoint["secret"]
        request = await _deliver(pipeline, receiver)
        assert signed_by(request, old)

        async with pipeline.engine.begin() as connection:
            made = await rotate_secret(
                connection,
                pipeline.keys,
                tenant_id="default",
                endpoint_id=endpoint["id"],
                actor="test",
                reason=None,
                overlap=timedelta(seconds=6),
            )
        new = made["secret"]
        (expiring,) = made["expiring"]
        request = await _deliver(pipeline, receiver)
        assert datetime.now(expiring["expires_at"].tzinfo) < expiring["expires_at"], "too slow to see the overlap"
        assert signed_by(request, old)
        assert signed_by(request, new)
        assert len(request.headers["webhook-signature"].split()) == 2

        async def expired() -> bool:
            (row,) = await pipeline.rows("SELECT now() >= max(expires_at) AS over FROM endpoint_secrets")
            return bool(row.over)

        await until(expired)
        # The same worker, which has the endpoint in its cache, and no row has changed.
        request = await _deliver(pipeline, receiver)
        assert not signed_by(request, old)
        assert signed_by(request, new)
        assert len(request.headers["webhook-signature"].split()) == 1


async def test_with_no_overlap_the_old_key_stops_signing_at_once(engine: AsyncEngine, keys: SecretKeys) -> None:
    endpoint_id = await _endpoint(engine, keys)
    await _rotate(engine, keys, endpoint_id, overlap=timedelta())
    cache = EndpointCache(keys)
    async with engine.connect() as connection:
        now = (await connection.execute(text("SELECT now()"))).scalar_one()
        loaded = await cache.for_attempts(connection, [_started(endpoint_id, 2, now)])
    endpoint = loaded[endpoint_id]
    assert endpoint is not None
    assert len(endpoint.keys) == 1


async def test_the_cache_loads_again_from_the_moment_that_a_key_expires(
    engine: AsyncEngine, keys: SecretKeys, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint_id = await _endpoint(engine, keys)
    made = await _rotate(engine, keys, endpoint_id, overlap=timedelta(hours=1))
    end: datetime = made["expiring"][0]["expires_at"]
    cache = EndpointCache(keys)

    async def keys_at(moment: datetime) -> list[str]:
        async with engine.connect() as connection:
            loaded = await cache.for_attempts(connection, [_started(endpoint_id, 2, moment)])
        endpoint = loaded[endpoint_id]
        assert endpoint is not None
        return [key.key_id for key in endpoint.keys]

    both = [made["key_id"], made["expiring"][0]["key_id"]]
    assert await keys_at(end - timedelta(hours=1)) == both
    # Its end comes: as if an hour had passed.
    await rows(engine, "UPDATE endpoint_secrets SET expires_at = now() WHERE expires_at IS NOT NULL")
    assert await keys_at(end - timedelta(microseconds=1)) == both, "not loaded again for every attempt"
    assert await keys_at(end) == both[:1]
    assert await keys_at(end + timedelta(days=1)) == both[:1]


async def test_a_second_rotation_does_not_lengthen_the_life_of_the_first_key(
    engine: AsyncEngine, keys: SecretKeys
) -> None:
    endpoint_id = await _endpoint(engine, keys)
    first = await _rotate(engine, keys, endpoint_id, overlap=timedelta(hours=1))
    second = await _rotate(engine, keys, endpoint_id, overlap=timedelta(hours=9))
    ends = {row["key_id"]: row["expires_at"] for row in second["expiring"]}
    assert ends[first["expiring"][0]["key_id"]] == first["expiring"][0]["expires_at"]
    assert ends[first["key_id"]] > first["expiring"][0]["expires_at"]
    assert (await one(engine, "SELECT version FROM endpoints")).version == 3


async def test_hex_endpoints_name_both_keys_newest_first(tmp_path: Path) -> None:
    async with Receiver(ok) as receiver, running_pipeline(tmp_path, workers=1) as pipeline:
        endpoint = await pipeline.endpoint(receiver.url, scheme="hex")
        made = await _rotate(pipeline.engine, pipeline.keys, endpoint["id"])
        request = await _deliver(pipeline, receiver)
        assert request.headers["x-webhook-key-id"].split(",") == [made["key_id"], endpoint["key_id"]]
        assert len(request.headers["x-webhook-signature"].split(",")) == 2


def test_the_command_shows_the_new_secret_once_and_leaves_an_audit_row(homing: CommandLine) -> None:
    endpoint = homing.make_endpoint()
    made = homing.ok("endpoints", "rotate-secret", endpoint, "--overlap", "90m", "--reason", "it leaked")
    assert made["secret"].startswith("whsec_")
    (expiring,) = homing.sql(
        "SELECT key_id, expires_at - now() AS left FROM endpoint_secrets WHERE expires_at IS NOT NULL"
    )
    assert timedelta(minutes=89) < expiring["left"] <= timedelta(minutes=90)
    (audit,) = homing.sql("SELECT * FROM audit_events WHERE action = 'endpoint.secret_rotated'")
    assert audit["subject"] == endpoint
    assert audit["reason"] == "it leaked"
    assert audit["before"] == {"key_ids": [expiring["key_id"]]}
    assert audit["after"] == {"key_id": made["key_id"], "overlap_s": 5400}
    assert made["secret"] not in json.dumps([audit["before"], audit["after"]])
    shown = homing("endpoints", "show", endpoint, "--json")
    assert made["secret"] not in shown.out


def test_a_secret_given_on_stdin_is_not_printed(homing: CommandLine) -> None:
    endpoint, secret = homing.make_endpoint(), new_secret()
    answer = homing("endpoints", "rotate-secret", endpoint, "--secret-stdin", "--json", stdin=secret + "\n")
    assert answer.code == 0, answer.err
    assert secret not in answer.out + answer.err
    assert "secret" not in answer.json
    assert homing("endpoints", "rotate-secret", endpoint, "--secret-stdin").code == 2


@pytest.mark.parametrize("overlap", ["8d", "169h", "soon", "-1h", "1e3s", ""])
def test_an_overlap_out_of_bounds_is_refused_and_changes_nothing(homing: CommandLine, overlap: str) -> None:
    endpoint = homing.make_endpoint()
    assert homing("endpoints", "rotate-secret", endpoint, f"--overlap={overlap}").code == 2
    assert homing.sql("SELECT count(*) AS n, max(expires_at) AS e FROM endpoint_secrets") == [{"n": 1, "e": None}]


def test_only_a_living_endpoint_of_the_tenant_gets_a_new_secret(homing: CommandLine) -> None:
    homing.ok("tenants", "create", "other")
    endpoint = homing.make_endpoint()
    assert homing("endpoints", "rotate-secret", str(uuid4())).code == 3
    assert homing("endpoints", "rotate-secret", endpoint, "--tenant", "other").code == 3
    homing.sql("UPDATE endpoints SET status = 'archived'")
    assert homing("endpoints", "rotate-secret", endpoint).code == 5
    assert homing.sql("SELECT count(*) AS n FROM endpoint_secrets") == [{"n": 1}]


def test_no_more_than_five_keys_sign_at_once_and_an_overlap_of_0_ends_them(homing: CommandLine) -> None:
    endpoint = homing.make_endpoint()
    for _ in range(4):
        homing.ok("endpoints", "rotate-secret", endpoint)
    answer = homing("endpoints", "rotate-secret", endpoint, "--json")
    assert answer.code == 5
    assert "5 keys" in answer.error["message"]
    homing.ok("endpoints", "rotate-secret", endpoint, "--overlap", "0s")
    assert homing.sql("SELECT count(*) AS n FROM endpoint_secrets WHERE expires_at IS NULL") == [{"n": 1}]
    assert homing.sql("SELECT count(*) AS n FROM endpoint_secrets WHERE expires_at > now()") == [{"n": 0}]


async def _endpoint(engine: AsyncEngine, keys: SecretKeys) -> UUID:
    async with engine.begin() as connection:
        made = await create_endpoint(connection, keys, tenant_id="default", url="https://a.example/", actor="test")
    return UUID(str(made["id"]))


async def _rotate(
    engine: AsyncEngine, keys: SecretKeys, endpoint_id: UUID, overlap: timedelta = timedelta(hours=24)
) -> Mapping[str, object]:
    async with engine.begin() as connection:
        return await rotate_secret(
            connection, keys, tenant_id="default", endpoint_id=endpoint_id, actor="test", reason=None, overlap=overlap
        )


def _started(endpoint_id: UUID, version: int, at: datetime) -> Started:
    return Started(
        delivery_id=uuid4(),
        generation=1,
        tenant_id="default",
        event_id=uuid4(),
        endpoint_id=endpoint_id,
        endpoint_version=version,
        attempt=1,
        replays=0,
        body="{}",
        headers=None,
        event_type="t",
        request_id="r",
        traceparent=None,
        committed_at=None,
        started_at=at,
    )
