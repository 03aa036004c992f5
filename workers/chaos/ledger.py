"""What happened in a scenario: plain data, and how it is read from Postgres. The suite's own statements, nothing of Homing's.

All times are seconds since 1970. Those of rows are the database's clock, those of requests the receiver's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import psycopg
from psycopg.rows import namedtuple_row


@dataclass(frozen=True)
class Order:
    """One committed event, from the business' own table."""

    event_id: str
    tenant: str
    event_type: str
    body: str
    made_at: float


@dataclass(frozen=True)
class Endpoint:
    """One receiver, as the scenario made it."""

    id: str
    name: str
    tenant: str
    event_types: tuple[str, ...]
    scheme: str
    secret: str
    schedule_s: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Delivery:
    id: str
    tenant: str
    event_id: str
    endpoint_id: str
    state: str
    letters: int = 0


@dataclass(frozen=True)
class Attempt:
    delivery_id: str
    generation: int
    number: int
    started_at: float
    duration_ms: int | None
    outcome: str
    failure_class: str | None
    http_status: int | None
    retry_at: float | None
    worker: str | None = None
    error: str | None = None
    excerpt_bytes: int = 0


@dataclass(frozen=True)
class Move:
    """One change of a delivery's state or generation, as the database's own trigger wrote it."""

    n: int
    delivery_id: str
    at: float
    began: float
    old_state: str
    state: str
    old_generation: int
    generation: int
    old_due_at: float | None
    owner: str | None = None


@dataclass(frozen=True)
class Request:
    """One request, as the receiver wrote it down."""

    endpoint: str
    webhook_id: str
    attempt: int
    at: float
    headers: dict[str, str]
    digest: str
    status: int | None
    connection: int = 0
    on_connection: int = 1


@dataclass(frozen=True)
class Mark:
    """A fault at a moment of the database's clock, and the deliveries that it hit."""

    at: float
    deliveries: frozenset[str]


@dataclass(frozen=True)
class Growth:
    """How much a process has grown since it was warm."""

    name: str
    rss_mib: float
    descriptors: int


@dataclass(frozen=True)
class Residue:
    """What was left when everything was quiet."""

    outbox: int = 0
    open_deliveries: int = 0
    leases: int = 0
    locks: int = 0
    idle_in_transaction_s: float = 0.0
    growth: tuple[Growth, ...] = ()


@dataclass
class Ledger:
    """Everything that the judge is shown."""

    orders: list[Order] = field(default_factory=list)
    endpoints: list[Endpoint] = field(default_factory=list)
    deliveries: list[Delivery] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    audit: dict[str, int] = field(default_factory=dict)
    residue: Residue = field(default_factory=Residue)


_ORDERS = "SELECT event_id::text, tenant_id, event_type, payload::text, extract(epoch FROM made_at)::float8 FROM orders"
_DELIVERIES = """
    SELECT d.id::text, d.tenant_id, d.event_id::text, d.endpoint_id::text, d.state,
           (SELECT count(*) FROM dead_letters l WHERE l.delivery_id = d.id)::integer
    FROM deliveries d
"""
_ATTEMPTS = """
    SELECT delivery_id::text, generation, number, extract(epoch FROM started_at)::float8, duration_ms, outcome,
           failure_class, http_status, extract(epoch FROM retry_at)::float8, worker, error,
           coalesce(octet_length(response_excerpt), 0)
    FROM delivery_attempts ORDER BY delivery_id, generation
"""
_MOVES = """
    SELECT n, delivery_id::text, extract(epoch FROM at)::float8, extract(epoch FROM began)::float8, old_state, state,
           old_generation, generation,
           CASE WHEN old_due_at < 'infinity' THEN extract(epoch FROM old_due_at)::float8 END, owner
    FROM homing_chaos_moves ORDER BY n
"""
# Rows of people's acts; what Homing does to deliveries by itself is not counted here.
_AUDIT = "SELECT action, count(*)::integer FROM audit_events WHERE action NOT LIKE 'delivery.%' GROUP BY action"


def read_ledger(database_url: str, endpoints: list[Endpoint], requests: list[Request], marks: list[Mark]) -> Ledger:
    """Everything but the residue, in one snapshot."""
    with psycopg.connect(database_url, connect_timeout=5) as connection:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")

        def rows(statement: str) -> list[Any]:
            return connection.execute(statement).fetchall()

        return Ledger(
            orders=[Order(*row) for row in rows(_ORDERS)],
            endpoints=endpoints,
            deliveries=[Delivery(*row) for row in rows(_DELIVERIES)],
            attempts=[Attempt(*row) for row in rows(_ATTEMPTS)],
            moves=[Move(*row) for row in rows(_MOVES)],
            requests=requests,
            marks=marks,
            audit=dict(rows(_AUDIT)),
        )


def read(database_url: str, statement: str, parameters: dict[str, Any] | None = None) -> list[Any]:
    """Rows of one statement, with names."""
    with psycopg.connect(database_url, connect_timeout=5, row_factory=namedtuple_row, autocommit=True) as connection:
        cursor = connection.execute(statement, parameters)
        return cursor.fetchall() if cursor.description else []
