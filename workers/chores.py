"""What every poller does beside its cycles: makes partitions ahead, chains the audit trail, keeps the gauges true.

Safe in any number of pollers at once; a chore that fails is logged, and stops neither the others nor the poller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from time import monotonic
from typing import Any

import structlog
from sqlalchemy.ext.asyncio import AsyncEngine

from app.audit import CHAIN_BATCH, CHAIN_EVERY_S, chain_audit, recent_heads
from app.db import committing
from app.dead_letters import remove_if_resolved
from app.partitions import ensure_partitions
from app.reads import backlog
from workers.metrics import PollerMetrics

log = structlog.get_logger(__name__)

#: Seconds between two looks at the backlog for the gauges.
GAUGES_EVERY_S = 5.0
#: Seconds between two calls that make partitions ahead.
PARTITIONS_EVERY_S = 3600.0
#: Seconds between two lines in the log with the heads of the audit chains: where a rewritten chain shows.
HEADS_EVERY_S = 600.0


class Chores:
    """One poller's; `run` until cancelled."""

    def __init__(self, engine: AsyncEngine, metrics: PollerMetrics) -> None:
        self.metrics = metrics
        self._engine = engine
        self._looking = committing(engine)

    async def run(self) -> None:
        """Make partitions ahead, chain the audit trail, and keep the gauges true, beside the cycles."""
        partitions_at = heads_at = 0.0
        while True:
            if monotonic() >= partitions_at and await self._chore_done(self._make_partitions()):
                partitions_at = monotonic() + PARTITIONS_EVERY_S
            await self._chore_done(self._remove_resolved_letters())
            await self._chore_done(self._chain_audit())
            if monotonic() >= heads_at and await self._chore_done(self._log_heads()):
                heads_at = monotonic() + HEADS_EVERY_S
            await self._chore_done(self._set_gauges())
            await asyncio.sleep(min(GAUGES_EVERY_S, CHAIN_EVERY_S))

    async def _chore_done(self, chore: Coroutine[Any, Any, None]) -> bool:
        """One chore; its failure is logged and stops neither the other nor the poller."""
        try:
            await chore
        except Exception as error:
            log.warning("poller.chore_failed", error=f"{type(error).__name__}: {error}"[:300])
            return False
        return True

    async def _make_partitions(self) -> None:
        await ensure_partitions(self._engine)

    async def _chain_audit(self) -> None:
        while True:
            async with self._engine.begin() as connection:
                chained = await chain_audit(connection)
            if chained < CHAIN_BATCH:
                return

    async def _log_heads(self) -> None:
        async with self._looking.connect() as connection:
            for head in await recent_heads(connection, age_s=HEADS_EVERY_S * 2):
                log.info("audit.head", tenant_id=head.tenant_id, seq=head.seq, hash=head.hash)

    async def _remove_resolved_letters(self) -> None:
        async with self._engine.begin() as connection:
            removed = await remove_if_resolved(connection)
        if removed:
            log.info("dead_letters.removed", removed=removed)

    async def _set_gauges(self) -> None:
        async with self._looking.connect() as connection:
            seen = await backlog(connection)
        self.metrics.outbox_waiting.set(seen.outbox_waiting)
        self.metrics.outbox_age.set(seen.outbox_oldest_s)
        self.metrics.rejected_waiting.set(seen.set_aside)
        self.metrics.due.set(seen.due)
        self.metrics.oldest_due_age.set(seen.due_oldest_s)
        self.metrics.dead_letters_open.set(seen.dead_letters_open)
