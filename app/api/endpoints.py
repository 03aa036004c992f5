"""`/v1/endpoints`: make, look at, change and archive them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, Query, Request
from pydantic import Field
from sqlalchemy.ext.asyncio import AsyncConnection
from starlette.responses import Response

from app.api.etags import IfMatch, is_still
from app.api.guarded_route import GuardedRoute
from app.api.pages import Listed, Paged, answer_page
from app.api.problems import Problem
from app.api.surroundings import caller_of, surroundings_of
from app.api.values import Body, EndpointId, Id, Moment, Name, Reason, Shown, Whole
from app.api.writes import Answer, Write, write_of
from app.backoff import RetryPolicy
from app.endpoint_changes import Outdated, archive_endpoint, change_endpoint, endpoint_with_keys, etag_of
from app.endpoints import create_endpoint
from app.listings import page_of_endpoints

router = APIRouter(route_class=GuardedRoute, tags=["endpoints"])

# Canonical base64 (RFC 4648 section 4) of 24 to 64 bytes.
_OWN_KEY = (
    "^whsec_((?:[A-Za-z0-9+/]{4}){8,20}(?:[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=|[A-Za-z0-9+/][AQgw]==)?"
    "|(?:[A-Za-z0-9+/]{4}){21}(?:[A-Za-z0-9+/][AQgw]==)?)$"
)

Seconds = Annotated[float, Field(strict=True, ge=0, le=604_800)]
Pattern = Annotated[str, Field(pattern=r"^(\*|[!-)+-~]{1,254}(\.\*)?)$", examples=["invoice.*"])]
Url = Annotated[
    str,
    Field(
        min_length=8,
        max_length=2048,
        description="Where to POST: http or https, no user name, password or fragment.",
        examples=["https://example.com/hooks"],
    ),
]
Secret = Annotated[
    str | None,
    Field(
        pattern=_OWN_KEY,
        description="Your own signing secret: `whsec_` and base64 of 24 to 64 bytes. By default one is made.",
    ),
]


class Policy(Body):
    """When failed attempts are made again. Fields that are not given have their defaults, or stay as they are."""

    max_attempts: Annotated[int | None, Field(strict=True, ge=1, le=100, description="5 by default."), Whole] = None
    base_s: Annotated[float | None, Field(strict=True, ge=0, le=86_400, description="10 by default.")] = None
    factor: Annotated[float | None, Field(strict=True, ge=1, le=100, description="4 by default.")] = None
    cap_s: Annotated[float | None, Field(strict=True, ge=0, le=604_800, description="3600 by default.")] = None
    jitter: Annotated[float | None, Field(strict=True, ge=0, le=1, description="0.2 by default.")] = None
    schedule_s: Annotated[
        list[Seconds] | None,
        Field(min_length=1, max_length=100, description="Explicit delays instead of base and factor; null: none."),
    ] = None


class NewEndpoint(Body):
    """Where events are to go."""

    url: Url
    name: Name = ""
    event_types: Annotated[
        list[Pattern] | None,
        Field(min_length=1, max_length=100, description="Exact types, `prefix.*`, or `*`; by default `*`, for all."),
    ] = None
    scheme: Annotated[Literal["standard", "hex"], Field(description="How deliveries are signed.")] = "standard"
    policy: Policy = Policy()
    secret: Secret = None


class EndpointChange(Body):
    """What is given is changed, the rest stays."""

    url: Url | None = None
    name: Name | None = None
    event_types: Annotated[list[Pattern] | None, Field(min_length=1, max_length=100)] = None
    scheme: Literal["standard", "hex"] | None = None
    policy: Policy | None = None


class SigningKey(Shown):
    """A key that signs, without its secret."""

    key_id: str
    created_at: Moment
    expires_at: Moment | None


class EndpointPolicy(Shown):
    """When failed attempts are made again."""

    max_attempts: int
    base_s: float
    factor: float
    cap_s: float
    jitter: float
    schedule_s: list[float] | None


class Endpoint(Shown):
    """Where events go."""

    id: Id
    name: str
    url: str
    event_types: list[str]
    status: Literal["active", "paused", "disabled", "archived"]
    status_reason: str | None
    scheme: Literal["standard", "hex"]
    policy: EndpointPolicy
    version: int
    created_at: Moment
    updated_at: Moment


class EndpointWithKeys(Endpoint):
    """An endpoint, and the keys that sign for it."""

    signing_keys: list[SigningKey]


class CreatedEndpoint(EndpointWithKeys):
    """A new endpoint; the only time that its secret is shown."""

    secret: str | None = Field(description="Shown this once; null when it was yours.")


class EndpointFilters(Paged):
    """Which endpoints are shown."""

    status: Literal["active", "paused", "disabled", "archived"] | None = None


@router.post("/v1/endpoints", operation_id="createEndpoint", status_code=201, response_model=CreatedEndpoint)
async def create(new: NewEndpoint, write: Annotated[Write, Depends(write_of)]) -> Response:
    """Make an endpoint. Its signing secret is in this answer, and never shown again."""
    tenant = str(write.caller.tenant_id)
    policy = RetryPolicy.from_mapping(new.policy.model_dump(exclude_none=True))

    async def work(connection: AsyncConnection) -> Answer:
        made = await create_endpoint(
            connection,
            write.surroundings.keys,
            tenant_id=tenant,
            url=new.url,
            actor=write.caller.actor,
            name=new.name,
            event_types=new.event_types or ["*"],
            scheme=new.scheme,
            policy=policy,
            secret=new.secret,
        )
        found = await endpoint_with_keys(connection, tenant_id=tenant, endpoint_id=made["id"])
        shown = _fields(found) | {"secret": None if new.secret else made["secret"]}
        headers = {"location": f"/v1/endpoints/{made['id']}", "etag": etag_of(found)}
        return Answer(201, CreatedEndpoint.model_validate(shown), headers, secret=True)

    return await write.once(work)


@router.get("/v1/endpoints", operation_id="listEndpoints", response_model=Listed[Endpoint])
async def list_endpoints(request: Request, asked: Annotated[EndpointFilters, Query()]) -> Response:
    """Endpoints, newest first, archived ones too."""
    tenant = str(caller_of(request).tenant_id)
    before = asked.before()
    async with surroundings_of(request).transaction(tenant) as connection:
        page = await page_of_endpoints(
            connection, tenant_id=tenant, status=asked.status, before=before, limit=asked.limit
        )
    page.rows[:] = [_fields(row) for row in page.rows]
    return answer_page(request, Endpoint, asked, page)


@router.get("/v1/endpoints/{endpoint_id}", operation_id="getEndpoint", response_model=EndpointWithKeys)
async def show(
    request: Request,
    endpoint_id: EndpointId,
    if_none_match: Annotated[
        str | None, Header(alias="If-None-Match", description="Answers 304 when this is still its ETag.")
    ] = None,
) -> Response:
    """One endpoint and the keys that sign for it, without secrets."""
    tenant = str(caller_of(request).tenant_id)
    async with surroundings_of(request).transaction(tenant) as connection:
        found = await endpoint_with_keys(connection, tenant_id=tenant, endpoint_id=endpoint_id)
    tag = etag_of(found)
    if is_still(request, tag):
        return Response(status_code=304, headers={"etag": tag})
    return _answer(found)


@router.patch("/v1/endpoints/{endpoint_id}", operation_id="changeEndpoint", response_model=EndpointWithKeys)
async def change(
    endpoint_id: EndpointId,
    wanted: EndpointChange,
    write: Annotated[Write, Depends(write_of)],
    if_match: IfMatch = None,
) -> Response:
    """Change what is given. With If-Match, only if nobody changed it since you looked."""
    changes: dict[str, Any] = wanted.model_dump(exclude_unset=True, exclude={"policy"})
    changes = {name: value for name, value in changes.items() if value is not None}
    if wanted.policy is not None:
        policy = wanted.policy.model_dump(exclude_unset=True)
        changes["policy"] = {n: v for n, v in policy.items() if v is not None or n == "schedule_s"}

    async def work(connection: AsyncConnection) -> Answer:
        try:
            found = await change_endpoint(
                connection,
                tenant_id=str(write.caller.tenant_id),
                endpoint_id=endpoint_id,
                changes=changes,
                if_match=if_match,
                actor=write.caller.actor,
            )
        except Outdated as error:
            raise Problem("INT-412-PRECONDITION-FAILED", str(error)) from error
        return Answer(200, EndpointWithKeys.model_validate(_fields(found)), {"etag": etag_of(found)})

    return await write.once(work)


@router.delete("/v1/endpoints/{endpoint_id}", operation_id="archiveEndpoint", status_code=204, response_class=Response)
async def archive(
    endpoint_id: EndpointId,
    write: Annotated[Write, Depends(write_of)],
    reason: Annotated[Reason | None, Query()] = None,
    if_match: IfMatch = None,
) -> Response:
    """Never call it again. It keeps its history; what still waits for it goes to the dead letters, class `endpoint_archived`."""

    async def work(connection: AsyncConnection) -> Answer:
        try:
            await archive_endpoint(
                connection,
                tenant_id=str(write.caller.tenant_id),
                endpoint_id=endpoint_id,
                if_match=if_match,
                actor=write.caller.actor,
                reason=reason,
            )
        except Outdated as error:
            raise Problem("INT-412-PRECONDITION-FAILED", str(error)) from error
        return Answer(204)

    return await write.once(work)


def _fields(row: dict[str, Any]) -> dict[str, Any]:
    """A stored row, its policy put together."""
    policy = {name: row[f"retry_{name}"] for name in ("base_s", "factor", "cap_s", "jitter", "schedule_s")}
    return row | {"policy": policy | {"max_attempts": row["max_attempts"]}}


def _answer(found: dict[str, Any]) -> Response:
    body = EndpointWithKeys.model_validate(_fields(found)).model_dump_json()
    return Response(body, headers={"etag": etag_of(found)}, media_type="application/json")
