"""Events that come over HTTP: into the outbox as any producer's, or, for a test, to one endpoint; and where they are.

The statements go through the views `outbox_of_tenant` and `outbox_rejected_of_tenant`, which show the tenant in the setting
`homing.tenant` only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.audit import write_audit
from app.errors import Conflict, InvalidInput, NotFound

TEST_EVENT_TYPE = "homing.test"
#: Events of one request id that are shown.
EVENTS_MAX = 100
#: Deliveries of them that are shown, with their attempts.
DELIVERIES_MAX = 1000

# The payload is taken out of the body by Postgres: no number of it passes through a float.
_PUBLISH = text(
    """
    INSERT INTO outbox_of_tenant
        (tenant_id, event_type, payload, request_id, idempotency_key, traceparent, run_id, ordering_key, headers)
    VALUES (:tenant_id, :event_type, CAST(:body AS jsonb) -> 'payload', coalesce(:request_id, 'req_' || homing_uuid7()),
            :idempotency_key, :traceparent, :run_id, :ordering_key, CAST(:headers AS jsonb))
    RETURNING id, request_id, octet_length(payload::text) AS payload_bytes
    """
)

_CALLABLE = text("SELECT status FROM endpoints WHERE tenant_id = :tenant_id AND id = :id FOR KEY SHARE")

_SEND_TEST = text(
    """
    WITH event AS (
        INSERT INTO events (id, tenant_id, event_type, body, request_id, traceparent, created_at)
        SELECT id, :tenant_id, :event_type, jsonb_build_object('test', true, 'endpoint_id', CAST(:endpoint AS text), 'message',
               'Sent by an operator to see whether this endpoint receives and verifies.')::text,
               'req_' || id, :traceparent, clock_timestamp()
        FROM (SELECT homing_uuid7() AS id) AS new
        RETURNING id, tenant_id, request_id
    )
    INSERT INTO deliveries (tenant_id, event_id, endpoint_id)
    SELECT tenant_id, id, CAST(CAST(:endpoint AS text) AS uuid) FROM event
    RETURNING id AS delivery_id, event_id, 'req_' || event_id AS request_id
    """
)

_FIND = text(
    """
    SELECT * FROM (
        SELECT 'waiting' AS place, id, event_type, request_id, idempotency_key, traceparent, run_id, ordering_key,
               payload::text AS payload, created_at, NULL::timestamptz AS taken_at, NULL::uuid AS duplicate_of,
               NULL AS reason
        FROM outbox_of_tenant WHERE tenant_id = :tenant_id AND request_id = :request_id
        UNION ALL
        SELECT 'set_aside', id, event_type, request_id, idempotency_key, traceparent, run_id, ordering_key, payload::text,
               created_at, NULL, NULL, reason
        FROM outbox_rejected_of_tenant WHERE tenant_id = :tenant_id AND request_id = :request_id
        UNION ALL
        SELECT 'taken', id, event_type, request_id, idempotency_key, traceparent, run_id, ordering_key, body, created_at,
               taken_at, duplicate_of, NULL
        FROM events WHERE tenant_id = :tenant_id AND request_id = :request_id
    ) AS found ORDER BY id LIMIT :limit
    """
)

_DELIVERIES = text(
    """
    SELECT id, event_id, endpoint_id, state, attempts, replays, last_status, last_class, last_error,
           CASE WHEN state IN ('pending', 'retry_scheduled', 'replayed') THEN nullif(due_at, 'infinity') END
               AS next_attempt_at, created_at, delivered_at, failed_at
    FROM deliveries WHERE tenant_id = :tenant_id AND event_id = ANY(CAST(:ids AS uuid[])) ORDER BY id LIMIT :limit
    """
)

_ATTEMPTS = text(
    """
    SELECT delivery_id, number, generation, started_at, duration_ms, outcome, failure_class, retryable, http_status, error,
           response_excerpt, retry_at
    FROM delivery_attempts WHERE tenant_id = :tenant_id AND delivery_id = ANY(CAST(:ids AS uuid[]))
    ORDER BY delivery_id, generation
    """
)


async def publish_event(
    connection: AsyncConnection,
    *,
    tenant_id: str,
    event_type: str,
    body: str,
    request_id: str | None,
    idempotency_key: str | None,
    traceparent: str | None,
    run_id: str | None,
    ordering_key: str | None,
    headers: Mapping[str, str] | None,
    payload_max_bytes: int,
) -> dict[str, Any]:
    """Add an event to the outbox; the name `payload` of the JSON object `body` is what it carries.

    Raises:
        InvalidInput: the payload is too long, as it will be sent. The caller rolls back.
    """
    row = (
        await connection.execute(
            _PUBLISH,
            {
                "tenant_id": tenant_id,
                "event_type": event_type,
                "body": body,
                "request_id": request_id,
                "idempotency_key": idempotency_key,
                "traceparent": traceparent,
                "run_id": run_id,
                "ordering_key": ordering_key,
                "headers": None if headers is None else json.dumps(dict(headers)),
            },
        )
    ).one()
    if row.payload_bytes > payload_max_bytes:
        raise InvalidInput(
            f"payload: has {row.payload_bytes} bytes as it is sent, more than the {payload_max_bytes} allowed"
        )
    return {"id": row.id, "request_id": row.request_id}


async def send_test_event(
    connection: AsyncConnection, *, tenant_id: str, endpoint_id: UUID, actor: str, traceparent: str | None
) -> dict[str, Any]:
    """Make an event of type `homing.test` and one delivery of it, to this endpoint whatever it subscribes to; audited.

    Raises:
        NotFound: the tenant has no such endpoint.
        Conflict: it is not active, so nothing would be sent.
    """
    where = {"tenant_id": tenant_id, "id": endpoint_id}
    status = (await connection.execute(_CALLABLE, where)).scalar_one_or_none()
    if status is None:
        raise NotFound(f"tenant {tenant_id!r} has no endpoint {endpoint_id}")
    if status != "active":
        raise Conflict(f"the endpoint is {status}; a test event is sent to active ones only")
    fields = {"tenant_id": tenant_id, "endpoint": str(endpoint_id), "event_type": TEST_EVENT_TYPE}
    row = (await connection.execute(_SEND_TEST, fields | {"traceparent": traceparent})).one()
    await write_audit(
        connection,
        tenant_id=tenant_id,
        action="endpoint.tested",
        subject=endpoint_id,
        after={"delivery_id": str(row.delivery_id)},
        actor=actor,
        request_id=row.request_id,
        traceparent=traceparent,
    )
    await connection.execute(text("SELECT pg_notify('homing_wake', '')"))
    return dict(row._mapping)


async def events_of_request(connection: AsyncConnection, *, tenant_id: str, request_id: str) -> list[dict[str, Any]]:
    """At most 100 events with this request id, oldest first, each with its deliveries and their attempts.

    Raises:
        NotFound: the tenant has none.
    """
    where: dict[str, Any] = {"tenant_id": tenant_id, "request_id": request_id, "limit": EVENTS_MAX}
    found: dict[UUID, dict[str, Any]] = {}
    for row in await connection.execute(_FIND, where):
        # A row that is moved from one place to the next while this reads may be seen in both.
        found[row.id] = dict(row._mapping) | {"deliveries": []}
    if not found:
        raise NotFound(f"tenant {tenant_id!r} has no event with request id {request_id!r}")
    of_events = {"tenant_id": tenant_id, "ids": list(found), "limit": DELIVERIES_MAX}
    deliveries: dict[UUID, dict[str, Any]] = {}
    for row in await connection.execute(_DELIVERIES, of_events):
        deliveries[row.id] = dict(row._mapping) | {"timeline": []}
        found[row.event_id]["deliveries"].append(deliveries[row.id])
    for row in await connection.execute(_ATTEMPTS, {"tenant_id": tenant_id, "ids": list(deliveries)}):
        deliveries[row.delivery_id]["timeline"].append(dict(row._mapping))
    return list(found.values())
