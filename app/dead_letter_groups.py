"""Dead letters grouped by cause: two thousand failures are mostly three errors."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import InvalidInput
from app.selection import MAX_SCAN, Selector, matching

#: Ids shown of each group.
SAMPLES = 3

# What differs from one failure to the next of the same cause: ids, numbers, and what stands in quotes.
_GROUP = """
    WITH {ctes}, described AS (
        SELECT m.*, CASE WHEN last_http_status IS NULL THEN
                   left(regexp_replace(regexp_replace(regexp_replace(coalesce(failure_detail, ''),
                        '[0-9a-fA-F]{{8}}-[0-9a-fA-F-]{{27}}', '#', 'g'),
                        '''[^'']*''|"[^"]*"', '"…"', 'g'), '[0-9]+', '#', 'g'), 200) END AS detail
        FROM matched m
    )
    SELECT endpoint_id, failure_class, last_http_status AS http_status, detail, count(*) AS count,
           min(created_at) AS first_seen, max(created_at) AS last_seen,
           (array_agg(id ORDER BY id DESC))[1:{samples}] AS samples
    FROM described
    GROUP BY endpoint_id, failure_class, last_http_status, detail
    ORDER BY count(*) DESC, endpoint_id, failure_class, last_http_status, detail
    LIMIT :limit
"""


@dataclass(frozen=True, slots=True)
class Group:
    """Open dead letters of one endpoint with one cause."""

    endpoint_id: UUID
    failure_class: str
    http_status: int | None
    detail: str | None
    """The error's text without ids, numbers and quotations; None where there is a status, which says it all."""
    count: int
    first_seen: datetime
    last_seen: datetime
    samples: list[UUID]
    """Ids of at most 3 dead letters, newest first."""


async def groups(
    connection: AsyncConnection,
    tenant_id: str,
    selector: Selector | None = None,
    limit: int = 50,
    *,
    max_scan: int = MAX_SCAN,
) -> list[Group]:
    """A tenant's open dead letters by endpoint, failure class and status (or normalised error), largest group first.

    Args:
        connection: to read with.
        tenant_id: whose dead letters.
        selector: only those that match; all when None.
        limit: groups, 1 to 1000.
        max_scan: letters to look at, oldest first.

    Raises:
        InvalidInput: the limit is out of range.
    """
    if not 1 <= limit <= 1000:
        raise InvalidInput(f"limit: {limit} is not from 1 to 1000")
    ctes, given = matching(selector)
    statement = text(_GROUP.format(ctes=ctes, samples=SAMPLES))
    rows = await connection.execute(statement, given | {"tenant_id": tenant_id, "max_scan": max_scan, "limit": limit})
    return [Group(**row._mapping) for row in rows]
