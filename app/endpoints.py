"""Endpoints: made, paused, resumed and given new secrets by operators; loaded, with their signing keys, by workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from app.audit import write_audit
from app.backoff import RetryPolicy
from app.endpoint_url import validate_endpoint_url
from app.errors import Conflict, InvalidInput, NotFound
from app.sealing import SecretKeys
from app.signing import SigningKey, new_secret, parse_secret
from app.subscription import PATTERN


@dataclass(frozen=True, slots=True)
class LoadedEndpoint:
    """What a worker needs to call an endpoint."""

    id: UUID
    version: int
    url: str
    scheme: str
    policy: RetryPolicy
    keys: tuple[SigningKey, ...]
    """Newest first; more than one while a rotation overlaps."""
    keys_until: datetime | None = None
    """When the first of the keys must stop signing, by the database's clock; None: no key is to be replaced."""


#: How long keys may overlap in a rotation, at most.
OVERLAP_MAX = timedelta(days=7)
#: Keys that may sign at once: each adds a signature to every request.
SIGNING_MAX = 5


_CREATE = text(
    """
    INSERT INTO endpoints (tenant_id, name, url, event_types, scheme, max_attempts, retry_base_s, retry_factor,
                           retry_cap_s, retry_jitter, retry_schedule_s)
    VALUES (:tenant_id, :name, :url, CAST(:event_types AS text[]), :scheme, :max_attempts, :base_s, :factor, :cap_s,
            :jitter, CAST(:schedule_s AS double precision[]))
    RETURNING id, version, created_at
    """
)

_ADD_SECRET = text(
    """
    INSERT INTO endpoint_secrets (id, endpoint_id, key_id, sealed)
    VALUES (:id, :endpoint_id, :key_id, :sealed)
    """
)

_SET_STATUS_IF = text(
    """
    UPDATE endpoints SET status = :status, status_reason = :reason, version = version + 1, updated_at = now()
    WHERE tenant_id = :tenant_id AND id = :id AND status = ANY(CAST(:expected AS text[]))
    RETURNING id
    """
)

_UNPARK = text(
    """
    UPDATE deliveries SET due_at = now()
    WHERE endpoint_id = :id AND due_at = 'infinity' AND state IN ('pending', 'retry_scheduled', 'replayed')
    """
)

_STATUS = text("SELECT status FROM endpoints WHERE tenant_id = :tenant_id AND id = :id")

_LOCK_ENDPOINT = text("SELECT status FROM endpoints WHERE tenant_id = :tenant_id AND id = :id FOR UPDATE")

# A key that is already on its way out keeps its earlier end.
_EXPIRE_SIGNING = text(
    """
    UPDATE endpoint_secrets
    SET expires_at = least(expires_at, now() + CAST(:overlap AS interval))
    WHERE endpoint_id = :id AND (expires_at IS NULL OR expires_at > now())
    RETURNING key_id, expires_at
    """
)

_BUMP_VERSION = text("UPDATE endpoints SET version = version + 1, updated_at = now() WHERE id = :id")

_LOAD = text(
    """
    SELECT p.id, p.version, p.url, p.scheme, p.max_attempts, p.retry_base_s, p.retry_factor, p.retry_cap_s,
           p.retry_jitter, p.retry_schedule_s, s.id AS secret_id, s.key_id, s.sealed, s.expires_at
    FROM endpoints p
    LEFT JOIN endpoint_secrets s ON s.endpoint_id = p.id AND (s.expires_at IS NULL OR s.expires_at > now())
    WHERE p.id = ANY(CAST(:ids AS uuid[]))
    ORDER BY p.id, s.created_at DESC, s.id DESC
    """
)


def secret_context(secret_id: UUID) -> str:
    """What a sealed secret is bound to: the identity of its row."""
    return f"endpoint_secrets/{secret_id}"


async def create_endpoint(
    connection: AsyncConnection,
    keys: SecretKeys,
    *,
    tenant_id: str,
    url: str,
    actor: str,
    name: str = "",
    event_types: Sequence[str] = ("*",),
    scheme: str = "standard",
    policy: RetryPolicy | None = None,
    secret: str | None = None,
) -> dict[str, Any]:
    """Make an endpoint and its first secret, in the caller's transaction, audited.

    Args:
        keys: what the secret is sealed with.
        secret: `whsec_` and base64 of 24 to 64 bytes; made here when absent.
        event_types: 1 to 100 patterns: exact types, `prefix.*`, or `*`.

    Returns:
        The endpoint, with `secret`: the only time that it is shown.

    Raises:
        InvalidInput: names the field. Nothing was made.
        NotFound: there is no such tenant.
    """
    if scheme not in ("standard", "hex"):
        raise InvalidInput(f"scheme: {scheme!r} is not one of standard, hex")
    if not 1 <= len(event_types) <= 100:
        raise InvalidInput("event_types: give 1 to 100 patterns")
    for pattern in event_types:
        if not PATTERN.fullmatch(pattern):
            raise InvalidInput(f"event_types: {pattern!r} is not an exact type, 'prefix.*' or '*'")
    if len(name) > 200 or any(ord(c) < 32 for c in name):
        raise InvalidInput("name: at most 200 characters, none of them a control character")
    policy = policy or RetryPolicy()
    secret = secret or new_secret()
    plain = parse_secret(secret)
    fields = {
        "tenant_id": tenant_id,
        "name": name,
        "url": validate_endpoint_url(url),
        "event_types": list(event_types),
        "scheme": scheme,
        "max_attempts": policy.max_attempts,
        "base_s": policy.base_s,
        "factor": policy.factor,
        "cap_s": policy.cap_s,
        "jitter": policy.jitter,
        "schedule_s": None if policy.schedule_s is None else list(policy.schedule_s),
    }
    try:
        row = (await connection.execute(_CREATE, fields)).one()
    except IntegrityError as error:
        raise NotFound(f"tenant {tenant_id!r} does not exist; make it first") from error
    key_id = await _add_secret(connection, keys, row.id, plain)
    await write_audit(
        connection,
        tenant_id=tenant_id,
        action="endpoint.created",
        subject=row.id,
        actor=actor,
        after={"status": "active"},
    )
    return {"id": row.id} | fields | {"status": "active", "key_id": key_id, "secret": secret}


async def rotate_secret(
    connection: AsyncConnection,
    keys: SecretKeys,
    *,
    tenant_id: str,
    endpoint_id: UUID,
    actor: str,
    reason: str | None,
    overlap: timedelta = timedelta(hours=24),
    secret: str | None = None,
) -> dict[str, Any]:
    """Give an endpoint a new signing secret, in the caller's transaction, audited.

    The old ones sign beside it until the overlap ends; attempts that start later are signed by the new one only.

    Args:
        overlap: 0 to 7 days.
        secret: `whsec_` and base64 of 24 to 64 bytes; made here when absent.

    Returns:
        `id`, `key_id` and `secret` of the new key (shown this once), and `expiring`, the old keys with their ends.

    Raises:
        InvalidInput: the overlap or the secret is not acceptable.
        NotFound: the tenant has no such endpoint.
        Conflict: it is archived, or five keys would sign already.
    """
    if not timedelta() <= overlap <= OVERLAP_MAX:
        raise InvalidInput(f"overlap: give 0 to {OVERLAP_MAX.days} days")
    secret = secret or new_secret()
    plain = parse_secret(secret)
    status = (
        await connection.execute(_LOCK_ENDPOINT, {"tenant_id": tenant_id, "id": endpoint_id})
    ).scalar_one_or_none()
    if status is None:
        raise NotFound(f"tenant {tenant_id!r} has no endpoint {endpoint_id}")
    if status == "archived":
        raise Conflict(f"endpoint {endpoint_id} is archived and is not called any more")
    old = await connection.execute(_EXPIRE_SIGNING, {"id": endpoint_id, "overlap": overlap})
    expiring = sorted(({"key_id": r.key_id, "expires_at": r.expires_at} for r in old), key=lambda r: r["expires_at"])
    if overlap and len(expiring) >= SIGNING_MAX:
        raise Conflict(
            f"endpoint {endpoint_id} has {len(expiring)} keys that sign, and may have {SIGNING_MAX}: "
            f"wait until {expiring[0]['expires_at']:%Y-%m-%d %H:%M:%SZ}, or end them all now with an overlap of 0"
        )
    key_id = await _add_secret(connection, keys, endpoint_id, plain)
    await connection.execute(_BUMP_VERSION, {"id": endpoint_id})
    before = {"key_ids": [row["key_id"] for row in expiring]}
    after = {"key_id": key_id, "overlap_s": overlap.total_seconds()}
    await write_audit(
        connection,
        tenant_id=tenant_id,
        action="endpoint.secret_rotated",
        subject=endpoint_id,
        actor=actor,
        before=before,
        after=after,
        reason=reason,
    )
    return {"id": endpoint_id, "key_id": key_id, "secret": secret, "expiring": expiring}


async def pause_endpoint(
    connection: AsyncConnection, *, tenant_id: str, endpoint_id: UUID, actor: str, reason: str | None
) -> None:
    """Hold an endpoint's deliveries back. New events still fan out to it and wait; attempts under way finish.

    Raises:
        NotFound: the tenant has no such endpoint.
        Conflict: it is not active.
    """
    await _move(connection, tenant_id, endpoint_id, ["active"], "paused", actor, reason)


async def resume_endpoint(
    connection: AsyncConnection, *, tenant_id: str, endpoint_id: UUID, actor: str, reason: str | None
) -> int:
    """Make a paused or disabled endpoint active; what waited for it is due at once.

    Returns:
        How many waiting deliveries were freed.

    Raises:
        NotFound: the tenant has no such endpoint.
        Conflict: it is active or archived.
    """
    await _move(connection, tenant_id, endpoint_id, ["paused", "disabled"], "active", actor, reason)
    return await free_parked(connection, endpoint_id)


async def free_parked(connection: AsyncConnection, endpoint_id: UUID) -> int:
    """Make everything that waits for an endpoint due now, after its status has changed; returns how many."""
    freed = (await connection.execute(_UNPARK, {"id": endpoint_id})).rowcount
    await connection.execute(text("SELECT pg_notify('homing_wake', '')"))
    return freed


async def load_endpoints(
    connection: AsyncConnection, keys: SecretKeys, ids: Sequence[UUID]
) -> dict[UUID, LoadedEndpoint]:
    """Load endpoints with their signing keys, decrypted, newest first; unknown ids are left out."""
    loaded: dict[UUID, LoadedEndpoint] = {}
    for r in await connection.execute(_LOAD, {"ids": list(ids)}):
        key: tuple[SigningKey, ...] = () if r.sealed is None else (_open(keys, r.secret_id, r.key_id, bytes(r.sealed)),)
        until: datetime | None = r.expires_at
        if (known := loaded.get(r.id)) is not None:
            key = known.keys + key
            until = min(filter(None, (known.keys_until, until)), default=None)
        loaded[r.id] = LoadedEndpoint(
            id=r.id,
            version=r.version,
            url=r.url,
            scheme=r.scheme,
            policy=RetryPolicy(
                max_attempts=r.max_attempts,
                base_s=r.retry_base_s,
                factor=r.retry_factor,
                cap_s=r.retry_cap_s,
                jitter=r.retry_jitter,
                schedule_s=None if r.retry_schedule_s is None else tuple(r.retry_schedule_s),
            ),
            keys=key,
            keys_until=until,
        )
    return loaded


async def _add_secret(connection: AsyncConnection, keys: SecretKeys, endpoint_id: UUID, plain: bytes) -> str:
    secret_id: UUID = (await connection.execute(text("SELECT homing_uuid7()"))).scalar_one()
    key_id = "k" + secret_id.hex[-12:]
    sealed = keys.seal(plain, secret_context(secret_id))
    await connection.execute(
        _ADD_SECRET, {"id": secret_id, "endpoint_id": endpoint_id, "key_id": key_id, "sealed": sealed}
    )
    return key_id


def _open(keys: SecretKeys, secret_id: UUID, key_id: str, sealed: bytes) -> SigningKey:
    return SigningKey(key_id, keys.open(sealed, secret_context(secret_id)))


async def _move(
    connection: AsyncConnection,
    tenant_id: str,
    endpoint_id: UUID,
    expected: list[str],
    status: str,
    actor: str,
    reason: str | None,
) -> None:
    where = {"tenant_id": tenant_id, "id": endpoint_id}
    before = (await connection.execute(_STATUS, where)).scalar_one_or_none()
    if before is None:
        raise NotFound(f"tenant {tenant_id!r} has no endpoint {endpoint_id}")
    moved = await connection.execute(_SET_STATUS_IF, where | {"expected": expected, "status": status, "reason": reason})
    if moved.one_or_none() is None:
        raise Conflict(f"endpoint {endpoint_id} is {before}; it must be {' or '.join(expected)} to become {status}")
    await write_audit(
        connection,
        tenant_id=tenant_id,
        action=f"endpoint.{status}",
        subject=endpoint_id,
        actor=actor,
        before={"status": before},
        after={"status": status},
        reason=reason,
    )
