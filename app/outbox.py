"""The way in for producers written in Python: one row in `outbox_events`, inside the caller's own transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
