"""What the Python peers share: the outbox's two statements, the relay's loop, and the signature of a request."""

from __future__ import annotations

import hmac
import os
import time
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence

import psycopg

BATCH = 500
IDLE_S = 0.01
TIMEOUT_S = 15
#: The first attempt and four more, 10 s to 1 h apart, with jitter.
RETRIES = 4
BACKOFF_MIN_S = 10
BACKOFF_MAX_S = 3600

DATABASE_URL = os.environ["PEER_DATABASE_URL"]
CONCURRENCY = int(os.environ["PEER_CONCURRENCY"])
POOL_SIZE = int(os.environ.get("PEER_POOL_SIZE", "8"))

#: Takes outbox rows, fans them out, and answers everything that a request needs, so that no worker has to read it again.
CLAIM = """
    WITH claimed AS (
        DELETE FROM outbox WHERE id IN (
            SELECT id FROM outbox ORDER BY created_at LIMIT %s FOR UPDATE SKIP LOCKED
        ) RETURNING id, event_type, payload
    )
    INSERT INTO deliveries (id, event_id, endpoint_url, secret, payload)
    SELECT gen_random_uuid(), claimed.id, endpoints.url, endpoints.secret, claimed.payload::text
    FROM claimed JOIN endpoints USING (event_type)
    RETURNING id::text, event_id::text, endpoint_url, secret, payload
"""

#: delivery id, event id, URL, secret, body.
Delivery = tuple[str, str, str, str, str]

_RECORD = """
    UPDATE deliveries SET
        attempts = attempts + 1,
        last_status = %(status)s,
        state = CASE WHEN %(delivered)s THEN 'delivered' WHEN attempts >= %(retries)s THEN 'failed' ELSE 'retrying' END,
        delivered_at = CASE WHEN %(delivered)s THEN now() END
    WHERE id = %(id)s::uuid AND state <> 'delivered'
"""


class NotDelivered(Exception):
    """The receiver did not answer 2xx; the queue's own retries take it from here."""


def record(delivery_id: str, status: int | None) -> tuple[str, dict[str, object]]:
    """The statement that records an attempt, and its parameters; no status means that there was no answer."""
    delivered = status is not None and 200 <= status < 300
    return _RECORD, {"id": delivery_id, "status": status, "delivered": delivered, "retries": RETRIES}


def require_delivered(status: int | None) -> None:
    """Raise what makes the queue try again, unless the status is 2xx."""
    if status is None or not 200 <= status < 300:
        raise NotDelivered(f"answer {status}")


def headers(event_id: str, secret: str, body: bytes) -> dict[str, str]:
    """Standard Webhooks 1.0.0."""
    timestamp = str(int(time.time()))
    key = b64decode(secret.removeprefix("whsec_"))
    mac = hmac.digest(key, b"%s.%s.%s" % (event_id.encode(), timestamp.encode(), body), "sha256")
    return {
        "content-type": "application/json",
        "webhook-id": event_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": "v1," + b64encode(mac).decode(),
    }


def relay(enqueue: Callable[[Sequence[Delivery]], None]) -> None:
    """Move outbox rows to deliveries, and enqueue them after the commit; for ever."""
    with psycopg.connect(DATABASE_URL, autocommit=True) as connection:
        while True:
            claimed = connection.execute(CLAIM, (BATCH,)).fetchall()
            if claimed:
                enqueue(claimed)
            else:
                time.sleep(IDLE_S)
