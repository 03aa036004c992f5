"""Puts the API together."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app import __version__
from app.api import (
    audit,
    dead_letters,
    deliveries,
    endpoint_actions,
    endpoints,
    events,
    health,
    keys,
    recovery,
    replays,
    tenants,
)
from app.api.description import describe, openapi_of
from app.api.envelope import Envelope
from app.api.problems import Problem, answer_error
from app.api.surroundings import Surroundings
from app.errors import HomingError
from app.idempotency import forget_old

log = structlog.get_logger(__name__)

#: Seconds between two rounds of forgetting old answers.
FORGET_EVERY_S = 600.0

ROUTERS = (
    events.router,
    endpoints.router,
    endpoint_actions.router,
    deliveries.router,
    recovery.router,
    dead_letters.router,
    replays.router,
    audit.router,
    tenants.router,
    keys.router,
    health.router,
)
#: Errors that mean something to a client; `Exception` is the net under them.
EXPECTED: tuple[type[Exception], ...] = (
    Problem,
    HomingError,
    HTTPException,
    RequestValidationError,
    ValidationError,
    SQLAlchemyError,
    OSError,
    Exception,
)


def make_application(surroundings: Surroundings) -> FastAPI:
    """The ASGI application; its lifespan forgets old answers, everything else is done for requests only."""
    application = _with_routes()
    application.state.surroundings = surroundings
    for kind in EXPECTED:
        application.add_exception_handler(kind, answer_error)
    application.add_exception_handler(405, _answer_other_method)
    application.add_middleware(Envelope, registry=surroundings.registry)
    describe(application)
    return application


def openapi_document() -> str:
    """The API's description as `docs/openapi.json` has it; no server is needed."""
    return json.dumps(openapi_of(_with_routes()), indent=1, ensure_ascii=False) + "\n"


async def _answer_other_method(request: Request, error: Exception) -> Response:
    """405 with all methods that the path has: the framework knows of those of one route only."""
    allowed: set[str] = set()
    for router in ROUTERS:
        for route in router.routes:
            if isinstance(route, APIRoute) and route.path_regex.match(request.scope["path"]):
                allowed |= route.methods or set()
    return await answer_error(request, HTTPException(405, headers={"allow": ", ".join(sorted(allowed))}))


def _with_routes() -> FastAPI:
    application = FastAPI(
        title="Homing",
        version=__version__,
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    for router in ROUTERS:
        application.include_router(router)
    return application


@asynccontextmanager
async def _lifespan(application: FastAPI) -> AsyncIterator[None]:
    forgetting = asyncio.create_task(_keep_forgetting(application.state.surroundings))
    try:
        yield
    finally:
        forgetting.cancel()
        with suppress(asyncio.CancelledError):
            await forgetting


async def _keep_forgetting(surroundings: Surroundings) -> None:
    while True:
        try:
            async with surroundings.engine.begin() as connection:
                again = await forget_old(connection)
        except (SQLAlchemyError, OSError) as error:
            log.warning("api.forgetting_failed", error=type(error).__name__)
            again = 0
        if not again:
            await asyncio.sleep(FORGET_EVERY_S)
