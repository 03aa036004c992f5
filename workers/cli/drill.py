"""`homing dead-letters drill`: proves on sample dead letters that the guard refuses and that the confirmed replay works.

Nothing is sent anywhere: the samples belong to a paused endpoint of a tenant of their own, and the drill itself takes the
worker's part, with the worker's own statements. Pollers and workers may run meanwhile; whoever comes first is fenced as ever.
"""

from __future__ import annotations

import secrets
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from workers.cli.access import Access, open_access
from workers.cli.matrix import Result, Step, access_of, exit_code, parse_targets, run_on, write_report
from workers.cli.options import Json
from workers.cli.output import give, say

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

TENANT = "homing-drill"
CONCURRENCY = 20
#: Rounds of sending again and delivering; each takes at most 20 samples.
ROUNDS_MAX = 500


def drill(
    count: Annotated[int, typer.Option("--count", min=1, max=5000, help="Sample dead letters.")] = 60,
    matrix: Annotated[
        list[str] | None,
        typer.Option(
            "--matrix", metavar="NAME=DATABASE_URL", help="A target; repeat it. NAME=@VARIABLE reads the URL."
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", metavar="FILE.md", help="Write a Markdown report.")] = None,
    as_json: Json = False,
) -> None:
    """Prove that the replay guard refuses and that a confirmed replay works; leaves nothing behind but audit rows.

    Exit code 0: proven on every target. 6: on some. 1: on none.
    """
    if matrix:
        results = [
            run_on(target.name, partial(lambda t: run_drill(access_of(t), count), target))
            for target in parse_targets(matrix)
        ]
    else:
        with open_access() as access:
            results = [run_on("this installation", lambda: run_drill(access, count))]
    finish("Replay drill", results, report, as_json=as_json)


def finish(title: str, results: list[Result], report: Path | None, *, as_json: bool) -> None:
    """Print and write what the trials came to; ends the command with their exit code."""
    if report is not None:
        write_report(report, title, results)
        say(f"report: {report}")
    if as_json:
        give([asdict(result) | {"ok": result.ok} for result in results], as_json=True)
    else:
        lines = [
            {"target": result.target, "": "ok" if step.ok else "FAIL", "step": step.name, "found": step.found}
            for result in results
            for step in result.steps
        ]
        give(lines, as_json=False)
        for result in results:
            say(f"{title} on {result.target}: {'good' if result.ok else 'FAILED'} in {result.seconds:g} s")
    if code := exit_code(results):
        raise typer.Exit(code)


def run_drill(access: Access, count: int) -> list[Step]:
    """The whole drill on one installation: one step per proof; what was made is taken away, whatever happens."""

    async def run(engine: AsyncEngine) -> list[Step]:
        from workers.cli.leftovers import take_away

        one = _Drill(engine, count)
        try:
            await one.run()
        finally:
            if one.endpoint_id is not None:
                async with engine.begin() as connection:
                    await take_away(connection, TENANT, one.endpoint_id, one.event_type)
        async with engine.connect() as connection:
            left = await _count(connection, "deliveries WHERE endpoint_id = :id", one.endpoint_id)
            left += await _count(connection, "dead_letters WHERE endpoint_id = :id", one.endpoint_id)
        one.note("everything is taken away", left == 0, f"{left} rows left")
        return one.steps

    return access.with_engine(run)


@dataclass
class _Drill:
    engine: AsyncEngine
    count: int

    def __post_init__(self) -> None:
        self.event_type = f"homing.drill.{secrets.token_hex(4)}"
        self.endpoint_id: UUID | None = None
        self.steps: list[Step] = []

    def note(self, name: str, ok: bool, found: str) -> None:
        self.steps.append(Step(name, ok, found))

    async def run(self) -> None:
        from app.bulk_replay import replay_progress
        from app.dead_letters import remove_if_resolved

        await self._make_samples()
        await self._guard_refuses()
        replay_id = await self._confirmed_replay_is_taken()
        if replay_id is None:
            return
        await self._rows_come_back(replay_id)
        async with self.engine.connect() as connection:
            progress = await replay_progress(connection, TENANT, replay_id)
        ok = (progress.state, progress.resolved) == ("done", self.count)
        self.note("every sample is resolved by its delivery", ok, f"{progress.resolved} of {self.count} resolved")
        async with self.engine.begin() as connection:
            while await remove_if_resolved(connection):
                pass
            left = await _count(connection, "dead_letters WHERE endpoint_id = :id", self.endpoint_id)
        self.note("the records are gone (--delete-after)", left == 0, f"{left} left")
        await self._audit_is_whole()

    async def _make_samples(self) -> None:
        from sqlalchemy import text

        from app.dead_letters import file_if_failed
        from workers.cli.leftovers import ensure_tenant

        async with self.engine.begin() as connection:
            await ensure_tenant(connection, TENANT, "Replay drills; only their audit trail stays")
            self.endpoint_id = UUID(str((await connection.execute(text(_ENDPOINT), {"tenant": TENANT})).scalar_one()))
            values = {"tenant": TENANT, "type": self.event_type, "endpoint": self.endpoint_id, "count": self.count}
            made = (await connection.execute(text(_SAMPLES), values)).all()
            filed = await file_if_failed(connection, [(row.id, row.generation) for row in made])
        self.note("sample dead letters are filed", filed == self.count, f"{filed} filed")

    async def _guard_refuses(self) -> None:
        from app.errors import Conflict

        before = await self._standing()
        try:
            await self._ask(confirmed=False)
        except Conflict as refusal:
            said = str(refusal)
            numbers = (str(self.count), str(CONCURRENCY), "threshold", "--confirm-large")
            self.note("the guard refuses", all(part in said for part in numbers), said)
        else:
            self.note("the guard refuses", False, "it let the replay through")
        same = await self._standing() == before
        self.note("the refusal changes nothing", same, "as before" if same else "rows have changed")

    async def _confirmed_replay_is_taken(self) -> UUID | None:
        from app.errors import Conflict

        try:
            asked = await self._ask(confirmed=True)
        except Conflict as refusal:
            self.note("the confirmed replay is taken", False, str(refusal))
            return None
        self.note("the confirmed replay is taken", asked.items == self.count, f"{asked.items} items")
        return UUID(str(asked.replay_id))

    async def _ask(self, *, confirmed: bool) -> Any:
        """As the command does it, at high concurrency, with every sample match a large one."""
        from app.selection import Selector
        from workers.cli.bulk_replay import Limits, ask, check, look

        limits = Limits(
            concurrency=CONCURRENCY,
            allow_high=True,
            confirmed_large=confirmed,
            threshold=min(50, self.count),
            rate_per_s=1000,
        )
        selector = Selector(event_type=self.event_type)
        async with self.engine.begin() as connection:
            seen = await look(connection, TENANT, selector, limits)
            check(seen.count, limits)
            return await ask(
                connection, TENANT, selector, limits, reason="drill", expected_count=seen.count, delete_after=True
            )

    async def _rows_come_back(self, replay_id: UUID) -> None:
        """Batch by batch: sent again, looked at, delivered."""
        fresh = delivered = 0
        for _ in range(ROUNDS_MAX):
            if delivered >= self.count:
                break
            await self._carry_out(replay_id)
            seen, done = await self._look_and_deliver()
            fresh += seen
            delivered += done
        self.note(
            "rows are due again, counters zero",
            fresh == self.count,
            f"{fresh} of {self.count} are replayed, attempts 0, no error streak",
        )

    async def _carry_out(self, replay_id: UUID) -> None:
        from sqlalchemy import text

        from app.replay_batches import carry_out_if_requested

        async with self.engine.begin() as connection:
            found = await connection.execute(text("SELECT generation FROM replays WHERE id = :id"), {"id": replay_id})
            await carry_out_if_requested(connection, replay_id, found.scalar_one())

    async def _look_and_deliver(self) -> tuple[int, int]:
        """In one transaction, in which alone the endpoint is active: nobody else can start these."""
        from sqlalchemy import text

        from app.attempts import Settled, record_if_delivering, start_if_published

        async with self.engine.begin() as connection:
            await connection.execute(text(_SET_STATUS), {"id": self.endpoint_id, "status": "active"})
            rows = (await connection.execute(text(_REPLAYED), {"id": self.endpoint_id})).all()
            fresh = sum(row.fresh for row in rows)
            leased = await connection.execute(text(_LEASE_REPLAYED), {"id": self.endpoint_id})
            tickets = [(row.id, row.generation) for row in leased]
            written: set[tuple[UUID, int]] = set()
            if tickets:
                await start_if_published(connection, tickets, worker="drill", lease_s=20)
                results = [
                    Settled(i, g, "delivered", 0.0, "delivered", None, False, 200, None, "drill", 0) for i, g in tickets
                ]
                written = await record_if_delivering(connection, results, worker="drill")
            await connection.execute(text(_SET_STATUS), {"id": self.endpoint_id, "status": "paused"})
        return fresh, len(written)

    async def _audit_is_whole(self) -> None:
        from app.audit import chain_audit, verify_audit

        async with self.engine.begin() as connection:
            while await chain_audit(connection):
                pass
        async with self.engine.connect() as connection:
            await connection.execution_options(isolation_level="REPEATABLE READ")
            found = await verify_audit(connection, TENANT)
        self.note("the audit trail is whole", found.ok, "; ".join(found.problems) or f"{found.rows} rows")

    async def _standing(self) -> tuple[int, int]:
        async with self.engine.connect() as connection:
            return (
                await _count(connection, "dead_letters WHERE endpoint_id = :id AND status = 'open'", self.endpoint_id),
                await _count(
                    connection,
                    "replay_items WHERE delivery_id IN (SELECT id FROM deliveries WHERE endpoint_id = :id)",
                    self.endpoint_id,
                ),
            )


_ENDPOINT = """
    INSERT INTO endpoints (tenant_id, name, url, event_types, status, status_reason)
    VALUES (:tenant, 'drill', 'https://drill.invalid/', '{homing.drill.*}', 'paused', 'a drill sends nothing') RETURNING id
"""
_SAMPLES = """
    WITH e AS (
        INSERT INTO events (id, tenant_id, event_type, body, request_id, created_at)
        SELECT homing_uuid7(), :tenant, CAST(:type AS text), '{"drill": true}', CAST(:type AS text) || '-' || n, now()
        FROM generate_series(1, CAST(:count AS integer)) AS n
        RETURNING id
    )
    INSERT INTO deliveries (tenant_id, event_id, endpoint_id, state, due_at, generation, attempts, last_attempt_at,
                            last_outcome, last_class, last_status, last_error, failed_at)
    SELECT :tenant, e.id, :endpoint, 'failed', 'infinity', 1, 5, now(), 'transient', 'http_status', 503,
           'a sample of the drill', now()
    FROM e
    RETURNING id, generation
"""
#: What the poller's claim does, for the drill's own rows only.
_LEASE_REPLAYED = """
    UPDATE deliveries SET generation = generation + 1, lease_owner = 'drill', due_at = now() + interval '20 seconds'
    WHERE endpoint_id = :id AND state = 'replayed'
    RETURNING id, generation
"""
_REPLAYED = """
    SELECT id, generation, attempts = 0 AND unknown_streak = 0 AND failed_at IS NULL AND due_at IS NOT NULL AS fresh
    FROM deliveries WHERE endpoint_id = :id AND state = 'replayed' ORDER BY id FOR UPDATE
"""
_SET_STATUS = "UPDATE endpoints SET status = :status, version = version + 1 WHERE id = :id"


async def _count(connection: AsyncConnection, what: str, endpoint_id: UUID | None) -> int:
    """Rows of what this module names."""
    from sqlalchemy import text

    found = await connection.execute(text(f"SELECT count(*) FROM {what}"), {"id": endpoint_id})  # noqa: S608
    return int(found.scalar_one())
