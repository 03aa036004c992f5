"""Partitions of weeks long ago, and rows in them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import dict_row

PARENTS = ("events", "deliveries", "delivery_attempts")

_OVER = ("delivered", "dead_lettered")


class OldWeeks:
    """Makes weeks and fills them, by SQL, as the pipeline would have left them."""

    def __init__(self, database_url: str) -> None:
        self.database_url = database_url

    def sql(self, statement: str, **values: Any) -> list[dict[str, Any]]:
        with psycopg.connect(self.database_url, row_factory=dict_row) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def make(self, weeks_ago: int) -> str:
        """The partitions of the week so many weeks before this one; its Monday, as `YYYYMMDD`."""
        (row,) = self.sql(
            """
            SELECT to_char(monday AT TIME ZONE 'UTC', 'YYYYMMDD') AS name, homing_uuid7_floor(monday)::text AS low,
                   homing_uuid7_floor(monday + interval '7 days')::text AS high
            FROM (SELECT (date_trunc('week', now() AT TIME ZONE 'UTC') - %(n)s * interval '7 days') AT TIME ZONE 'UTC' AS monday)
                 AS week
            """,
            n=weeks_ago,
        )
        for parent in PARENTS:
            child = f"{parent}_{row['name']}"
            self.sql(
                f"CREATE TABLE {child} PARTITION OF {parent} FOR VALUES FROM ('{row['low']}') TO ('{row['high']}')"
            )
        return str(row["name"])

    def id_in(self, weeks_ago: int) -> UUID:
        """A new id of the middle of that week."""
        (row,) = self.sql(
            """
            SELECT overlay(homing_uuid7()::text PLACING left(homing_uuid7_floor(
                (date_trunc('week', now() AT TIME ZONE 'UTC') - %(n)s * interval '7 days' + interval '3 days')
                AT TIME ZONE 'UTC')::text, 13) FROM 1 FOR 13)::uuid AS id
            """,
            n=weeks_ago,
        )
        return UUID(str(row["id"]))

    def fill(self, weeks_ago: int, count: int = 3) -> None:
        """So many delivered ones."""
        for _ in range(count):
            self.delivery(weeks_ago, "delivered")

    def delivery(
        self,
        weeks_ago: int,
        state: str,
        *,
        event_weeks_ago: int | None = None,
        request_id: str = "old",
        endpoint: Any = None,
    ) -> UUID:
        """A delivery in a state with its event and one attempt; a dead-lettered one has its letter."""
        event = self.id_in(weeks_ago if event_weeks_ago is None else event_weeks_ago)
        delivery = self.id_in(weeks_ago)
        values: dict[str, Any] = {"event": event, "id": delivery, "state": state, "request_id": request_id}
        values["endpoint"] = endpoint or self.endpoint()
        self.sql(
            """
            INSERT INTO events (id, tenant_id, event_type, body, request_id, created_at)
            VALUES (%(event)s, 'default', 'invoice.paid', '{"a": 1}', %(request_id)s, now())
            """,
            **values,
        )
        self.sql(
            """
            INSERT INTO deliveries (id, tenant_id, event_id, endpoint_id, state, due_at, generation, attempts, last_attempt_at,
                                    delivered_at, failed_at, replays, lease_owner)
            VALUES (%(id)s, 'default', %(event)s, %(endpoint)s, %(state)s,
                    CASE WHEN %(state)s NOT IN ('delivered', 'dead_lettered') THEN 'infinity'::timestamptz END, 1,
                    CASE WHEN %(state)s IN ('pending', 'replayed') THEN 0 ELSE 1 END, now(),
                    CASE WHEN %(state)s = 'delivered' THEN now() END,
                    CASE WHEN %(state)s IN ('failed', 'dead_lettered') THEN now() END,
                    CASE WHEN %(state)s = 'replayed' THEN 1 ELSE 0 END,
                    CASE WHEN %(state)s = 'delivering' THEN 'x' END)
            """,
            **values,
        )
        self.sql(
            """
            INSERT INTO delivery_attempts (delivery_id, generation, tenant_id, number, started_at, outcome, retryable)
            VALUES (%(id)s, 1, 'default', 1, now(), 'definite', false)
            """,
            **values,
        )
        if state == "dead_lettered":
            self.letter(delivery, event, "open", values["endpoint"], request_id)
        return delivery

    def letter(self, delivery: UUID, event: UUID, status: str, endpoint: Any, request_id: str = "old") -> None:
        self.sql(
            """
            INSERT INTO dead_letters (delivery_id, generation, tenant_id, endpoint_id, event_id, event_type, request_id, payload,
                                      failure_class, attempts, status)
            VALUES (%(delivery)s, 1, 'default', %(endpoint)s, %(event)s, 'invoice.paid', %(request_id)s, '{"a": 1}', 'http_status',
                    1, %(status)s)
            """,
            delivery=delivery,
            event=event,
            status=status,
            endpoint=endpoint,
            request_id=request_id,
        )

    def endpoint(self) -> Any:
        found = self.sql("SELECT id FROM endpoints LIMIT 1")
        if not found:
            found = self.sql(
                "INSERT INTO endpoints (tenant_id, url) VALUES ('default', 'http://127.0.0.1:1/') RETURNING id"
            )
        return found[0]["id"]

    def partitions(self) -> set[str]:
        """The weeks that have a partition, by the dates in their names."""
        found = self.sql(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname ~ '^(events|deliver[a-z_]+)_[0-9]{8}$'"
        )
        return {row["relname"].rpartition("_")[2] for row in found}
