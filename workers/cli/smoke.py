"""`homing smoke`: one event the whole way through a live installation, to a receiver that this command starts."""

from __future__ import annotations

import asyncio
import json
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from workers.cli.access import Access, open_access, operator
from workers.cli.drill import finish
from workers.cli.matrix import Step, access_of, parse_targets, run_on
from workers.cli.options import Json

if TYPE_CHECKING:
    from aiohttp import web
    from sqlalchemy.ext.asyncio import AsyncEngine

TENANT = "homing-smoke"
LOOK_EVERY_S = 0.1


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("smoke", rich_help_panel="Check")(smoke)


@dataclass(frozen=True, slots=True)
class Where:
    """Where the receiver listens, and under which address workers reach it."""

    listen: str
    port: int
    host: str
    timeout_s: float


def smoke(
    matrix: Annotated[
        list[str] | None,
        typer.Option(
            "--matrix",
            metavar="NAME=DATABASE_URL|REDIS_URL",
            help="A target; repeat it. A third part names its file of sealing keys. NAME=@VARIABLE reads all of it.",
        ),
    ] = None,
    listen: Annotated[str, typer.Option(metavar="ADDRESS", help="Address the receiver listens on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", help="Its port; 0 picks one.")] = 0,
    host: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Name or address under which workers reach it; --listen, if not given."),
    ] = None,
    timeout: Annotated[float, typer.Option(metavar="S", help="Seconds to wait for the request, at most.")] = 60.0,
    report: Annotated[Path | None, typer.Option("--report", metavar="FILE.md", help="Write a Markdown report.")] = None,
    as_json: Json = False,
) -> None:
    """Send one event the whole way: outbox, poller, worker, signed request, record. Cleans up after itself.

    The installation must run, and its workers must be allowed to call the receiver: HOMING_ALLOW_NETWORKS=127.0.0.0/8 for
    one on this machine. Exit code 0: it arrived everywhere. 6: at some targets. 1: at none.
    """
    where = Where(listen, port, host or listen, timeout)
    if matrix:
        results = [
            run_on(target.name, partial(lambda t: run_smoke(access_of(t), where), target))
            for target in parse_targets(matrix)
        ]
    else:
        with open_access() as access:
            results = [run_on("this installation", lambda: run_smoke(access, where))]
    finish("Smoke test", results, report, as_json=as_json)


def run_smoke(access: Access, where: Where) -> list[Step]:
    """The whole path on one installation: one step per stage; what was made is taken away, whatever happens."""
    return access.with_engine(lambda engine: _smoke(engine, access, where))


@dataclass
class _Receiver:
    """Takes one request."""

    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    async def handle(self, request: web.Request) -> web.Response:
        from aiohttp import web

        self.body = await request.read()
        self.headers = {name.lower(): value for name, value in request.headers.items()}
        self.arrived.set()
        return web.Response(text="seen\n")


async def _smoke(engine: AsyncEngine, access: Access, where: Where) -> list[Step]:
    from aiohttp import web

    from workers.cli.leftovers import take_away

    receiver = _Receiver()
    application = web.Application()
    application.router.add_post("/smoke", receiver.handle)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    endpoint_id: UUID | None = None
    event_type = f"homing.smoke.{secrets.token_hex(4)}"
    try:
        await web.TCPSite(runner, where.listen, where.port).start()
        host = f"[{where.host}]" if ":" in where.host else where.host
        url = f"http://{host}:{runner.addresses[0][1]}/smoke"
        endpoint_id, secret = await _make_endpoint(engine, access, url, event_type)
        return await _send_and_wait(engine, receiver, endpoint_id, secret, event_type, where)
    finally:
        try:
            if endpoint_id is not None:
                async with engine.begin() as connection:
                    await take_away(connection, TENANT, endpoint_id, event_type)
        finally:
            await runner.cleanup()


async def _make_endpoint(engine: AsyncEngine, access: Access, url: str, event_type: str) -> tuple[UUID, str]:
    from app.backoff import RetryPolicy
    from app.endpoints import create_endpoint
    from workers.cli.leftovers import ensure_tenant

    async with engine.begin() as connection:
        await ensure_tenant(connection, TENANT, "Smoke tests; only their audit trail stays")
        made = await create_endpoint(
            connection,
            access.secret_keys(),
            tenant_id=TENANT,
            url=url,
            actor=operator(),
            name="smoke",
            event_types=(event_type,),
            policy=RetryPolicy(max_attempts=3, base_s=1, factor=1, cap_s=1),
        )
    return UUID(str(made["id"])), str(made["secret"])


async def _send_and_wait(
    engine: AsyncEngine, receiver: _Receiver, endpoint_id: UUID, secret: str, event_type: str, where: Where
) -> list[Step]:
    steps: list[Step] = []
    request_id = f"smoke-{secrets.token_hex(6)}"
    payload = {"smoke": request_id}
    event_id = await _publish(engine, event_type, request_id, payload)
    committed = monotonic()
    steps.append(Step("an event is committed to the outbox", True, f"event {event_id}"))
    deadline = committed + where.timeout_s
    state: dict[str, Any] = {}
    while monotonic() < deadline and state.get("state") not in ("delivered", "failed", "dead_lettered"):
        with suppress(TimeoutError):
            await asyncio.wait_for(receiver.arrived.wait(), LOOK_EVERY_S)
        if receiver.arrived.is_set():
            await asyncio.sleep(LOOK_EVERY_S)  # its result is recorded after the answer
        state = await _state(engine, endpoint_id)
    taken = state.get("state") is not None
    steps.append(Step("the poller takes it and fans it out", taken, _taken(state)))
    arrived = receiver.arrived.is_set()
    steps.append(
        Step(
            "a worker's request arrives",
            arrived,
            f"{monotonic() - committed:.2f} s after the commit, record included" if arrived else _why(state),
        )
    )
    if arrived:
        steps += _genuine(receiver, secret, str(event_id), request_id, payload)
    steps.append(
        Step("the delivery is recorded", state.get("state") == "delivered", f"state {state.get('state') or 'none'}")
    )
    return steps


async def _publish(engine: AsyncEngine, event_type: str, request_id: str, payload: dict[str, Any]) -> UUID:
    from sqlalchemy import text

    statement = text(
        """
        INSERT INTO outbox_events (tenant_id, event_type, payload, request_id)
        VALUES (:tenant, :type, CAST(:payload AS jsonb), :request_id) RETURNING id
        """
    )
    values = {"tenant": TENANT, "type": event_type, "payload": json.dumps(payload), "request_id": request_id}
    async with engine.begin() as connection:
        return UUID(str((await connection.execute(statement, values)).scalar_one()))


async def _state(engine: AsyncEngine, endpoint_id: UUID) -> dict[str, Any]:
    from sqlalchemy import text

    statement = text(
        "SELECT state, attempts, last_class, last_status, last_error FROM deliveries WHERE endpoint_id = :id"
    )
    async with engine.connect() as connection:
        row = (await connection.execute(statement, {"id": endpoint_id})).one_or_none()
    return {} if row is None else dict(row._mapping)


def _taken(state: dict[str, Any]) -> str:
    if state:
        return "one delivery"
    return "it still waits in the outbox: see that `homing poller` runs, and that both use the same database"


def _why(state: dict[str, Any]) -> str:
    if not state:
        return "nothing was sent"
    if state["last_class"] == "blocked_address":
        return "the workers may not call the receiver: set HOMING_ALLOW_NETWORKS for them, or use --listen and --host"
    if state["last_error"]:
        return f"{state['last_class']}: {state['last_error']}"
    return f"the delivery is {state['state']}: see that `homing worker` runs, and that all use the same Redis"


def _genuine(receiver: _Receiver, secret: str, event_id: str, request_id: str, payload: dict[str, Any]) -> list[Step]:
    from base64 import b64decode

    from workers.demo.receiver import signature_ok  # an independent reading of the scheme

    good = signature_ok("standard", b64decode(secret.removeprefix("whsec_")), receiver.headers, receiver.body)
    ids = (receiver.headers.get("webhook-id"), receiver.headers.get("x-request-id"))
    same = json.loads(receiver.body) == payload
    return [
        Step("its signature is right", good, "verified" if good else "it does not verify"),
        Step("its ids are the event's", ids == (event_id, request_id), f"webhook-id {ids[0]}, x-request-id {ids[1]}"),
        Step("its body is the payload", same, f"{len(receiver.body)} bytes"),
    ]
