"""Checks of what is around Postgres: Redis, the keys that open endpoint secrets, the settings."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.config import Settings
from app.endpoints import secret_context
from app.errors import HomingError, SettingsInvalid
from app.sealing import SecretKeys
from workers.cli.access import Access
from workers.cli.check import Check

OLDEST = {"redis": 7, "valkey": 8}
"""Oldest major version that is supported, by product."""
LEASE_MARGIN_S = 5.0
"""Lease beyond the deadline that leaves a result time to be recorded."""
CLOSED_SHOWN = 3


def check_settings(settings: Settings) -> Check:
    """Settings that contradict each other do not get here; those that leave little room are told."""
    found = f"deadline {settings.deadline_s:g} s, lease {settings.lease_s:g} s"
    if settings.lease_s < settings.deadline_s + LEASE_MARGIN_S:
        do = f"set HOMING_LEASE_S to {settings.deadline_s + LEASE_MARGIN_S:g} or more: slow results will be lost"
        return Check("settings", "warn", found, do)
    return Check("settings", "ok", found)


def check_redis(found: dict[str, Any]) -> list[Check]:
    """Whether Redis answers, is one that Homing is tested with, and never evicts."""
    if found["state"] != "up":
        return [Check("Redis", "fail", str(found["error"]), "start it, or check HOMING_REDIS_URL")]
    product, version, policy = found["product"], str(found["version"]), found["policy"]
    checks = [Check("Redis", "ok", f"reachable, {product} {version}")]
    major = version.partition(".")[0]
    if major.isdigit() and int(major) < OLDEST[product]:
        checks = [Check("Redis", "fail", f"{product} {version}", f"upgrade to {product} {OLDEST[product]} or later")]
    if policy == "noeviction":
        return [*checks, Check("Redis memory", "ok", "maxmemory-policy is noeviction")]
    do = "set maxmemory-policy to noeviction: a message that is evicted waits for its lease to end"
    return [*checks, Check("Redis memory", "fail", f"maxmemory-policy is {policy}", do)]


def check_keys(access: Access) -> tuple[Check, SecretKeys | None]:
    """Whether the keys that seal endpoint secrets can be loaded."""
    try:
        keys = access.secret_keys()
    except HomingError as error:
        return Check("secret keys", "fail", str(error), "set HOMING_SECRET_KEYS or HOMING_SECRET_KEYS_FILE"), None
    return Check("secret keys", "ok", f"loaded; {keys.current_key_id} seals"), keys


async def check_secrets(connection: AsyncConnection, keys: SecretKeys) -> Check:
    """Whether every endpoint secret that is in use opens."""
    stored = await connection.execute(
        text(
            """
            SELECT s.id, s.endpoint_id, s.sealed FROM endpoint_secrets s JOIN endpoints p ON p.id = s.endpoint_id
            WHERE p.status <> 'archived' AND (s.expires_at IS NULL OR s.expires_at > now()) ORDER BY s.id
            """
        )
    )
    opened, closed = 0, []
    for row in stored:
        try:
            keys.open(bytes(row.sealed), secret_context(row.id))
            opened += 1
        except SettingsInvalid as error:
            closed.append(f"endpoint {row.endpoint_id}: {error}")
    if not closed:
        return Check("endpoint secrets", "ok", f"all {opened} open")
    shown = "; ".join(closed[:CLOSED_SHOWN])
    do = "put the key that they were sealed with back into HOMING_SECRET_KEYS, after the current one"
    return Check("endpoint secrets", "fail", f"{len(closed)} of {opened + len(closed)} do not open: {shown}", do)
