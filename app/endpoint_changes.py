"""Endpoints after they were made: changed by somebody who saw their newest version, and archived for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.audit import write_audit
from app.backoff import RetryPolicy
from app.endpoint_url import validate_endpoint_url
from app.endpoints import free_parked
from app.errors import Conflict, InvalidInput, NotFound
from app.subscription import PATTERN

#: Field of the retry policy -> its column.
POLICY_COLUMNS: Final = {
    "max_attempts": "max_attempts",
    "base_s": "retry_base_s",
    "factor": "retry_factor",
    "cap_s": "retry_cap_s",
    "jitter": "retry_jitter",
    "schedule_s": "retry_schedule_s",
}

_COLUMNS = """
    id, name, url, event_types, status, status_reason, scheme, max_attempts, retry_base_s, retry_factor, retry_cap_s,
    retry_jitter, retry_schedule_s, version, created_at, updated_at
"""

_SHOW = text(f"SELECT {_COLUMNS} FROM endpoints WHERE tenant_id = :tenant_id AND id = :id")  # noqa: S608 - a constant

_LOCK = text(f"SELECT {_COLUMNS} FROM endpoints WHERE tenant_id = :tenant_id AND id = :id FOR UPDATE")  # noqa: S608

_SIGNING = text(
    """
    SELECT key_id, created_at, expires_at FROM endpoint_secrets
    WHERE endpoint_id = :id AND (expires_at IS NULL OR expires_at > now()) ORDER BY created_at DESC, id DESC
    """
)

_CHANGE_IF_NOT_ARCHIVED = text(
    """
    UPDATE endpoints
    SET name = :name, url = :url, event_types = CAST(:event_types AS text[]), scheme = :scheme,
        max_attempts = :max_attempts, retry_base_s = :retry_base_s, retry_factor = :retry_factor,
        retry_cap_s = :retry_cap_s, retry_jitter = :retry_jitter,
        retry_schedule_s = CAST(:retry_schedule_s AS double precision[]), version = version + 1, updated_at = now()
    WHERE tenant_id = :tenant_id AND id = :id AND status <> 'archived'
    RETURNING version
    """
)

_ARCHIVE_IF_NOT_YET = text(
    """
    UPDATE endpoints SET status = 'archived', status_reason = :reason, version = version + 1, updated_at = now()
    WHERE tenant_id = :tenant_id AND id = :id AND status <> 'archived'
    RETURNING version
    """
)


class Outdated(Conflict):
    """It was changed since the caller looked at it; nothing was changed."""


def etag_of(endpoint: Mapping[str, Any]) -> str:
    """Mark of what an endpoint is now: other after each change, and when one of its keys has stopped signing."""
    return f'"{endpoint["version"]}-{len(endpoint["signing_keys"])}"'


async def endpoint_with_keys(
    connection: AsyncConnection, *, tenant_id: str, endpoint_id: UUID, locked: bool = False
) -> dict[str, Any]:
    """One endpoint and the keys that sign for it, without their secrets.

    Raises:
        NotFound: the tenant has none with this id.
    """
    statement = _LOCK if locked else _SHOW
    row = (await connection.execute(statement, {"tenant_id": tenant_id, "id": endpoint_id})).one_or_none()
    if row is None:
        raise NotFound(f"tenant {tenant_id!r} has no endpoint {endpoint_id}")
    signing = await connection.execute(_SIGNING, {"id": endpoint_id})
    return dict(row._mapping) | {"signing_keys": [dict(key._mapping) for key in signing]}


async def change_endpoint(
    connection: AsyncConnection,
    *,
    tenant_id: str,
    endpoint_id: UUID,
    changes: Mapping[str, Any],
    if_match: Sequence[str] | None,
    actor: str,
) -> dict[str, Any]:
    """Change some fields, in the caller's transaction, audited; returns what it is then.

    Args:
        connection: of the caller's transaction.
        tenant_id: whose.
        endpoint_id: which.
        changes: of `name`, `url`, `event_types`, `scheme` and `policy` (fields of `RetryPolicy`; those not given stay).
        if_match: the marks of which one must still hold; None: whatever it is now.
        actor: who.

    Raises:
        InvalidInput: names the field.
        NotFound: the tenant has none with this id.
        Outdated: none of the marks holds.
        Conflict: it is archived.
    """
    now = await endpoint_with_keys(connection, tenant_id=tenant_id, endpoint_id=endpoint_id, locked=True)
    require_match(now, if_match)
    if now["status"] == "archived":
        raise Conflict(f"endpoint {endpoint_id} is archived and cannot be changed any more")
    wanted = {name: now[name] for name in ("name", "url", "event_types", "scheme", *POLICY_COLUMNS.values())}
    wanted |= {name: changes[name] for name in ("name", "url", "event_types", "scheme") if name in changes}
    if "url" in changes:
        wanted["url"] = validate_endpoint_url(changes["url"])
    for pattern in wanted["event_types"]:
        if not PATTERN.fullmatch(pattern):
            raise InvalidInput(f"event_types: {pattern!r} is not an exact type, 'prefix.*' or '*'")
    wanted |= _policy(now, changes.get("policy", {}))
    changed = {name for name in wanted if wanted[name] != now[name]}
    if changed:
        fields = wanted | {"tenant_id": tenant_id, "id": endpoint_id}
        await connection.execute(_CHANGE_IF_NOT_ARCHIVED, fields)
        await write_audit(
            connection,
            tenant_id=tenant_id,
            action="endpoint.changed",
            subject=endpoint_id,
            before={name: _told(name, now[name]) for name in sorted(changed)},
            after={name: _told(name, wanted[name]) for name in sorted(changed)},
            actor=actor,
        )
    return await endpoint_with_keys(connection, tenant_id=tenant_id, endpoint_id=endpoint_id)


async def archive_endpoint(
    connection: AsyncConnection,
    *,
    tenant_id: str,
    endpoint_id: UUID,
    if_match: Sequence[str] | None,
    actor: str,
    reason: str | None,
) -> int:
    """Never call it again; it keeps its history, and what waits for it goes to the dead letters. Audited. Twice is once.

    What is held back is due at once, and what waits for a retry when that is due: a worker that finds its endpoint archived
    gives it up, class `endpoint_archived`. An attempt that is under way ends as it ends.

    Returns:
        How many deliveries were held back for it, and are on their way to the dead letters.

    Raises:
        NotFound: the tenant has none with this id.
        Outdated: none of the marks holds.
    """
    now = await endpoint_with_keys(connection, tenant_id=tenant_id, endpoint_id=endpoint_id, locked=True)
    require_match(now, if_match)
    where = {"tenant_id": tenant_id, "id": endpoint_id, "reason": reason}
    archived: Row[Any] | None = (await connection.execute(_ARCHIVE_IF_NOT_YET, where)).one_or_none()
    if archived is None:
        return 0
    given_up = await free_parked(connection, endpoint_id)
    await write_audit(
        connection,
        tenant_id=tenant_id,
        action="endpoint.archived",
        subject=endpoint_id,
        before={"status": now["status"]},
        after={"status": "archived", "deliveries_given_up": given_up},
        actor=actor,
        reason=reason,
    )
    return given_up


def require_match(endpoint: Mapping[str, Any], if_match: Sequence[str] | None) -> None:
    """Raise Outdated when marks are given and none of them is the endpoint's (RFC 9110 section 13.1.1)."""
    if if_match is not None and "*" not in if_match and etag_of(endpoint) not in if_match:
        raise Outdated(f"the endpoint is {etag_of(endpoint)} by now; read it again")


def _policy(now: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of the policy after the changes, checked."""
    fields = {name: now[column] for name, column in POLICY_COLUMNS.items()} | dict(changes)
    policy = RetryPolicy.from_mapping(fields)
    schedule = None if policy.schedule_s is None else list(policy.schedule_s)
    return {column: getattr(policy, name) for name, column in POLICY_COLUMNS.items()} | {"retry_schedule_s": schedule}


def _told(name: str, value: Any) -> Any:
    """A value as audit trails show it: of a URL, whose path may be a credential, only where it leads."""
    return "{0.scheme}://{0.netloc}".format(urlsplit(value)) if name == "url" else value
