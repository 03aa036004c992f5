"""`homing status`: how things stand, at a glance. Reports; only `homing doctor` judges."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from workers.cli.access import open_access
from workers.cli.options import Json
from workers.cli.output import give, say
from workers.cli.schema import current_revision

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

#: Counting every delivery may take long; beyond this many milliseconds it is left out.
COUNT_LIMIT_MS = 5000


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("status", rich_help_panel="Check")(status)


def status(as_json: Json = False) -> None:
    """Show servers, schema, backlog, deliveries by state, and what to do next."""
    from app.migrate import head_revision

    with open_access() as access:
        revision = current_revision(access)
        found: dict[str, Any] = {
            "postgres": access.transact(_postgres),
            "redis": probe_redis(access.redis_url),
            "schema": {"at": revision, "head": head_revision()},
        }
        if revision is not None:
            found |= access.with_engine(_counts)
    found["hints"] = _hints(found)
    if as_json:
        give(found, as_json=True)
        return
    give({name: value for name, value in found.items() if name != "hints"}, as_json=False)
    for hint in found["hints"]:
        say(hint)


def probe_redis(url: str | None) -> dict[str, Any]:
    """Whether Redis answers, and what it says of itself: `state` (up, away), `version`, `product`, `policy`, `error`."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    if url is None:
        return {"state": "away", "error": "Homing's own Valkey does not run; `homing up` starts it"}
    try:
        with redis.Redis.from_url(
            url, socket_timeout=5, socket_connect_timeout=5, retry=Retry(NoBackoff(), 0), decode_responses=True
        ) as client:
            said: Any = client.info()
    except (redis.RedisError, OSError, ValueError) as error:
        return {"state": "away", "error": str(error) or type(error).__name__}
    product = "valkey" if said.get("server_name") == "valkey" else "redis"
    version = said.get("valkey_version") if product == "valkey" else said.get("redis_version")
    return {"state": "up", "product": product, "version": version, "policy": said.get("maxmemory_policy")}


async def _postgres(connection: AsyncConnection) -> dict[str, Any]:
    from sqlalchemy import text

    version = (await connection.execute(text("SHOW server_version"))).scalar_one()
    url = connection.engine.url
    return {"state": "up", "version": version, "at": f"{url.host or 'local'}:{url.port or 5432}/{url.database or ''}"}


async def _counts(engine: AsyncEngine) -> dict[str, Any]:
    from sqlalchemy import text
    from sqlalchemy.exc import OperationalError

    from app.reads import backlog, deliveries_by_state

    async with engine.connect() as connection:
        waiting = asdict(await backlog(connection))
        endpoints = await connection.execute(text("SELECT status, count(*) FROM endpoints GROUP BY status"))
        counts: dict[str, Any] = {"backlog": waiting, "endpoints": {row.status: row.count for row in endpoints}}
    try:
        async with engine.begin() as connection:
            await connection.execute(text(f"SET LOCAL statement_timeout = {COUNT_LIMIT_MS}"))
            return counts | {"deliveries": await deliveries_by_state(connection)}
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != "57014":  # query_canceled
            raise
        return counts | {"deliveries": None}


def _hints(found: dict[str, Any]) -> list[str]:
    at, head = found["schema"]["at"], found["schema"]["head"]
    if at is None:
        return ["the database has no schema yet: homing migrate"]
    hints = []
    if at != head:
        hints.append(f"the schema is at {at}, this program knows {head}: homing migrate")
    if found["redis"]["state"] != "up":
        hints.append(f"Redis is away ({found['redis']['error']}); nothing is lost, deliveries wait in Postgres")
    waiting = found["backlog"]
    if waiting["set_aside"]:
        hints.append(f"{waiting['set_aside']} rows set aside: homing events rejected")
    if waiting["dead_letters_open"]:
        hints.append(f"{waiting['dead_letters_open']} dead letters open: homing dead-letters list --status open")
    if waiting["outbox_waiting"] and waiting["outbox_oldest_s"] > 60:
        hints.append(
            f"the outbox is not being taken, for {waiting['outbox_oldest_s']:.0f} s: does `homing poller` run?"
        )
    elif waiting["due"] and waiting["due_oldest_s"] > 60:
        hints.append(f"a delivery is due for {waiting['due_oldest_s']:.0f} s: do `homing poller` and `worker` run?")
    if waiting["parked"]:
        hints.append(f"{waiting['parked']} deliveries wait for paused or disabled endpoints: homing endpoints list")
    if not found["endpoints"]:
        hints.append("no endpoint yet: homing endpoints create --url URL")
    return hints
