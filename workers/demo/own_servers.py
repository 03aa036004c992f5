"""On servers that exist already: a database and a Redis database of the demo's own, and nothing else touched."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import parse_qsl, urlencode, urlsplit

import psycopg
import redis
from psycopg import sql

from app.errors import Conflict, InvalidInput, ServerAway
from workers.keys import NAMESPACE

REDIS_DATABASES = range(15, 0, -1)
MARK = "homing-demo"
MARK_S = 3600
REMEDY = "or leave {} unset, and the demo starts a server of its own"


@contextmanager
def own_database(server_url: str, *, keep: bool) -> Iterator[str]:
    """A new database on the server that the URL names; dropped at the end unless it is to be kept.

    Raises:
        Conflict: the role may not make databases.
        ServerAway: the server cannot be reached.
    """
    name = f"homing_demo_{secrets.token_hex(6)}"
    remedy = REMEDY.format("HOMING_DATABASE_URL")
    try:
        with psycopg.connect(server_url, autocommit=True, connect_timeout=5) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    except psycopg.OperationalError as error:
        raise ServerAway(f"PostgreSQL at HOMING_DATABASE_URL cannot be reached: {error}; start it, {remedy}") from error
    except psycopg.Error as error:
        raise Conflict(
            f"the demo needs a database of its own, and PostgreSQL at HOMING_DATABASE_URL refuses one: {error}; "
            f"use a role with CREATEDB, {remedy}"
        ) from error
    try:
        yield _checked(_with_path(server_url, name, drop="dbname"), name)
    finally:
        if not keep:
            with psycopg.connect(server_url, autocommit=True, connect_timeout=5) as connection:
                connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


@contextmanager
def own_redis(server_url: str) -> Iterator[str]:
    """An empty Redis database on the server that the URL names; at the end Homing's keys are removed from it.

    Raises:
        Conflict: the server has no empty database besides number 0.
        InvalidInput: the URL is not `redis://` or `rediss://`.
        ServerAway: the server cannot be reached.
    """
    remedy = REMEDY.format("HOMING_REDIS_URL")
    if urlsplit(server_url).scheme not in ("redis", "rediss"):
        raise InvalidInput(f"HOMING_REDIS_URL: the demo needs redis:// or rediss://, {remedy}")
    for number in REDIS_DATABASES:
        url = _with_path(server_url, str(number), drop="db")
        with redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5) as client:
            try:
                # The mark keeps a second demo away from the same database.
                if client.dbsize() or not client.set(MARK, "1", nx=True, ex=MARK_S):
                    continue
            except redis.ResponseError:  # it has fewer databases, or is a cluster with only number 0
                continue
            except redis.RedisError as error:
                raise ServerAway(f"Redis at HOMING_REDIS_URL cannot be reached: {error}; start it, {remedy}") from error
            try:
                yield url
            finally:
                client.delete(MARK, *client.scan_iter(f"{NAMESPACE}:*", count=1000))
            return
    raise Conflict(f"the demo needs an empty Redis database (1 to 15) at HOMING_REDIS_URL; empty one, {remedy}")


def _with_path(url: str, path: str, *, drop: str) -> str:
    """The URL with another database; a query parameter that would override it is left out."""
    parts = urlsplit(url)
    query = urlencode([(name, value) for name, value in parse_qsl(parts.query) if name != drop])
    return parts._replace(path=f"/{path}", query=query).geturl()


def _checked(url: str, name: str) -> str:
    """Make sure that the URL leads to the new database and to no other."""
    with psycopg.connect(url, connect_timeout=5) as connection:
        row = connection.execute("SELECT current_database()").fetchone()
    if row is None or row[0] != name:
        raise Conflict("HOMING_DATABASE_URL leads to one fixed database; give the demo a URL that goes to the server")
    return url
