"""The one way to Postgres: an async engine with a small pool, and what counts as "Postgres is away"."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from uuid import UUID

from sqlalchemy import NullPool
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

#: Server-side guards for every connection: a statement that hangs, or a transaction left open, ends by itself.
SESSION_OPTIONS = "-c statement_timeout=30s -c lock_timeout=10s -c idle_in_transaction_session_timeout=30s -c jit=off"

#: For processes that run the same few statements for ever, each starting from a primary key or a partial index: planned
#: once. Planned for every call, as PostgreSQL prefers where there are partitions, they cost three times their execution. The
#: plan is made while a week's partition may be empty, and must not be a scan of all of it a million rows later.
PLANNED_ONCE = " -c plan_cache_mode=force_generic_plan -c enable_seqscan=off"

#: A peer that has vanished without a word is noticed after about 20 s (libpq, "Parameter Key Words"; milliseconds for the last).
KEEPALIVE: dict[str, Any] = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
    "tcp_user_timeout": 20_000,
}


def sqlalchemy_url(database_url: str) -> str:
    """`postgresql://...` (or `postgres://...`) with the driver that Homing uses, psycopg 3."""
    scheme, separator, rest = database_url.partition("://")
    if not separator:
        return database_url
    return f"postgresql+psycopg://{rest}" if scheme in ("postgres", "postgresql") else database_url


def make_engine(database_url: str, *, name: str, pool_size: int, planned_once: bool = False) -> AsyncEngine:
    """An engine whose connections show as `homing-<name>` in `pg_stat_activity`.

    Every connection gives up connecting after 5 s; none is pinged before use, because each caller retries or leaves its
    row to the lease.
    """
    return create_async_engine(
        sqlalchemy_url(database_url),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=10,
        connect_args={
            "application_name": f"homing-{name}",
            "connect_timeout": 5,
            "options": SESSION_OPTIONS + (PLANNED_ONCE if planned_once else ""),
            "prepare_threshold": 3,
            **KEEPALIVE,
        },
    )


def committing(engine: AsyncEngine) -> AsyncEngine:
    """The same connections, on which each statement is a transaction of its own: one round trip instead of three.

    Also for reading: a transaction that is not committed ends with ROLLBACK, at which the driver forgets all prepared
    statements.
    """
    return engine.execution_options(isolation_level="AUTOCOMMIT")


def array(values: Iterable[UUID | int]) -> str:
    """An array for `CAST(:name AS uuid[])` or `integer[]`, as text: the driver takes ten times as long to write it."""
    return "{" + ",".join(map(str, values)) + "}"


def make_unpooled_engine(database_url: str, *, name: str) -> AsyncEngine:
    """An engine for one-off work (the command line): a connection per use, closed at once."""
    return create_async_engine(
        sqlalchemy_url(database_url),
        poolclass=NullPool,
        connect_args={"application_name": f"homing-{name}", "connect_timeout": 5, "options": SESSION_OPTIONS}
        | KEEPALIVE,
    )


#: SQLSTATEs, or their first characters, that say "not now" and not "not this": connection, shutdown and cancel, disk
#: full, too many connections, deadlock and serialization, lock timeout, read-only after a failover, I/O.
#: (PostgreSQL, appendix "Error Codes".) Anything else is about the statement or its data and would come again.
_NOT_NOW = ("08", "57", "53100", "53300", "40", "55P03", "25006", "25P03", "58")


def is_away(error: BaseException) -> bool:
    """True when the database could not be reached, went away, or had nothing to spare: the same again later may work."""
    if isinstance(error, PoolTimeout | OSError):
        return True
    if not isinstance(error, DBAPIError):
        return False
    state = getattr(error.orig, "sqlstate", None)
    if state is None:
        return error.connection_invalidated or isinstance(error, OperationalError | InterfaceError)
    return str(state).startswith(_NOT_NOW)
