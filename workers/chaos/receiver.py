"""The receivers, as a process of their own: log every request before it is answered, then play what the path says.

Run as `python -m workers.chaos.receiver FILE`. One line of JSON per request into FILE when it has arrived, and one more with
the status once it was answered. Standard input takes commands, a line of JSON each, and each is answered by one line:
`{"script": PATH, "play": NAME, ...}` and `{"listen": NAME, "at_accept": ..., "certificate": ...}` (answers its port).
A script with `times: N` is played for the first N requests of each webhook-id; after them it is 200.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import ssl
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from workers.chaos.behaviours import BEHAVIOURS, SENT_FIRST, Connection, Script

#: A fatal alert, protocol_version; RFC 8446, section 6.
PROTOCOL_VERSION_ALERT = b"\x15\x03\x01\x00\x02\x02\x46"
_KEPT = ("webhook-", "x-webhook-")


class Receiver:
    """Every listener of the process, with one log and one set of scripts."""

    def __init__(self, log: TextIO) -> None:
        self._log = log
        self._scripts: dict[str, Script] = {}
        self._played: Counter[tuple[str, str]] = Counter()
        self._connections = 0
        self._requests = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []

    async def command(self, wanted: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command; its answer."""
        if "script" in wanted:
            self._scripts[wanted["script"]] = wanted
            return {"done": True}
        return {"port": await self._listen(wanted)}

    async def _listen(self, wanted: dict[str, Any]) -> int:
        tls = _tls(wanted) if "certificate" in wanted else None

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._connections += 1
            task = asyncio.create_task(self._serve(Connection(self._connections, reader, writer), wanted))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls, backlog=1024)
        self._servers.append(server)
        return int(server.sockets[0].getsockname()[1])

    async def _serve(self, connection: Connection, listener: dict[str, Any]) -> None:
        try:
            if listener.get("at_accept") == "reset":
                connection.reset()
            elif listener.get("at_accept") == "hang":
                await connection.gone()
                return
            elif listener.get("at_accept") == "tls_alert":
                # What a server that knows nothing newer than TLS 1.0 says to a client that does not go below 1.2.
                await connection.reader.read(65536)
                await connection.send(PROTOCOL_VERSION_ALERT)
                return
            while not connection.closing:
                await self._one(connection)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            pass  # the caller went away, which is what many scenarios are about
        finally:
            connection.writer.transport.abort()

    async def _one(self, connection: Connection) -> None:
        received = await connection.reader.readuntil(b"\r\n\r\n")
        at = time.time()
        first, *lines = received[:-4].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await connection.reader.readexactly(int(headers.get("content-length", 0)))
        self._requests += 1
        number, connection.requests = self._requests, connection.requests + 1
        path = first.split(" ")[1].lstrip("/")
        webhook_id = headers.get("webhook-id") or headers.get("x-webhook-id", "")
        entry = {
            "n": number,
            "endpoint": path,
            "webhook_id": webhook_id,
            "attempt": int(headers.get("webhook-attempt", 0)),
            "at": at,
            "connection": connection.number,
            "on_connection": connection.requests,
            "headers": {name: value for name, value in headers.items() if name.startswith(_KEPT)},
            "digest": hashlib.sha256(body).hexdigest(),
        }
        print(json.dumps(entry), file=self._log, flush=True)
        script = self._script(path, webhook_id)
        play = script.get("play", "status")
        if play in SENT_FIRST and (code := script.get("code", None if play == "endless" else 200)) is not None:
            self._answered(number, int(code))
            await BEHAVIOURS[play](connection, script)
        else:
            self._answered(number, await BEHAVIOURS[play](connection, script))

    def _script(self, path: str, webhook_id: str) -> Script:
        script = self._scripts.get(path) or self._scripts.get("*") or {}
        if (times := script.get("times")) is not None:
            self._played[path, webhook_id] += 1
            if self._played[path, webhook_id] > times:
                return {}
        return script

    def _answered(self, number: int, status: int | None) -> None:
        print(json.dumps({"n": number, "status": status, "until": time.time()}), file=self._log, flush=True)


def _tls(wanted: dict[str, Any]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(wanted["certificate"])
    return context


async def _run(file: Path) -> None:
    with file.open("a", encoding="utf-8") as log:
        receiver = Receiver(log)
        print(json.dumps(await receiver.command({"listen": "main"})), flush=True)
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            print(json.dumps(await receiver.command(json.loads(line))), flush=True)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_run(Path(sys.argv[1])))
