"""The deliver actor: start the attempts of a chunk, make them all at once, record what was delivered, raise what failed.

start (one guarded statement, committed) -> sign -> POST (no connection held) -> record (group commit). Failures are
raised together, with all that is known of them, and settled by the retries middleware.
"""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from time import monotonic
from uuid import UUID

import structlog
from sqlalchemy.exc import SQLAlchemyError

from app import failpoints
from app.attempts import Started, Ticket, park_if_endpoint_not_active, start_if_published
from app.delivery_headers import build_headers
from app.endpoints import LoadedEndpoint
from app.outcome import AttemptResult, FailureClass, Outcome
from app.redaction import safe_url
from app.signing import sign
from app.verdict import settle
from workers.messages import MessageRefused, parse_tickets
from workers.retries import AttemptsFailed, FailedAttempt
from workers.runtime import Runtime

log = structlog.get_logger(__name__)

#: Seconds, about, until a delivery is tried again whose endpoint or its secret cannot be read: an operator has to act.
UNREADABLE_PAUSE_S = 120.0
#: By id; None where this worker cannot read it, or its secret.
Endpoints = dict[UUID, LoadedEndpoint | None]


async def deliver(runtime: Runtime, ids: object, generations: object) -> None:
    """Make one attempt of each delivery in a chunk.

    Args:
        runtime: this process's connections and counters.
        ids: 1 to 50 delivery ids, from the message.
        generations: the generation that each was published with.

    Raises:
        AttemptsFailed: some attempts were not delivered; the others are recorded. To be settled by the middleware.
        sqlalchemy.exc.DBAPIError: Postgres is away. What was started ends by its lease.
    """
    try:
        tickets = parse_tickets(ids, generations)
    except MessageRefused as refusal:
        runtime.metrics.messages_rejected.labels("forged").inc()
        log.warning("message.refused", why=str(refusal))
        return
    failpoints.reach("deliver.received")
    began = monotonic()
    started, endpoints = await _start(runtime, tickets)
    tasks = [asyncio.create_task(_attempt(runtime, s, endpoints, began)) for s in started]
    if len(started) < len(tickets):
        await _put_aside(runtime, tickets, started)
    failures = [failure for failure in await asyncio.gather(*tasks) if failure is not None]
    if failures:
        raise AttemptsFailed(failures)


async def _start(runtime: Runtime, tickets: list[Ticket]) -> tuple[list[Started], Endpoints]:
    """Start what may start, and load its endpoints. Each statement is a transaction of its own, without BEGIN and COMMIT."""
    async with runtime.committing.connect() as connection:
        failpoints.reach("start.before_commit")
        started = await start_if_published(connection, tickets, worker=runtime.name, lease_s=runtime.settings.lease_s)
        failpoints.reach("start.committed")
        endpoints = await runtime.endpoints.for_attempts(connection, started)
    return started, endpoints


async def _put_aside(runtime: Runtime, tickets: list[Ticket], started: list[Started]) -> None:
    """What did not start: parked, or given up, when its endpoint is the reason; stale otherwise.

    When that fails, their leases bring them round again; it must not hold up the attempts that are under way.
    """
    begun = {(s.delivery_id, s.generation) for s in started}
    refused = [ticket for ticket in tickets if ticket not in begun]
    try:
        async with runtime.committing.connect() as connection:
            parked = await park_if_endpoint_not_active(connection, refused)
    except (SQLAlchemyError, OSError) as error:
        log.warning("tickets.not_parked", tickets=len(refused), error=f"{type(error).__name__}: {error}"[:200])
        return
    runtime.metrics.parked.inc(parked)
    runtime.metrics.stale.labels("ticket").inc(len(refused) - parked)


async def _attempt(runtime: Runtime, started: Started, endpoints: Endpoints, began: float) -> FailedAttempt | None:
    endpoint = endpoints.get(started.endpoint_id)
    if endpoint is None and started.endpoint_id in endpoints:
        result = AttemptResult(
            Outcome.TRANSIENT,
            FailureClass.OWN_FAULT,
            retry_after_s=UNREADABLE_PAUSE_S,
            error="not sent: this worker cannot read the endpoint or its secret; see HOMING_SECRET_KEYS and the worker's log",
        )
    elif started.body is None or endpoint is None or not endpoint.keys:
        result = AttemptResult(
            Outcome.DEFINITE,
            FailureClass.UNKNOWN,
            error="the event, the endpoint or its secret is gone; nothing was sent",
        )
    else:
        result = await _post(runtime, started, endpoint, began)
    _observe(runtime, started, endpoint, result)
    if endpoint is None or result.outcome is not Outcome.DELIVERED:
        policy = runtime.default_policy if endpoint is None else endpoint.policy
        return FailedAttempt(started, policy, result, monotonic())
    await runtime.record([settle(started, endpoint.policy, result, runtime.random)])
    return None


async def _post(runtime: Runtime, started: Started, endpoint: LoadedEndpoint, began: float) -> AttemptResult:
    assert started.body is not None
    body = started.body.encode()
    # Database time of the start plus what has passed since: a worker's wrong clock cannot make a signature invalid.
    timestamp = int(started.started_at.timestamp() + monotonic() - began)
    headers = build_headers(
        started.headers,
        sign(endpoint.scheme, endpoint.keys, str(started.event_id), timestamp, body),
        request_id=started.request_id or "",
        traceparent=started.traceparent,
        attempt=started.attempt,
    )
    with runtime.metrics.in_flight.track_inprogress():
        failpoints.reach("post.before")
        result = await runtime.transport.post(endpoint.url, headers, body)
        failpoints.reach("post.answered")
    return result


def _observe(runtime: Runtime, started: Started, endpoint: LoadedEndpoint | None, result: AttemptResult) -> None:
    runtime.metrics.attempts.labels(result.outcome, result.failure_class or "").inc()
    runtime.metrics.attempt_seconds.observe(result.duration_s)
    if result.outcome is Outcome.DELIVERED and started.committed_at is not None:
        age = (datetime.now(UTC) - started.committed_at).total_seconds()
        runtime.metrics.delivered_age_seconds.observe(max(0.0, age))
    log.info(
        "delivery.attempted",
        delivery_id=str(started.delivery_id),
        event_id=str(started.event_id),
        event_type=started.event_type,
        request_id=started.request_id,
        traceparent=started.traceparent,
        tenant_id=started.tenant_id,
        endpoint_id=str(started.endpoint_id),
        host=None if endpoint is None else safe_url(endpoint.url),
        attempt=started.attempt,
        replays=started.replays,
        outcome=result.outcome,
        failure_class=result.failure_class,
        http_status=result.http_status,
        duration_ms=round(result.duration_s * 1000, 1),
        error=result.error,
    )
