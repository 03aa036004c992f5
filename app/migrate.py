"""Brings the schema up or down with Alembic, one process at a time.

An advisory lock makes two `homing migrate` runs follow each other; lock and statement timeouts keep a migration from
standing in front of live traffic for long.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import OperationalError

from app.db import sqlalchemy_url
from app.errors import ServerAway

#: Advisory lock of migrations, an arbitrary constant of this project ("homi" in ASCII).
MIGRATION_LOCK = 0x686F6D69


def _config(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent.parent / "migrations"))
    config.attributes["connection"] = connection
    return config


def head_revision() -> str:
    """The newest revision that this program knows."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def migrate(database_url: str, revision: str = "head") -> tuple[str | None, str | None]:
    """Upgrade (or, for an older revision or `base`, downgrade) the database.

    Returns:
        The revision before and after; None is an empty database.

    Raises:
        ServerAway: Postgres cannot be reached, or a lock was not to be had within 10 s. What was finished stays, the
            interrupted revision is rolled back, and running it again completes it.
    """
    engine = create_engine(sqlalchemy_url(database_url))
    try:
        with engine.connect() as connection:
            connection.execute(text("SET lock_timeout = '10s'"))
            connection.execute(text("SET statement_timeout = '10min'"))
            connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": MIGRATION_LOCK})
            connection.commit()
            try:
                before = current_revision(connection)
                going_down = revision == "base" or (
                    before is not None
                    and revision not in ("head", before)
                    and revision
                    in {r.revision for r in ScriptDirectory.from_config(_config()).iterate_revisions(before, "base")}
                )
                (command.downgrade if going_down else command.upgrade)(_config(connection), revision)
                connection.commit()
                return before, current_revision(connection)
            finally:
                connection.rollback()
                connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": MIGRATION_LOCK})
                connection.commit()
    except OperationalError as error:
        raise ServerAway(f"migration stopped: Postgres said: {error.orig}; run `homing migrate` again") from error
    finally:
        engine.dispose()


def current_revision(connection: Connection) -> str | None:
    """The revision that the database is at; None for an empty one."""
    revision = MigrationContext.configure(connection).get_current_revision()
    connection.rollback()
    return revision
