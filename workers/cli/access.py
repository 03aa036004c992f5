"""How a command gets at the servers: external ones by URL, embedded ones that run, or embedded ones for this command."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from app.config import Settings
    from app.sealing import SecretKeys

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Access:
    """What one command may use; valid inside the `with` block of `open_access`."""

    settings: Settings
    database_url: str
    """Password included: never print it."""
    redis_url: str | None
    """None: it is Homing's own Valkey, and that does not run."""

    def transact(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        """Run `work` on one connection, in one transaction that commits when it returns."""

        async def in_transaction(engine: AsyncEngine) -> T:
            async with engine.begin() as connection:
                return await work(connection)

        return self.with_engine(in_transaction)

    def with_engine(self, work: Callable[[AsyncEngine], Awaitable[T]]) -> T:
        """Run `work`, which makes its own transactions."""

        async def run() -> T:
            from app.db import make_unpooled_engine

            engine = make_unpooled_engine(self.database_url, name="cli")
            try:
                return await work(engine)
            finally:
                await engine.dispose()

        return asyncio.run(run())

    def secret_keys(self) -> SecretKeys:
        """The keys that seal endpoint secrets; with the embedded PostgreSQL they are made on first use."""
        from app.sealing import SecretKeys

        return SecretKeys.load(self.settings, embedded=self.settings.database_url is None)


def read_settings() -> Settings:
    """The settings, their URLs checked early: what a driver says of a bad one may repeat the password in it.

    Raises:
        SettingsInvalid: a setting is wrong; the message never repeats a URL.
    """
    from urllib.parse import urlsplit

    from app.config import load_settings
    from app.errors import SettingsInvalid

    settings = load_settings()
    for name, url, schemes, form in (
        (
            "HOMING_DATABASE_URL",
            settings.database_url,
            ("postgresql", "postgres"),
            "postgresql://user:password@host:5432/name",
        ),
        ("HOMING_REDIS_URL", settings.redis_url, ("redis", "rediss"), "redis://:password@host:6379/0"),
    ):
        if url is None:
            continue
        try:
            parts = urlsplit(url.get_secret_value())
            readable = parts.scheme in schemes and parts.port != 0
        except ValueError:
            readable = False
        if not readable:
            raise SettingsInvalid(f"{name} cannot be read; write it as {form}")
    return settings


@contextmanager
def open_access() -> Iterator[Access]:
    """Access to Postgres; Redis need not run. Embedded servers that do not run are started, and stopped at the end.

    Raises:
        SettingsInvalid: a setting is wrong.
        EmbeddedServerError: a server of our own cannot be started.
    """
    from pydantic import SecretStr

    from app.embedded import ensure_servers, running_servers

    settings = read_settings()
    elsewhere = SecretStr("elsewhere:")  # in place of the server that this question is not about
    redis = running_servers(settings.model_copy(update={"database_url": elsewhere}))
    if postgres := running_servers(settings.model_copy(update={"redis_url": elsewhere})):
        yield Access(settings, postgres.database_url, redis.redis_url if redis else None)
        return
    print(f"starting PostgreSQL and Valkey in {settings.home} for this command ...", file=sys.stderr)
    with ensure_servers(settings) as servers:
        yield Access(settings, servers.database_url, servers.redis_url)


def in_transaction(
    work: Callable[Concatenate[AsyncConnection, P], Awaitable[T]], *arguments: P.args, **named: P.kwargs
) -> T:
    """What `work(connection, ...)` gives, in one transaction with `open_access`."""
    with open_access() as access:
        return access.transact(lambda connection: work(connection, *arguments, **named))


def operator() -> str:
    """Who acts, for the audit trail: `cli:` and the name of the operating system's user."""
    import getpass

    try:
        return f"cli:{getpass.getuser()}"
    except (OSError, KeyError):  # a user id without a name, as in many containers
        import os

        return f"cli:uid-{os.getuid()}"
