"""The way in for producers written in Python: rows in `outbox_events`, inside the caller's own transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text
from sqlalchemy.orm import Session

_INSERT = text(
    """
    INSERT INTO outbox_events
        (tenant_id, event_type, payload, request_id, idempotency_key, traceparent, run_id, ordering_key, headers)
    VALUES (:tenant_id, :event_type, CAST(:payload AS jsonb), coalesce(:request_id, 'req_' || homing_uuid7()),
            :idempotency_key, :traceparent, :run_id, :ordering_key, CAST(:headers AS jsonb))
    RETURNING id, request_id
    """
)

_INSERT_MANY = text(
    """
    WITH new AS MATERIALIZED (
        SELECT n, homing_uuid7() AS id, tenant_id, event_type, CAST(payload AS jsonb) AS payload,
               coalesce(request_id, 'req_' || homing_uuid7()) AS request_id, idempotency_key, traceparent, run_id,
               ordering_key, CAST(headers AS jsonb) AS headers
        FROM unnest(CAST(:tenant_id AS text[]), CAST(:event_type AS text[]), CAST(:payload AS text[]),
                    CAST(:request_id AS text[]), CAST(:idempotency_key AS text[]), CAST(:traceparent AS text[]),
                    CAST(:run_id AS text[]), CAST(:ordering_key AS text[]), CAST(:headers AS text[]))
             WITH ORDINALITY AS r (tenant_id, event_type, payload, request_id, idempotency_key, traceparent, run_id,
                                   ordering_key, headers, n)
    ), added AS (
        INSERT INTO outbox_events
            (id, tenant_id, event_type, payload, request_id, idempotency_key, traceparent, run_id, ordering_key, headers)
        SELECT id, tenant_id, event_type, payload, request_id, idempotency_key, traceparent, run_id, ordering_key,
               headers
        FROM new ORDER BY n
    )
    SELECT id, request_id FROM new ORDER BY n
    """
)


@dataclass(frozen=True, slots=True)
class NewEvent:
    """One event for `add_events`; the fields are those of `add_event`, but JSON is given as text and stays exact."""

    event_type: str
    payload: str
    """JSON text."""
    tenant_id: str = "default"
    request_id: str | None = None
    idempotency_key: str | None = None
    traceparent: str | None = None
    run_id: str | None = None
    ordering_key: str | None = None
    headers: str | None = None
    """JSON text of an object of names and text values."""


def add_event(
    session_or_connection: Session | Connection,
    event_type: str,
    payload: Any,
    *,
    tenant_id: str = "default",
    request_id: str | None = None,
    idempotency_key: str | None = None,
    traceparent: str | None = None,
    run_id: str | None = None,
    ordering_key: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[UUID, str]:
    """Add one event to the outbox, inside the caller's transaction; never commits.

    From async code: `await session.run_sync(add_event, "invoice.paid", {...})`; an `AsyncSession` and an
    `AsyncConnection` both have `run_sync`.

    Args:
        session_or_connection: an open SQLAlchemy session or connection on the database that Homing reads. Its role
            needs INSERT on `outbox_events`, and SELECT on the two columns that are returned.
        event_type: such as `invoice.paid`.
        payload: anything that `json.dumps` accepts, without NaN or infinity; becomes the body of the request.
        tenant_id: whose data it is; an unknown tenant is set aside by the poller, not refused here.
        request_id: the caller's correlation id; made here when absent.
        idempotency_key: the same key for the same tenant never causes a second set of deliveries.
        traceparent: W3C trace context, passed on.
        run_id: events that belong together.
        ordering_key: kept with the event.
        headers: extra request headers.

    Returns:
        The event's id (the `webhook-id` that receivers see) and its request id.

    Raises:
        ValueError, TypeError: the payload is not JSON. Nothing was written.
        sqlalchemy.exc.DBAPIError: the database refused the row; the transaction is the caller's to roll back.
    """
    row = session_or_connection.execute(
        _INSERT,
        {
            "tenant_id": tenant_id,
            "event_type": event_type,
            "payload": json.dumps(payload, allow_nan=False),
            "request_id": request_id,
            "idempotency_key": idempotency_key,
            "traceparent": traceparent,
            "run_id": run_id,
            "ordering_key": ordering_key,
            "headers": None if headers is None else json.dumps(dict(headers)),
        },
    ).one()
    return row.id, row.request_id


def add_events(session_or_connection: Session | Connection, events: Sequence[NewEvent]) -> list[tuple[UUID, str]]:
    """Add many events by one statement, inside the caller's transaction; never commits. Best with 100 to 1,000 at once.

    Returns:
        Each event's id and request id, in the order given. Ids made in the same millisecond do not sort in that order.

    Raises:
        sqlalchemy.exc.DBAPIError: the database refused one of them, so none was written; the transaction is the
            caller's to roll back.
    """
    if not events:
        return []
    names = [column.name for column in fields(NewEvent)]
    rows = session_or_connection.execute(_INSERT_MANY, {name: [getattr(e, name) for e in events] for name in names})
    return [(row.id, row.request_id) for row in rows]
