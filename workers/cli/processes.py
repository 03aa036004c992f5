"""`homing poller`, `homing worker` and `homing up`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from workers.cli.access import read_settings
from workers.cli.options import Json


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (up, poller, worker):
        app.command(command.__name__, rich_help_panel="Run")(command)


def poller() -> None:
    """Run a poller until SIGTERM or Ctrl-C: it publishes what is due. Any number may run."""
    from app.embedded import ensure_servers
    from workers.poller import run_poller
    from workers.processes import stop_with_parent

    settings = read_settings()
    with ensure_servers(settings) as servers:
        refuse_without_schema(servers.database_url)
        stop_with_parent()
        run_poller(settings, servers.database_url, servers.redis_url)


def worker() -> None:
    """Run a worker until SIGTERM or Ctrl-C: it makes the calls. Any number may run."""
    from app.embedded import ensure_servers
    from app.sealing import SecretKeys
    from workers.processes import stop_with_parent
    from workers.worker import run_worker

    settings = read_settings()
    with ensure_servers(settings) as servers:
        keys = SecretKeys.load(settings, embedded=settings.database_url is None)
        refuse_without_schema(servers.database_url)
        stop_with_parent()
        run_worker(settings, servers.database_url, servers.redis_url, keys)


def up(
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 2,
    show_logs: Annotated[
        bool, typer.Option("--show-logs", help="Processes log to stderr instead of to files.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Start servers, bring the schema up to date, and run API, poller and workers until SIGTERM or Ctrl-C."""
    from workers.cli.together import Together

    Together(workers=workers, show_logs=show_logs, as_json=as_json).run()


def refuse_without_schema(database_url: str) -> None:
    """A clear end instead of an endless one. While Postgres is away nothing is refused: the process waits for it."""
    import psycopg

    from app.errors import HomingError

    try:
        with psycopg.connect(database_url, connect_timeout=5) as connection:
            found = connection.execute("SELECT to_regclass('outbox_events')").fetchone()
    except psycopg.OperationalError as error:
        print(f"homing: Postgres is away, waiting for it: {str(error).partition(chr(10))[0]}", file=sys.stderr)
        return
    if found == (None,):
        raise HomingError("the database has no schema of Homing's: run `homing migrate`")
