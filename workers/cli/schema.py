"""`homing migrate`, and the question whether there is a schema at all."""

from __future__ import annotations

from typing import Annotated

import typer

from workers.cli.access import Access, open_access
from workers.cli.options import Json
from workers.cli.output import give, say


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("migrate", rich_help_panel="Run")(migrate)


def migrate(
    to: Annotated[str, typer.Option(metavar="REVISION", help="Where to go; `base` takes everything away.")] = "head",
    as_json: Json = False,
) -> None:
    """Bring the database's schema to the newest revision, or to another one."""
    from alembic.util import CommandError

    from app.errors import InvalidInput
    from app.migrate import migrate as run_migrations

    with open_access() as access:
        try:
            before, after = run_migrations(access.database_url, to)
        except CommandError as error:
            raise InvalidInput(f"--to {to!r}: {error}; nothing was changed") from error
    give({"before": before, "after": after}, as_json=as_json)
    if before == after:
        say("the schema was there already")


def current_revision(access: Access) -> str | None:
    """The revision that the database is at; None when it has no schema of Homing's."""
    from app.migrate import current_revision as read

    async def look(connection: object) -> str | None:
        from sqlalchemy.ext.asyncio import AsyncConnection

        assert isinstance(connection, AsyncConnection)
        return await connection.run_sync(read)

    return access.transact(look)
