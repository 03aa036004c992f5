"""`homing doctor`: is everything that Homing's promises rest on really so?"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from workers.cli.access import Access, open_access
from workers.cli.options import Json
from workers.cli.output import give, say

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from workers.cli.check import Check


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("doctor", rich_help_panel="Check")(doctor)


def doctor(as_json: Json = False) -> None:
    """Check servers, schema, keys, clocks and guards; exit 1 if any check fails. Changes nothing."""
    with open_access() as access:
        checks = _all(access)
    failed = sum(check.state == "fail" for check in checks)
    warned = sum(check.state == "warn" for check in checks)
    rows = [asdict(check) for check in checks]
    if as_json:
        give({"checks": rows, "failed": failed, "warned": warned}, as_json=True)
    else:
        give(
            [{"": row["state"], "check": row["name"]} | row for row in rows],
            as_json=False,
            columns=("", "check", "found", "do"),
        )
        say(f"{len(checks)} checks: {failed} failed, {warned} warned")
    if failed:
        raise typer.Exit(1)


def _all(access: Access) -> list[Check]:
    from sqlalchemy.exc import DBAPIError

    from workers.cli.check import Check
    from workers.cli.check_surroundings import check_keys, check_redis, check_settings
    from workers.cli.failures import explain
    from workers.cli.status import probe_redis

    keys_check, keys = check_keys(access)
    checks = [check_settings(access.settings), *check_redis(probe_redis(access.redis_url)), keys_check]

    async def look(engine: AsyncEngine) -> None:
        """Adds to `checks` as it goes, so that what was found before Postgres went away is told."""
        from app.migrate import current_revision, head_revision
        from workers.cli.check_api import check_wall
        from workers.cli.check_database import (
            check_clock,
            check_lateness,
            check_partitions,
            check_schema,
            check_transactions,
            check_version,
        )
        from workers.cli.check_once_only import check_once_only
        from workers.cli.check_surroundings import check_secrets

        async with engine.connect() as connection:
            checks.append(await check_version(connection))
            checks.append(await check_clock(connection))
            checks.append(check_schema(await connection.run_sync(current_revision), head_revision()))
            if checks[-1].state != "ok":
                return  # every further check would only say so again
            checks.extend(await check_partitions(connection))
            checks.extend(await check_lateness(connection))
            checks.append(await check_transactions(connection))
            checks.append(await check_wall(connection))
            if keys is not None:
                checks.append(await check_secrets(connection, keys))
        checks.extend(await check_once_only(engine))

    try:
        access.with_engine(look)
    except DBAPIError as error:
        failure = explain(error)
        said = failure.message if failure else str(error.orig)
        checks.append(Check("Postgres", "fail", said, "see that it runs, and that HOMING_DATABASE_URL is right"))
    return checks
