"""The two small actors: file what ran out as dead letters, and carry out replays."""

from __future__ import annotations

import structlog

from app import failpoints
from app.dead_letters import file_if_failed
from app.replay_batches import carry_out_if_requested
from workers.messages import MessageRefused, parse_tickets
from workers.runtime import Runtime

log = structlog.get_logger(__name__)


async def dead_letter(runtime: Runtime, ids: object, generations: object) -> None:
    """File failed deliveries. Stale tickets are counted and change nothing.

    Raises:
        sqlalchemy.exc.DBAPIError: Postgres is away; nothing was filed, and the lease brings the deliveries back.
    """
    try:
        tickets = parse_tickets(ids, generations)
    except MessageRefused as refusal:
        _refuse(runtime, refusal)
        return
    async with runtime.engine.begin() as connection:
        filed = await file_if_failed(connection, tickets)
        failpoints.reach("file.before_commit")
    failpoints.reach("file.committed")
    runtime.metrics.dead_letters.inc(filed)
    runtime.metrics.stale.labels("ticket").inc(len(tickets) - filed)
    log.info("dead_letters.filed", filed=filed)


async def replay(runtime: Runtime, ids: object, generations: object) -> None:
    """Carry out the replays that people have asked for, each in a transaction of its own."""
    try:
        tickets = parse_tickets(ids, generations)
    except MessageRefused as refusal:
        _refuse(runtime, refusal)
        return
    for replay_id, generation in tickets:
        async with runtime.engine.begin() as connection:
            replayed = await carry_out_if_requested(connection, replay_id, generation)
            failpoints.reach("replay.before_commit")
        failpoints.reach("replay.committed")
        if replayed is None:
            runtime.metrics.stale.labels("ticket").inc()
        else:
            runtime.metrics.replayed.inc(replayed)
            log.info("replay.carried_out", replay_id=str(replay_id), deliveries=replayed)


def _refuse(runtime: Runtime, refusal: MessageRefused) -> None:
    runtime.metrics.messages_rejected.labels("forged").inc()
    log.warning("message.refused", why=str(refusal))
