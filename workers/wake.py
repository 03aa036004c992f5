"""How an idle poller sleeps without missing a commit, and without a NOTIFY in every producer's transaction.

A poller that is about to sleep arms itself: it takes an advisory lock exclusively. The outbox's insert trigger tries to take
the same lock, shared: if it cannot, somebody wants to be woken, and it notifies. Armed, a poller may wake, work and sleep
again; a busy one disarms, so that busy producers never notify. Of several pollers one is the sleeper on duty; the others wake
by their slow poll. Both locks belong to one connection of their own and end with it.
"""

from __future__ import annotations

import asyncio

import psycopg
import structlog

from app.db import KEEPALIVE

log = structlog.get_logger(__name__)

#: "home" in ASCII; the same number stands in the trigger function `homing_wake_poller`.
SLEEPING_LOCK = 1752132965
#: Held by the sleeper on duty for as long as it lives.
DUTY_LOCK = 1752132967
CHANNEL = "homing_wake"
#: First pause, in seconds, while a producer's transaction is open and the lock cannot be had; doubles up to the slow poll.
FIRST_DOZE_S = 0.01


class Sleeper:
    """Used by one poller: `arm`, look for work once more, then `wait`; `disarm` when there is much to do."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._connection: psycopg.AsyncConnection | None = None
        self._on_duty = False
        self._armed = False

    async def arm(self) -> bool:
        """Take the sleeping lock; from now on every commit to the outbox notifies.

        Returns:
            False when it could not be had: a producer's transaction is open, another poller is on duty, or Postgres is
            away. The caller polls again after a doze.
        """
        try:
            connection = await self._connected()
            if not self._on_duty:
                self._on_duty = await self._try_lock(connection, DUTY_LOCK)
                if not self._on_duty:
                    return False
            if not self._armed:
                self._armed = await self._try_lock(connection, SLEEPING_LOCK)
            return self._armed
        except psycopg.Error as error:
            await self._lost(error)
            return False

    @property
    def on_duty(self) -> bool:
        """Whether this poller is the one that commits wake."""
        return self._on_duty

    @property
    def armed(self) -> bool:
        """Whether every commit to the outbox notifies, and has since `arm`."""
        return self._armed

    async def wait(self, timeout_s: float) -> bool:
        """Sleep until a commit to the outbox notifies, or the time is over. Armed only; stays armed.

        Returns:
            True when a commit has notified, now or since the last `wait`.
        """
        if self._connection is None:
            await asyncio.sleep(timeout_s)
            return False
        woken = False
        try:
            async for _ in self._connection.notifies(timeout=timeout_s, stop_after=1):
                woken = True
        except psycopg.Error as error:
            await self._lost(error)
        return woken

    async def disarm(self) -> None:
        """Give the sleeping lock back: commits notify no more. Does nothing when it is not armed."""
        if self._connection is None or not self._armed:
            return
        self._armed = False
        try:
            await self._connection.execute("SELECT pg_advisory_unlock(%s)", (SLEEPING_LOCK,))
        except psycopg.Error as error:
            await self._lost(error)

    async def close(self) -> None:
        """Close the connection; its locks go with it."""
        connection, self._connection = self._connection, None
        self._on_duty = self._armed = False
        if connection is not None:
            await connection.close()

    async def _connected(self) -> psycopg.AsyncConnection:
        if self._connection is None or self._connection.closed:
            self._on_duty = self._armed = False
            self._connection = await psycopg.AsyncConnection.connect(
                self._database_url, autocommit=True, application_name="homing-sleeper", connect_timeout=5, **KEEPALIVE
            )
            await self._connection.execute(f"LISTEN {CHANNEL}")
        return self._connection

    @staticmethod
    async def _try_lock(connection: psycopg.AsyncConnection, key: int) -> bool:
        row = await (await connection.execute("SELECT pg_try_advisory_lock(%s)", (key,))).fetchone()
        return bool(row and row[0])

    async def _lost(self, error: psycopg.Error) -> None:
        log.warning("sleeper.connection_lost", error=type(error).__name__)
        await self.close()
