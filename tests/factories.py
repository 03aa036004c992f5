"""Rows in any state, with what the state's CHECKs require; taking from the outbox; looking at what was left behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncEngine

from app.intake import Intake, take_from_outbox

#: Who has claimed or leased what `make_delivery` makes.
OWNER = "owner@test:1"

#: Literals of SQL, so that times are the database's. What is not named here has its column's default.
_BY_STATE: dict[str, dict[str, str]] = {
    "pending": {},
    "delivering": {"attempts": "1", "last_attempt_at": "now()"},
    "delivered": {"attempts": "1", "last_attempt_at": "now()", "delivered_at": "now()", "last_outcome": "'delivered'"},
    "retry_scheduled": {"attempts": "1", "last_attempt_at": "now()", "last_outcome": "'transient'"},
    "failed": {"attempts": "5", "last_attempt_at": "now()", "failed_at": "now()", "last_outcome": "'transient'"},
    "dead_lettered": {"attempts": "5", "last_attempt_at": "now()", "failed_at": "now()", "last_outcome": "'transient'"},
    "replayed": {"replays": "1"},
}
_FAILURE = {"last_class": "'http_status'", "last_status": "503", "last_error": "'the endpoint answered 503'"}
_TABLES = ("endpoints", "deliveries", "delivery_attempts", "dead_letters", "replays", "replay_items", "audit_events")


@dataclass(frozen=True, slots=True)
class MadeDelivery:
    id: UUID
    generation: int
    event_id: UUID
    endpoint_id: UUID
    request_id: str

    @property
    def ticket(self) -> tuple[UUID, int]:
        return self.id, self.generation


async def rows(engine: AsyncEngine, sql: str, **parameters: Any) -> list[Row[Any]]:
    """Run one statement in a transaction of its own."""
    async with engine.begin() as connection:
        result = await connection.execute(text(sql), parameters)
        return list(result.all()) if result.returns_rows else []


async def one(engine: AsyncEngine, sql: str, **parameters: Any) -> Row[Any]:
    (row,) = await rows(engine, sql, **parameters)
    return row


async def state_of(engine: AsyncEngine, delivery: MadeDelivery) -> str:
    return str((await one(engine, "SELECT state FROM deliveries WHERE id = :id", id=delivery.id)).state)


async def everything(engine: AsyncEngine) -> dict[str, list[str]]:
    """All rows that the pipeline's statements write to, to compare before with after."""
    return {
        table: [str(r.row) for r in await rows(engine, f"SELECT to_jsonb(t) AS row FROM {table} t ORDER BY 1")]
        for table in _TABLES
    }


async def make_tenant(engine: AsyncEngine, tenant_id: str) -> None:
    await rows(engine, "INSERT INTO tenants (id, name) VALUES (:id, '')", id=tenant_id)


async def make_endpoint(engine: AsyncEngine, **columns: Any) -> UUID:
    """An active endpoint for every type, or as `columns` say."""
    values = {"tenant_id": "default", "url": "http://127.0.0.1:1/hook"} | columns
    return await _insert(engine, "endpoints", values)


async def make_outbox_event(engine: AsyncEngine, payload: str = "{}", **columns: Any) -> UUID:
    """A committed outbox row; `payload` and `headers` are JSON text."""
    return await _insert(engine, "outbox_events", {"event_type": "invoice.paid", "payload": payload} | columns)


async def make_delivery(
    engine: AsyncEngine,
    state: str = "pending",
    *,
    endpoint_id: UUID | None = None,
    request_id: str | None = None,
    due_in_s: float = 60,
    **columns: Any,
) -> MadeDelivery:
    """A delivery as it is in `state`, published under generation 1 and leased by `OWNER`, with its event.

    A dead-lettered one has its dead letter. `due_in_s` plays no part where nothing is due.
    """
    request_id = request_id or f"req_{uuid4()}"
    endpoint_id = endpoint_id or await make_endpoint(engine)
    event_id = await _insert(
        engine,
        "events",
        {
            "id": uuid4(),
            "tenant_id": "default",
            "event_type": "invoice.paid",
            "body": '{"amount": 1}',
            "request_id": request_id,
            "created_at": "now",
        },
    )
    over = state in ("delivered", "dead_lettered")
    literals = {
        "due_at": "NULL" if over else f"now() + {due_in_s} * interval '1 second'",
        "lease_owner": "NULL" if over else f"'{OWNER}'",
        "generation": "1",
        **_BY_STATE[state],
        **(_FAILURE if state in ("retry_scheduled", "failed", "dead_lettered") else {}),
    }
    values = {"tenant_id": "default", "event_id": event_id, "endpoint_id": endpoint_id, "state": state} | columns
    literals = {name: literal for name, literal in literals.items() if name not in columns}
    delivery_id = await _insert(engine, "deliveries", values, literals)
    generation = int(columns.get("generation", 1))
    if state == "dead_lettered":
        await rows(
            engine,
            """
            INSERT INTO dead_letters (delivery_id, generation, tenant_id, endpoint_id, event_id, event_type, request_id,
                                      payload, failure_class, attempts)
            SELECT d.id, generation, d.tenant_id, endpoint_id, event_id, event_type, request_id, body, last_class, attempts
            FROM deliveries d JOIN events e ON e.id = event_id WHERE d.id = :id
            """,
            id=delivery_id,
        )
    return MadeDelivery(delivery_id, generation, event_id, endpoint_id, request_id)


async def take(engine: AsyncEngine, limit: int = 500, capacity: int = 500, owner: str = "p") -> Intake:
    return await take_from_outbox(
        engine, limit=limit, capacity=capacity, owner=owner, lease_s=20, payload_max_bytes=1 << 20
    )


async def take_all(engine: AsyncEngine, limit: int, owner: str) -> Intake:
    total = Intake()
    while True:
        intake = await take(engine, limit, owner=owner)
        if not intake.taken + intake.rejected:
            return total
        total.taken += intake.taken
        total.duplicates += intake.duplicates
        total.deliveries += intake.deliveries


async def _insert(
    engine: AsyncEngine, table: str, values: dict[str, Any], literals: dict[str, str] | None = None
) -> UUID:
    literals = literals or {}
    names = ", ".join([*values, *literals])
    places = ", ".join([*(f":{name}" for name in values), *literals.values()])
    row = await one(engine, f"INSERT INTO {table} ({names}) VALUES ({places}) RETURNING id", **values)
    return UUID(str(row.id))
