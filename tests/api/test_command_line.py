"""`homing keys`, `homing api`, and a database whose owner may not make the API's role."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import httpx
import psycopg
import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from app.api_keys import recognise
from app.db import make_unpooled_engine
from app.migrate import migrate
from tests.api.serving import served, wait_until
from tests.conftest import Servers
from tests.integration.command_line import CommandLine, command_line
from workers.cli.check_api import check_wall


@pytest.fixture(scope="module")
def homing(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    with command_line(servers, tmp_path_factory.mktemp("api")) as line:
        yield line


def test_key_is_shown_once_listed_without_itself_and_revoked(homing: CommandLine) -> None:
    made = homing.ok("keys", "create", "--scope", "audit:read", "--scope", "events:write", "--name", "ci")
    assert made["key"].startswith(f"homing_live_{made['id']}_")
    assert made["scopes"] == ["audit:read", "events:write"]
    (listed,) = homing.ok("keys", "list")
    assert (listed["id"], listed["name"], listed["revoked_at"]) == (made["id"], "ci", None)
    assert "key" not in listed
    assert homing.ok("keys", "revoke", made["id"])["revoked_at"] is not None
    actors = homing.sql("SELECT action, actor FROM audit_events WHERE subject = %(id)s ORDER BY id", id=made["id"])
    assert [a["action"] for a in actors] == ["key.created", "key.revoked"]
    assert all(a["actor"].startswith("cli:") for a in actors)


def test_operators_key_is_of_no_tenant(homing: CommandLine) -> None:
    made = homing.ok("keys", "create", "--operator", "--expires-in-days", "1")
    assert (made["tenant_id"], made["scopes"]) == (None, ["admin"])
    assert made["expires_at"] is not None
    assert [key["id"] for key in homing.ok("keys", "list", "--operator")] == [made["id"]]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("create",), 2),
        (("create", "--scope", "root"), 2),
        (("create", "--operator", "--scope", "events:write"), 2),
        (("create", "--scope", "admin", "--tenant", "nobody"), 3),
        (("revoke", "000000000000"), 3),
    ],
)
def test_what_makes_no_sense_is_refused(homing: CommandLine, arguments: tuple[str, ...], code: int) -> None:
    assert homing("keys", *arguments).code == code


def test_api_serves_what_the_command_line_made_and_stops_in_order(
    tmp_path: Path, servers: Servers, homing: CommandLine
) -> None:
    key = homing.ok("keys", "create", "--scope", "endpoints:write", "--scope", "deliveries:read")["key"]
    with (
        served(tmp_path, homing.database_url, servers.running.redis_url) as (url, processes),
        httpx.Client(base_url=url, headers={"authorization": f"Bearer {key}"}, trust_env=False) as client,
    ):
        ready = client.get("/readyz").json()
        assert (ready["status"], ready["redis"], ready["row_level_security"]) == ("ok", "up", True)
        made = client.post("/v1/endpoints", json={"url": "https://example.com"})
        assert made.status_code == 201, made.text
        assert "server" not in made.headers
        assert made.json()["id"] in [endpoint["id"] for endpoint in homing.ok("endpoints", "list")]
        with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as raw:
            raw.sendall(b"GET / HTTP/9\r\nno colon\r\n\r\n")
            with raw.makefile("rb") as answered:
                head, _, body = answered.read().partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"application/problem+json" in head
        assert json.loads(body)["error_code"] == "INT-400-INVALID-PAYLOAD"
        with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10) as raw:
            head = f"POST /v1/endpoints HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n"
            raw.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{{".encode())
        hung_up = 'homing_api_requests_total{method="POST",route="/v1/endpoints",status="400"} 1.0'
        wait_until(lambda: hung_up in client.get("/metrics").text, lambda: client.get("/metrics").text)
        assert processes.stop("api") == 0
    log = (tmp_path / "api.log").read_text(encoding="utf-8")
    assert key not in log
    assert "api.defect" not in log, "whoever hangs up is no defect of ours"


def test_api_takes_no_failpoints_where_the_database_is_not_marked_for_tests(
    homing: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.listening.configure_logging", lambda level, process: None)
    monkeypatch.setattr("app.api.listening.make_engine", lambda *given, **named: pytest.fail("it went on"))
    answer = homing("api", HOMING_FAILPOINTS="write.committed=kill")
    assert answer.code == 2, answer.err
    assert "not marked for tests" in answer.err


def test_owner_who_may_not_make_roles_gets_a_schema_and_a_warning(servers: Servers) -> None:
    """Everything works but the second wall, and doctor says so; who may make roles can add it later."""
    owner = f"homing_test_owner_{uuid4().hex[:12]}"
    parts = urlsplit(servers.running.database_url)
    admin_url = servers.running.database_url
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {owner} LOGIN PASSWORD 'x'")
        admin.execute(f"CREATE DATABASE {owner} OWNER {owner}")
        try:
            url = urlunsplit(parts._replace(netloc=f"{owner}:x@{parts.hostname}:{parts.port}", path=f"/{owner}"))
            migrate(url)
            assert asyncio.run(wall_of(url)) == ("warn", None)
            with psycopg.connect(servers.url_of(owner), autocommit=True) as inside:
                assert inside.execute("SELECT homing_build_api_wall()").fetchone() == (True,)
                inside.execute(f"GRANT homing_api TO {owner}")
            assert asyncio.run(wall_of(url)) == ("ok", None)
            migrate(url, "base")
        finally:
            admin.execute(f"DROP DATABASE {owner} WITH (FORCE)")
            admin.execute(f"DROP ROLE {owner}")


async def wall_of(url: str) -> tuple[str, object]:
    engine = make_unpooled_engine(url, name="test")

    async def look(connection: AsyncConnection) -> tuple[str, object]:
        return (await check_wall(connection)).state, await recognise(connection, "homing_live_")

    try:
        async with engine.connect() as connection:
            return await look(connection)
    finally:
        await engine.dispose()
