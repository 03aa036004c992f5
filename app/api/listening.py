"""Runs the API on a socket until SIGTERM or SIGINT; what is under way is finished first."""

from __future__ import annotations

import signal
from ipaddress import ip_address

import redis.asyncio
import structlog
import uvicorn
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from app import failpoints
from app.api.application import make_application
from app.api.surroundings import Surroundings
from app.api.wire import ProblemProtocol
from app.config import Settings
from app.db import make_engine
from app.logs import configure_logging
from app.sealing import SecretKeys

log = structlog.get_logger(__name__)


def run_api(settings: Settings, database_url: str, redis_url: str, keys: SecretKeys) -> None:
    """Serve until a signal comes."""
    configure_logging(settings.log_level, process="api")
    failpoints.arm(settings.failpoints, database_url)
    engine = make_engine(database_url, name="api", pool_size=settings.database_pool_size)
    client = redis.asyncio.Redis.from_url(
        redis_url, socket_timeout=1, socket_connect_timeout=1, retry=Retry(NoBackoff(), 0), max_connections=2
    )
    if not is_loopback(settings.api_host):
        log.warning("api.open", host=settings.api_host, detail="plain HTTP beyond this machine: put TLS in front of it")
    server = uvicorn.Server(
        uvicorn.Config(
            make_application(Surroundings(settings, engine, keys, client.ping)),
            host=settings.api_host,
            port=settings.api_port,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=10,
            h11_max_incomplete_event_size=64 * 1024,
            http=ProblemProtocol,
            ws="none",
            lifespan="on",
        )
    )
    # uvicorn raises the signal that ended it once more for whoever had a handler before: here, nobody.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    log.info("api.serving", host=settings.api_host, port=settings.api_port)
    server.run()


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
