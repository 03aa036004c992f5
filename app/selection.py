"""Which dead letters a person means: a selector, what it matches now, and the one SQL condition that both rest on.

A selector looks at open dead letters only: what was replayed already, or delivered since, is never matched again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AliasChoices, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.errors import InvalidInput
from app.subscription import PATTERN

#: Open dead letters that one selection looks at, at most.
MAX_SCAN = 100_000
#: Seconds that one round of a bulk replay takes (sent again, delivered, next batch): what an estimate rests on.
ROUND_S = 0.25

Text = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00]+$")]


class Selector(BaseModel):
    """Conditions on open dead letters; all that are given must hold, and at least one must be given.

    `source` is the part of the event type before its first dot, which by convention names what produced the event
    (`invoice` of `invoice.paid`): an outbox row carries no other mark of its producer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    request_id: Text | None = None
    """The producer's correlation id."""
    event_id: UUID | None = None
    delivery_id: UUID | None = None
    run_id: Text | None = Field(default=None, validation_alias=AliasChoices("run_id", "job"))
    """The run (also taken under the name `job`)."""
    endpoint_id: UUID | None = None
    event_type: Text | None = None
    """An exact type, or `prefix.*` for every type below the prefix."""
    failure_class: Text | None = None
    """Such as `http_status` or `timeout`; see `app.outcome.FailureClass`."""
    http_status: Annotated[int, Field(ge=100, le=999)] | None = None
    """The last attempt's status."""
    source: Text | None = None
    """First segment of the event type."""
    look_back_minutes: Annotated[int, Field(ge=1, le=5_256_000)] | None = None
    """Filed within these minutes, by the database's clock at the time of asking."""
    after: AwareDatetime | None = None
    """Filed at this moment or later."""
    before: AwareDatetime | None = None
    """Filed before this moment."""

    @model_validator(mode="after")
    def _selects_something(self) -> Selector:
        if not self.given():
            raise ValueError("give at least one condition; everything at once is never meant")
        if self.event_type is not None and (self.event_type == "*" or not PATTERN.fullmatch(self.event_type)):
            raise ValueError("event_type: give an exact type or 'prefix.*'")
        if self.after is not None and self.before is not None and self.after >= self.before:
            raise ValueError("after: must be earlier than before")
        return self

    def given(self) -> dict[str, Any]:
        """The conditions that were given, as JSON values: what is stored, audited and digested."""
        return self.model_dump(mode="json", exclude_none=True)


def make_selector(**conditions: Any) -> Selector:
    """A selector of what is not None, for callers that want Homing's own error.

    Raises:
        InvalidInput: a condition is unknown or malformed, or none is given.
    """
    try:
        return Selector(**{name: value for name, value in conditions.items() if value is not None})
    except ValidationError as error:
        lines = (
            ".".join(map(str, problem["loc"])) + ": " + problem["msg"].removeprefix("Value error, ")
            for problem in error.errors(include_url=False, include_input=False)
        )
        raise InvalidInput("; ".join(line.removeprefix(": ") for line in lines)) from None


@dataclass(frozen=True, slots=True)
class Preview:
    """What a selector matches at this moment; nothing was written."""

    count: int
    """Open dead letters that match, as far as was looked."""
    endpoints: list[tuple[UUID, int]]
    """How many of each endpoint, most first."""
    oldest: datetime | None
    """When the first of them was filed; None when nothing matches."""
    newest: datetime | None
    estimated_s: float
    """Seconds until all are sent again at the given rate and concurrency."""
    truncated: bool
    """True when more than `max_scan` letters had to be looked at: the oldest were, and `count` is of those."""
    digest: str
    """SHA-256, in hexadecimal, over the ids of the matching deliveries: the same set has the same digest."""


# Conditions that an index answers come first and are bounded by the scan; the others filter what was scanned. Ids follow the
# time of filing, so a window starts from the index too.
KEYS = {
    "request_id": "l.request_id = :request_id",
    "event_id": "l.event_id = CAST(:event_id AS uuid)",
    "delivery_id": "l.delivery_id = CAST(:delivery_id AS uuid)",
    "run_id": "l.run_id = :run_id",
    "endpoint_id": "l.endpoint_id = CAST(:endpoint_id AS uuid)",
    "after": "l.id >= homing_uuid7_floor(CAST(:after AS timestamptz)) AND l.created_at >= CAST(:after AS timestamptz)",
    "look_back_minutes": "l.id >= homing_uuid7_floor(now() - :look_back_minutes * interval '1 minute') "
    "AND l.created_at >= now() - :look_back_minutes * interval '1 minute'",
}
FILTERS = {
    "before": "l.created_at < CAST(:before AS timestamptz)",
    "failure_class": "l.failure_class = :failure_class",
    "http_status": "l.last_http_status = :http_status",
    "source": "split_part(l.event_type, '.', 1) = :source",
}


def matching(selector: Selector | None) -> tuple[str, dict[str, Any]]:
    """Two CTEs, `scanned` and `matched`, of the open dead letters that match; and their parameters.

    The SQL is made of constants of this module; values go as parameters. The caller adds `tenant_id` and `max_scan`;
    at most `max_scan + 1` letters are looked at, oldest first, so that the caller sees when there were more.
    """
    given = {} if selector is None else selector.model_dump(exclude_none=True)
    keys = [KEYS[name] for name in given if name in KEYS]
    filters = [FILTERS[name] for name in given if name in FILTERS]
    if "event_type" in given:
        prefix = str(given["event_type"])
        if prefix.endswith(".*"):
            given["event_type"] = prefix[:-1]
            filters.append("starts_with(l.event_type, :event_type)")
        else:
            filters.append("l.event_type = :event_type")
    sql = f"""
        scanned AS MATERIALIZED (
            SELECT l.id, l.delivery_id, l.endpoint_id, l.event_type, l.request_id, l.failure_class, l.failure_detail,
                   l.last_http_status, l.created_at
            FROM dead_letters l
            WHERE l.tenant_id = :tenant_id AND l.status = 'open'{"".join(" AND " + key for key in keys)}
            ORDER BY l.id
            LIMIT :max_scan + 1
        ), matched AS (
            SELECT l.* FROM (SELECT * FROM scanned ORDER BY id LIMIT :max_scan) AS l
            WHERE {" AND ".join(filters) or "true"}
        )
    """  # noqa: S608 - made of the constants above
    return sql, given


async def preview(
    connection: AsyncConnection,
    tenant_id: str,
    selector: Selector,
    *,
    max_scan: int = MAX_SCAN,
    rate_per_s: float = 100.0,
    concurrency: int = 10,
) -> Preview:
    """What would be sent again: counts, ages and a digest of the set. Reads only.

    Args:
        connection: to read with.
        tenant_id: whose dead letters.
        selector: which of them.
        max_scan: letters to look at, 1 to 1,000,000.
        rate_per_s: pace that the estimate assumes.
        concurrency: items under way at once that the estimate assumes.

    Raises:
        InvalidInput: `max_scan` is out of range.
    """
    check_max_scan(max_scan)
    ctes, given = matching(selector)
    counted = text(
        f"""
        WITH {ctes}, by_endpoint AS (
            SELECT endpoint_id, count(*) AS n FROM matched GROUP BY endpoint_id
        )
        SELECT (SELECT count(*) FROM matched) AS n, (SELECT min(created_at) FROM matched) AS oldest,
               (SELECT max(created_at) FROM matched) AS newest,
               (SELECT count(*) FROM scanned) > :max_scan AS truncated,
               coalesce((SELECT jsonb_agg(jsonb_build_array(endpoint_id, n) ORDER BY n DESC, endpoint_id)
                         FROM by_endpoint), '[]') AS endpoints,
               encode(sha256(convert_to(coalesce((SELECT string_agg(delivery_id::text, ',' ORDER BY delivery_id)
                                                  FROM matched), ''), 'UTF8')), 'hex') AS digest
        """  # noqa: S608 - made of constants
    )
    row = (await connection.execute(counted, given | {"tenant_id": tenant_id, "max_scan": max_scan})).one()
    return Preview(
        count=row.n,
        endpoints=[(UUID(endpoint_id), n) for endpoint_id, n in row.endpoints],
        oldest=row.oldest,
        newest=row.newest,
        estimated_s=estimate_s(row.n, rate_per_s, concurrency),
        truncated=row.truncated,
        digest=row.digest,
    )


def estimate_s(count: int, rate_per_s: float, concurrency: int) -> float:
    """Seconds until so many are sent again: by the rate, or by the rounds that the concurrency takes."""
    return round(max(count / rate_per_s, count / concurrency * ROUND_S), 1)


def check_max_scan(max_scan: int) -> None:
    """Raise InvalidInput unless it is from 1 to 1,000,000."""
    if not 1 <= max_scan <= 1_000_000:
        raise InvalidInput(f"max_scan: {max_scan} is not from 1 to 1000000")
