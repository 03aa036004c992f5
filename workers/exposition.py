"""`/metrics` and `/healthz` of one process, on loopback unless a setting opens them further."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog
from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

log = structlog.get_logger(__name__)

#: Ports tried from the configured one upwards: several processes share a machine.
PORTS_TRIED = 100


@asynccontextmanager
async def serve_metrics(
    registry: CollectorRegistry, first_port: int, healthy: Callable[[], bool], *, host: str = "127.0.0.1"
) -> AsyncIterator[int | None]:
    """Serve until the block ends; yields the port, or None when no port was free (logged, and not worth stopping for).

    Args:
        registry: what `/metrics` shows.
        first_port: first port tried; 0 lets the system choose.
        healthy: `/healthz` answers 200 while it is true, else 503.
        host: address listened on.
    """

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})

    async def healthz(_: web.Request) -> web.Response:
        ok = healthy()
        return web.json_response({"status": "ok" if ok else "stalled"}, status=200 if ok else 503)

    application = web.Application()
    application.add_routes([web.get("/metrics", metrics), web.get("/healthz", healthz)])
    runner = web.AppRunner(application, access_log=None, handle_signals=False, shutdown_timeout=1)
    await runner.setup()
    try:
        yield await _listen(runner, host, first_port)
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, host: str, first_port: int) -> int | None:
    for port in [0] if first_port == 0 else range(first_port, min(first_port + PORTS_TRIED, 65536)):
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError:
            continue
        bound = runner.addresses[0][1]
        log.info("metrics.serving", port=bound)
        return int(bound)
    log.warning("metrics.no_port", first_port=first_port, tried=PORTS_TRIED)
    return None
