"""Keys of the HTTP API: made, listed, revoked, and recognised. Only a key's hash is stored.

A key is `homing_live_<id>_<secret><check>`: 12 public characters that name it, 32 secret ones (190 random bits), and a
CRC-32 of all before it, so that a scanner for leaked keys can tell one from text, and a mistyped one is refused without a
look into the database. A hash without salt or stretching is enough for so many random bits.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from hashlib import sha256
from typing import Any
from zlib import crc32

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.audit import write_audit
from app.errors import InvalidInput, NotFound

PREFIX = "homing_live_"
KEY = re.compile(r"homing_live_[a-z0-9]{12}_[0-9A-Za-z]{32}[0-9A-Za-z]{6}")
KEY_ID = re.compile(r"[a-z0-9]{12}")
_LOWER = "0123456789abcdefghijklmnopqrstuvwxyz"
_LETTERS = _LOWER + _LOWER[10:].upper()
_NOBODY = bytes(32)
#: Stands where a tenant's id would, for what is no tenant's: no tenant can have this id.
OPERATORS = "*"


class Scope(StrEnum):
    """What a key may do; none of them includes another."""

    EVENTS_WRITE = "events:write"
    DELIVERIES_READ = "deliveries:read"
    ENDPOINTS_WRITE = "endpoints:write"
    REPLAY_WRITE = "replay:write"
    AUDIT_READ = "audit:read"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a key stands for."""

    key_id: str
    tenant_id: str | None
    """None: an operator, who manages tenants and their keys and reads nobody's data."""
    scopes: frozenset[str]

    @property
    def actor(self) -> str:
        """How audit trails name them."""
        return f"key:{self.key_id}"


_CREATE = text(
    """
    INSERT INTO api_keys (id, tenant_id, name, hash, scopes, created_by, expires_at)
    VALUES (:id, :tenant_id, :name, :hash, CAST(:scopes AS text[]), :created_by, :expires_at)
    RETURNING id, tenant_id, name, scopes, created_by, created_at, expires_at, revoked_at, last_used_at
    """
)

_LIST = text(
    """
    SELECT id, tenant_id, name, scopes, created_by, created_at, expires_at, revoked_at, last_used_at FROM api_keys
    WHERE tenant_id IS NOT DISTINCT FROM :tenant_id AND id > :after ORDER BY id LIMIT :limit
    """
)

_REVOKE = text(
    """
    UPDATE api_keys SET revoked_at = coalesce(revoked_at, now())
    WHERE tenant_id IS NOT DISTINCT FROM :tenant_id AND id = :id
    RETURNING id, tenant_id, name, scopes, created_by, created_at, expires_at, revoked_at, last_used_at
    """
)

# Always one row: for an id that nobody has, one with a hash that no key has.
_FIND = text(
    """
    SELECT k.tenant_id, coalesce(k.hash, :nobody) AS hash, coalesce(k.scopes, '{}') AS scopes,
           coalesce(k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > now()), false) AS usable,
           coalesce(k.last_used_at < now() - interval '1 minute', true) AS stale
    FROM (SELECT CAST(:id AS text) AS id) AS asked LEFT JOIN api_keys k ON k.id = asked.id
    """
)

_TOUCH_IF_STALE = text(
    """
    UPDATE api_keys SET last_used_at = now()
    WHERE id = :id AND coalesce(last_used_at < now() - interval '1 minute', true)
    """
)


async def create_key(
    connection: AsyncConnection,
    *,
    tenant_id: str | None,
    scopes: Sequence[str],
    actor: str,
    name: str = "",
    expires_at: datetime | None = None,
) -> dict[str, Any]:
    """Make a key, audited, in the caller's transaction; `key` in the answer is the only time that it is shown.

    Raises:
        InvalidInput: names the field. Nothing was made.
        NotFound: there is no such tenant.
    """
    wanted = sorted(set(scopes))
    if not wanted or (unknown := [s for s in wanted if s not in set(Scope)]):
        said = f"{unknown[0]!r} is not one of" if wanted else "give at least one of"
        raise InvalidInput(f"scopes: {said} {', '.join(Scope)}")
    if tenant_id is None and wanted != [Scope.ADMIN]:
        raise InvalidInput("scopes: an operator's key has the scope admin and no other")
    if len(name) > 200 or any(ord(c) < 32 for c in name):
        raise InvalidInput("name: at most 200 characters, none of them a control character")
    key_id, key = _new_key()
    fields: dict[str, Any] = {"id": key_id, "tenant_id": tenant_id, "name": name, "scopes": wanted}
    fields |= {"hash": sha256(key.encode()).digest(), "created_by": actor, "expires_at": expires_at}
    try:
        row = (await connection.execute(_CREATE, fields)).one()
    except IntegrityError as error:
        raise NotFound(f"tenant {tenant_id!r} does not exist; make it first") from error
    await write_audit(
        connection,
        tenant_id=tenant_id or OPERATORS,
        action="key.created",
        subject=key_id,
        after={"name": name, "scopes": wanted},
        actor=actor,
    )
    return dict(row._mapping) | {"key": key}


async def list_keys(
    connection: AsyncConnection, *, tenant_id: str | None, after: str = "", limit: int = 200
) -> list[dict[str, Any]]:
    """A tenant's keys (None: the operators') in order of their ids, revoked and expired ones too."""
    wanted = {"tenant_id": tenant_id, "after": after, "limit": limit}
    return [dict(row._mapping) for row in await connection.execute(_LIST, wanted)]


async def revoke_key(connection: AsyncConnection, *, tenant_id: str | None, key_id: str, actor: str) -> dict[str, Any]:
    """End a key, at once and for good, audited. Revoking it again changes nothing.

    Raises:
        NotFound: the tenant has no such key.
    """
    row = (await connection.execute(_REVOKE, {"tenant_id": tenant_id, "id": key_id})).one_or_none()
    if row is None:
        raise NotFound(f"there is no key {key_id!r}")
    scopes = {"name": row.name, "scopes": list(row.scopes)}
    await write_audit(
        connection,
        tenant_id=tenant_id or OPERATORS,
        action="key.revoked",
        subject=key_id,
        before=scopes,
        actor=actor,
    )
    return dict(row._mapping)


async def recognise(connection: AsyncConnection, key: str) -> Caller | None:
    """Whom a key stands for; None when it is malformed, unknown, wrong, revoked or expired, which all look the same.

    Of the last four, each costs one look-up and one comparison in constant time. A malformed one costs neither: anybody can
    tell that it is one.
    """
    if not KEY.fullmatch(key) or key[-6:] != _check(key[:-6]):
        return None
    key_id = key[len(PREFIX) :][:12]
    row = (await connection.execute(_FIND, {"id": key_id, "nobody": _NOBODY})).one()
    same = hmac.compare_digest(sha256(key.encode()).digest(), bytes(row.hash))
    if not (same and row.usable):
        return None
    if row.stale:
        await connection.execute(_TOUCH_IF_STALE, {"id": key_id})
    return Caller(key_id, row.tenant_id, frozenset(row.scopes))


def _new_key() -> tuple[str, str]:
    key_id = "".join(secrets.choice(_LOWER) for _ in range(12))
    start = f"{PREFIX}{key_id}_{''.join(secrets.choice(_LETTERS) for _ in range(32))}"
    return key_id, start + _check(start)


def _check(start: str) -> str:
    """CRC-32 (ISO 3309) in six digits to the base 62."""
    rest, digits = crc32(start.encode()), ""
    for _ in range(6):
        rest, digit = divmod(rest, 62)
        digits = _LETTERS[digit] + digits
    return digits
