"""Runs the command line in this process on a database of its own, and puts rows into given states by SQL."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

from app.migrate import migrate
from tests.conftest import Servers
from workers.cli.main import run


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        return json.loads(self.err.splitlines()[-1])["error"]


@dataclass(frozen=True)
class CommandLine:
    """Calls `homing`; `sql` works on its database."""

    database_url: str
    environment: dict[str, str]

    def __call__(self, *arguments: str, stdin: str = "", **environment: str) -> Answer:
        out, err = io.StringIO(), io.StringIO()
        source = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
        with (
            mock.patch.dict(os.environ, self.environment | environment),
            mock.patch.object(sys, "stdin", source),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            code = run(arguments)
        return Answer(code, out.getvalue(), err.getvalue())

    def ok(self, *arguments: str, stdin: str = "") -> Any:
        """Run with `--json`, expect success; the parsed answer."""
        answer = self(*arguments, "--json", stdin=stdin)
        assert answer.code == 0, answer.err
        return answer.json

    def sql(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        with psycopg.connect(self.database_url, row_factory=dict_row) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def make_endpoint(self, tenant: str = "default") -> str:
        made = self.ok("endpoints", "create", "--url", "https://receiver.example/hook", "--tenant", tenant)
        return str(made["id"])

    def make_delivery(self, state: str, *, request_id: str, endpoint: str, event_type: str = "invoice.paid") -> str:
        """An event that was taken, and its delivery in this state; dead letters are filed as well."""
        event = self.sql(
            """
            INSERT INTO events (id, tenant_id, event_type, body, request_id, created_at)
            VALUES (homing_uuid7(), 'default', %(event_type)s, '{"a": 1}', %(request_id)s, now()) RETURNING id
            """,
            event_type=event_type,
            request_id=request_id,
        )[0]["id"]
        over = state in ("failed", "dead_lettered")
        delivery: UUID = self.sql(
            """
            INSERT INTO deliveries (tenant_id, event_id, endpoint_id, state, due_at, attempts, last_attempt_at,
                                    last_outcome, last_class, last_status, delivered_at, failed_at)
            VALUES ('default', %(event)s, %(endpoint)s, %(state)s,
                    CASE WHEN %(state)s IN ('delivered', 'dead_lettered') THEN NULL ELSE now() + interval '1 hour' END,
                    %(attempts)s, now(), 'definite', %(failure)s, 400,
                    CASE WHEN %(state)s = 'delivered' THEN now() END, CASE WHEN %(over)s THEN now() END)
            RETURNING id
            """,
            event=event,
            endpoint=endpoint,
            state=state,
            over=over,
            attempts=0 if state == "pending" else 1,
            failure="http_status" if over else None,
        )[0]["id"]
        if state == "dead_lettered":
            self.sql(
                """
                INSERT INTO dead_letters (delivery_id, generation, tenant_id, endpoint_id, event_id, event_type, request_id,
                                          payload, response, failure_class, last_http_status, attempts)
                VALUES (%(delivery)s, 1, 'default', %(endpoint)s, %(event)s, %(event_type)s, %(request_id)s, '{"a": 1}',
                        'no', 'http_status', 400, 1)
                """,
                delivery=delivery,
                endpoint=endpoint,
                event=event,
                event_type=event_type,
                request_id=request_id,
            )
        return str(delivery)


@contextlib.contextmanager
def command_line(servers: Servers, home: Path) -> Iterator[CommandLine]:
    """The command line on a new, migrated database."""
    name = f"homing_cli_{os.getpid()}_{home.name}"
    with psycopg.connect(servers.running.database_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        migrate(servers.url_of(name))
        environment = {
            "HOMING_HOME": str(home),
            "HOMING_DATABASE_URL": servers.url_of(name),
            "HOMING_REDIS_URL": servers.running.redis_url,
            "HOMING_SECRET_KEYS": b64encode(os.urandom(32)).decode(),
        }
        yield CommandLine(servers.url_of(name), environment)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
