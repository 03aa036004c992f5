"""What an error is to the person at the command line: one line, and an exit code. Anything else is a defect of ours."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import typer

from app.errors import HomingError

_SCHEMA_MISSING = {"42P01", "42703", "42883"}  # undefined table, column, function; PostgreSQL, Appendix A
_NOT_ALLOWED = {"42501", "28000", "28P01"}  # insufficient privilege, invalid authorization, invalid password


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a command did not do what it was asked."""

    exit_code: int
    kind: str
    message: str


def explain(error: Exception) -> Failure | None:
    """The failure that this error means to an operator; None when it is a defect, which deserves its traceback."""
    if isinstance(error, typer.TyperException):
        return Failure(error.exit_code, "Usage", _usage(error))
    if isinstance(error, HomingError):
        return Failure(error.exit_code, type(error).__name__, str(error))
    return _of_postgres(error) or _of_redis(error) or _of_the_system(error)


def tell(failure: Failure, *, as_json: bool) -> None:
    """Write the failure to stderr: a line, or with `as_json` one JSON object."""
    if as_json:
        body = {"kind": failure.kind, "message": failure.message, "exit_code": failure.exit_code}
        print(json.dumps({"error": body}), file=sys.stderr)
    else:
        print(f"homing: {failure.message}", file=sys.stderr)


def _usage(error: typer.TyperException) -> str:
    context = getattr(error, "ctx", None)
    # Without a message: a group without a command, which has shown its help.
    message = error.format_message().strip().rstrip(".") or "a command is missing"
    if context is None:
        return message
    return f"{message}; see `{context.command_path} --help`"


def _of_postgres(error: Exception) -> Failure | None:
    import psycopg
    from sqlalchemy.exc import ArgumentError, DBAPIError

    from app.db import is_away

    if isinstance(error, ArgumentError):
        # Its own words may repeat the URL, and with it the password.
        message = "HOMING_DATABASE_URL cannot be read; write it as postgresql://user:password@host:5432/name"
        return Failure(2, "SettingsInvalid", message)
    cause = error.orig if isinstance(error, DBAPIError) else error
    if not isinstance(cause, psycopg.Error):
        return Failure(7, "ServerAway", f"Postgres is away: {_first_line(error)}") if _is_pool_timeout(error) else None
    said = _first_line(cause)
    if cause.sqlstate in _SCHEMA_MISSING:
        return Failure(1, "SchemaMissing", f"the database lacks Homing's schema ({said}): run `homing migrate`")
    if cause.sqlstate in _NOT_ALLOWED or "authentication failed" in said:
        return Failure(4, "NotAllowed", f"Postgres does not allow it: {said}; check the role in HOMING_DATABASE_URL")
    if isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError) or is_away(error):
        return Failure(7, "ServerAway", f"Postgres is away: {said}; check that it runs, and HOMING_DATABASE_URL")
    # Never str(error): it would repeat the statement's parameters, payloads among them.
    return Failure(1, "Refused", f"Postgres refused: {said}")


def _is_pool_timeout(error: Exception) -> bool:
    from sqlalchemy.exc import TimeoutError as PoolTimeout

    return isinstance(error, PoolTimeout)


def _of_redis(error: Exception) -> Failure | None:
    from redis.exceptions import AuthenticationError, RedisError

    if isinstance(error, AuthenticationError):
        return Failure(4, "NotAllowed", f"Redis does not allow it: {error}; check the password in HOMING_REDIS_URL")
    if isinstance(error, RedisError):
        return Failure(7, "ServerAway", f"Redis is away: {error}; check that it runs, and HOMING_REDIS_URL")
    return None


def _of_the_system(error: Exception) -> Failure | None:
    if isinstance(error, ConnectionError | TimeoutError):
        return Failure(7, "ServerAway", f"a server is away: {error}")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return Failure(1, "Failed", f"{where}{error.strerror or error}")
    return None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
