"""`/livez`, `/readyz` and `/metrics`: outside `/v1`, without a key, and without anybody's data."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Literal

import structlog
from alembic.runtime.migration import MigrationContext
from fastapi import APIRouter, Request
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic import BaseModel, Field
from sqlalchemy import Connection
from starlette.responses import Response

from app.api.problems import Problem
from app.api.surroundings import surroundings_of
from app.migrate import head_revision

log = structlog.get_logger(__name__)

router = APIRouter(tags=["health"])

#: Seconds that one dependency has to answer.
PATIENCE_S = 2.0


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Ready(BaseModel):
    """What the API needs, and how it is."""

    status: Literal["ok", "degraded"] = Field(
        description="degraded: requests are served, but something is not as it should be."
    )
    postgres: Literal["up"] = "up"
    schema_revision: str
    redis: Literal["up", "away", "not used"] = Field(
        description="Away: what is written waits in Postgres until it is back."
    )
    row_level_security: bool


@router.get("/livez", operation_id="getLiveness", response_model=Alive)
async def livez() -> Response:
    """Whether the process answers; looks at nothing else."""
    return Response(Alive().model_dump_json(), media_type="application/json")


@router.get("/readyz", operation_id="getReadiness", response_model=Ready)
async def readyz(request: Request) -> Response:
    """Whether requests can be served: Postgres and its schema. Without Redis they can: it is degraded, not down."""
    surroundings = surroundings_of(request)
    try:
        async with asyncio.timeout(PATIENCE_S), surroundings.engine.connect() as connection:
            at = await connection.run_sync(_revision)
            walled = await surroundings.find_wall(connection)
    except TimeoutError:
        raise Problem("INT-503-DEPENDENCY-UNAVAILABLE", "Postgres does not answer.") from None
    if at != (head := _head()):
        raise Problem(
            "INT-503-DEPENDENCY-UNAVAILABLE", f"The schema is at {at}, this program knows {head}: run `homing migrate`."
        )
    redis: Literal["up", "away", "not used"] = "not used"
    if surroundings.ping_redis is not None:
        try:
            async with asyncio.timeout(PATIENCE_S):
                await surroundings.ping_redis()
            redis = "up"
        except Exception as error:  # whatever it is, the API works without it
            log.warning("api.redis_away", error=type(error).__name__)
            redis = "away"
    status: Literal["ok", "degraded"] = "ok" if redis != "away" and walled else "degraded"
    body = Ready(status=status, schema_revision=at, redis=redis, row_level_security=walled)
    return Response(body.model_dump_json(), media_type="application/json")


@router.get("/metrics", operation_id="getMetrics", response_class=Response)
async def metrics(request: Request) -> Response:
    """Requests by route, method and status, and how long they took, for Prometheus."""
    return Response(generate_latest(surroundings_of(request).registry), headers={"content-type": CONTENT_TYPE_LATEST})


@cache
def _head() -> str:
    return head_revision()


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()
