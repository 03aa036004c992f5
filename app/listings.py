"""Listings for the API, newest first, one page at a time. Read-only.

Each starts from an index that gives its rows in order, and looks at no more than `SCAN_MAX` of them for one page: a filter
that almost nothing passes makes short pages, never slow ones. The page after the last row is found by its id alone, so
rows that are added meanwhile, which have greater ids, neither shift nor repeat anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.states import REPLAYABLE

#: Rows that are looked at for one page when its filters are no index's.
SCAN_MAX = 10_000
#: The same when each needs a look into another table.
SCAN_MAX_JOINED = 2_000

_LAST_ID = UUID(int=(1 << 128) - 1)
_FIRST_ID = UUID(int=0)
_NEWEST_WEEK_MS = 253_402_300_799_000
"""End of the year 9999: later moments have no id."""


@dataclass(frozen=True, slots=True)
class Page:
    """Rows, and the id below which the next page begins; None when there is none."""

    rows: list[dict[str, Any]]
    next_before: UUID | None


_SHOWN = """
    d.id, d.event_id, e.event_type, e.request_id, d.endpoint_id, d.state, d.attempts, d.replays, d.last_outcome, d.last_class,
    d.last_status, d.last_error,
    CASE WHEN d.state IN ('pending', 'retry_scheduled', 'replayed') THEN nullif(d.due_at, 'infinity') END AS next_attempt_at,
    coalesce(d.due_at = 'infinity', false) AS parked, d.last_attempt_at, d.created_at, d.delivered_at, d.failed_at
"""

# OFFSET 0 keeps it a look-up for each row of the page; as a join the planner might read all events.
_EVENT = """
    LEFT JOIN LATERAL (
        SELECT e.event_type, e.request_id FROM events e WHERE e.tenant_id = :tenant_id AND e.id = d.event_id OFFSET 0
    ) e ON true
"""

_DEAD_LETTER = """
    id, delivery_id, event_id, event_type, request_id, endpoint_id, failure_class, failure_detail, last_http_status, attempts,
    status, created_at, updated_at
"""

_DELIVERY = text(f"SELECT {_SHOWN} FROM deliveries d {_EVENT} WHERE d.tenant_id = :tenant_id AND d.id = :id")  # noqa: S608

_ATTEMPTS = text(
    """
    SELECT number, generation, started_at, duration_ms, outcome, failure_class, retryable, http_status, error,
           response_excerpt, retry_at
    FROM delivery_attempts WHERE tenant_id = :tenant_id AND delivery_id = :id ORDER BY generation
    """
)

_OWN_ENDPOINT = text("SELECT id FROM endpoints WHERE tenant_id = :tenant_id AND id = :endpoint_id")

_ENDPOINTS = """
    SELECT id, name, url, event_types, status, status_reason, scheme, max_attempts, retry_base_s, retry_factor, retry_cap_s,
           retry_jitter, retry_schedule_s, version, created_at, updated_at
    FROM endpoints WHERE tenant_id = :tenant_id AND id < :before {conditions} ORDER BY id DESC LIMIT :limit + 1
"""


async def page_of_deliveries(
    connection: AsyncConnection, *, tenant_id: str, filters: dict[str, Any], before: UUID | None, limit: int
) -> Page:
    """A tenant's deliveries that match every filter.

    Args:
        connection: to read with.
        tenant_id: whose.
        filters: of `request_id`, `event_id`, `endpoint_id`, `state`, `event_type`, `failure_class`, `http_status`, `since`
            and `until` (of the delivery's creation); none of them null.
        before: the id that the page begins below.
        limit: rows, at most.
    """
    given: dict[str, Any] = {"tenant_id": tenant_id, "limit": limit} | _bounds(filters, before)
    given |= {name: value for name, value in filters.items() if name not in ("since", "until")}
    rest = _conditions(
        filters,
        {
            "state": "d.state = :state",
            "failure_class": "d.last_class = :failure_class",
            "http_status": "d.last_status = :http_status",
        },
    )
    if "request_id" in filters or "event_id" in filters:
        # Few: those of some events. Sorted, not scanned in order.
        event = _conditions(
            filters,
            {
                "request_id": "e.request_id = :request_id",
                "event_id": "e.id = :event_id",
                "event_type": "e.event_type = :event_type",
            },
        )
        rest += _conditions(filters, {"endpoint_id": "d.endpoint_id = :endpoint_id"})
        source = f"""
            SELECT d.* FROM events e JOIN deliveries d ON d.event_id = e.id
            WHERE e.tenant_id = :tenant_id {event} AND d.tenant_id = :tenant_id AND d.id < :before AND d.id >= :since {rest}
            ORDER BY d.id DESC LIMIT :limit + 1
        """  # noqa: S608 - made of constants
        return await _page(connection, _with_events(source), given, limit)
    start = "d.id < :before AND d.id >= :since"
    if filters.get("state") in REPLAYABLE:
        start += " AND d.state IN ('failed', 'dead_lettered')"  # as the index says it
    joined = "event_type" in filters
    if joined:
        rest += " AND e.event_type = :event_type"
    whose = "d.tenant_id = :tenant_id"
    if "endpoint_id" in filters:
        # Asked of the endpoint: asked of every delivery, the planner would rather go through all of the tenant's.
        if (await connection.execute(_OWN_ENDPOINT, given)).one_or_none() is None:
            return Page([], None)
        whose = "d.endpoint_id = :endpoint_id"
    scanned = f"SELECT d.* FROM deliveries d WHERE {whose} AND {start} ORDER BY d.id DESC"  # noqa: S608 - made of constants
    if not rest:
        return await _page(connection, _with_events(f"{scanned} LIMIT :limit + 1"), given, limit)
    source = f"""
        SELECT d.* FROM ({scanned} LIMIT :scan) d {_EVENT if joined else ""} WHERE true {rest}
        ORDER BY d.id DESC LIMIT :limit + 1
    """  # noqa: S608 - made of constants
    given["scan"] = SCAN_MAX_JOINED if joined else SCAN_MAX
    return await _page(connection, _with_events(source), given, limit, scanned)


async def page_of_dead_letters(
    connection: AsyncConnection, *, tenant_id: str, filters: dict[str, Any], before: UUID | None, limit: int
) -> Page:
    """A tenant's dead letters that match every filter, without their snapshots.

    Args:
        connection: to read with.
        tenant_id: whose.
        filters: of `request_id`, `endpoint_id`, `status`, `event_type`, `failure_class`, `http_status`, `since` and `until`
            (of the filing); none of them null.
        before: the id that the page begins below.
        limit: rows, at most.
    """
    given: dict[str, Any] = {"tenant_id": tenant_id, "limit": limit} | _bounds(filters, before)
    given |= {name: value for name, value in filters.items() if name not in ("since", "until")}
    start = "l.tenant_id = :tenant_id AND l.id < :before AND l.id >= :since"
    start += _conditions(
        filters, {"request_id": "l.request_id = :request_id", "endpoint_id": "l.endpoint_id = :endpoint_id"}
    )
    rest = _conditions(
        filters,
        {
            "event_type": "l.event_type = :event_type",
            "failure_class": "l.failure_class = :failure_class",
            "http_status": "l.last_http_status = :http_status",
        },
    )
    if filters.get("status") == "open":
        start += " AND l.status = 'open'"  # as the index says it
    else:
        rest += _conditions(filters, {"status": "l.status = :status"})
    scanned = f"SELECT l.* FROM dead_letters l WHERE {start} ORDER BY l.id DESC"  # noqa: S608 - made of constants
    if not rest:
        return await _page(connection, f"SELECT {_DEAD_LETTER} FROM ({scanned} LIMIT :limit + 1) l", given, limit)  # noqa: S608
    source = f"""
        SELECT {_DEAD_LETTER} FROM ({scanned} LIMIT :scan) l WHERE true {rest} ORDER BY l.id DESC LIMIT :limit + 1
    """  # noqa: S608 - made of constants
    return await _page(connection, source, given | {"scan": SCAN_MAX}, limit, scanned)


async def page_of_endpoints(
    connection: AsyncConnection, *, tenant_id: str, status: str | None, before: UUID | None, limit: int
) -> Page:
    """A tenant's endpoints, without secrets."""
    conditions = "" if status is None else "AND status = :status"
    given: dict[str, Any] = {"tenant_id": tenant_id, "limit": limit, "before": before or _LAST_ID}
    if status is not None:
        given["status"] = status
    return await _page(connection, _ENDPOINTS.format(conditions=conditions), given, limit)


async def delivery_with_attempts(
    connection: AsyncConnection, *, tenant_id: str, delivery_id: UUID
) -> dict[str, Any] | None:
    """One delivery with its attempts, oldest first; None when the tenant has none with this id."""
    where = {"tenant_id": tenant_id, "id": delivery_id}
    row = (await connection.execute(_DELIVERY, where)).one_or_none()
    if row is None:
        return None
    attempts = await connection.execute(_ATTEMPTS, where)
    return dict(row._mapping) | {"timeline": [dict(a._mapping) for a in attempts]}


def _with_events(source: str) -> str:
    return f"SELECT {_SHOWN} FROM ({source}) d {_EVENT} ORDER BY d.id DESC"  # noqa: S608 - made of constants


def _conditions(filters: dict[str, Any], known: dict[str, str]) -> str:
    return "".join(f" AND {condition}" for name, condition in known.items() if name in filters)


def _bounds(filters: dict[str, Any], before: UUID | None) -> dict[str, UUID]:
    """The range of ids that a range of time is: ids begin with the time at which they were made."""
    until = filters.get("until")
    upper = [before or _LAST_ID, *([] if until is None else [_first_id_at(until)])]
    since = filters.get("since")
    return {"before": min(upper), "since": _FIRST_ID if since is None else _first_id_at(since)}


def _first_id_at(moment: datetime) -> UUID:
    ms = min(max(int(moment.timestamp() * 1000), 0), _NEWEST_WEEK_MS)
    return UUID(int=ms << 80 | 0x7000 << 64 | 0x8000 << 48) if ms else _FIRST_ID


async def _page(
    connection: AsyncConnection, sql: str, given: dict[str, Any], limit: int, scanned: str | None = None
) -> Page:
    rows = [dict(row._mapping) for row in await connection.execute(text(sql), given)]
    if len(rows) > limit:
        return Page(rows[:limit], rows[limit - 1]["id"])
    if scanned is None:
        return Page(rows, None)
    # Where the scan ended. It reads a later snapshot, which may hold more rows: never go back behind what was shown.
    end = text(f"SELECT id FROM ({scanned} LIMIT 1 OFFSET :scan - 1) AS last")  # noqa: S608 - made of constants
    ended = (await connection.execute(end, given)).scalar_one_or_none()
    if ended is None:
        return Page(rows, None)
    return Page(rows, min([ended, *(row["id"] for row in rows)]))
