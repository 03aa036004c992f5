"""Celery on Redis: one task per delivery, acknowledged late, its own retries with backoff and jitter."""

from __future__ import annotations

import os
from functools import cache

import requests
from celery import Celery
from celery.signals import worker_ready
from psycopg_pool import ConnectionPool
from requests.adapters import HTTPAdapter
from webhooks import (
    BACKOFF_MAX_S,
    BACKOFF_MIN_S,
    CONCURRENCY,
    DATABASE_URL,
    POOL_SIZE,
    RETRIES,
    TIMEOUT_S,
    headers,
    record,
    require_delivered,
)

app = Celery("tasks", broker=os.environ["PEER_REDIS_URL"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=int(os.environ.get("PEER_PREFETCH", "4")),
    worker_cancel_long_running_tasks_on_connection_loss=True,
    broker_connection_retry_on_startup=True,
    # Every thread acknowledges over a connection of its own; with the default of 10 some acknowledgements are lost.
    broker_transport_options={"visibility_timeout": 3600, "max_connections": CONCURRENCY + 10},
)


@cache
def pool() -> ConnectionPool:
    """This process's connections, made after the fork."""
    return ConnectionPool(
        DATABASE_URL, min_size=1, max_size=min(POOL_SIZE, CONCURRENCY), kwargs={"autocommit": True}, open=True
    )


@cache
def session() -> requests.Session:
    """This process's HTTP session; urllib3's pool beneath it is thread-safe."""
    made = requests.Session()
    made.trust_env = False  # looking for proxies and .netrc at every request is a tenth of the work
    made.mount("http://", HTTPAdapter(pool_connections=100, pool_maxsize=CONCURRENCY))
    return made


@app.task(
    autoretry_for=(Exception,),
    max_retries=RETRIES,
    retry_backoff=BACKOFF_MIN_S,
    retry_backoff_max=BACKOFF_MAX_S,
    retry_jitter=True,
)
def deliver(delivery_id: str, event_id: str, url: str, secret: str, payload: str) -> None:
    body = payload.encode()
    try:
        status: int | None = (
            session().post(url, data=body, headers=headers(event_id, secret, body), timeout=TIMEOUT_S).status_code
        )
    except requests.RequestException:
        status = None
    with pool().connection() as connection:
        connection.execute(*record(delivery_id, status))
    require_delivered(status)


@worker_ready.connect
def tell(**_: object) -> None:
    print("worker is ready", flush=True)
