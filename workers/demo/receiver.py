"""The demo's receiver, a process of its own: verifies, misbehaves as its path says, writes every request down.

It imports nothing of Homing: its verification is an independent reading of the two signature schemes. Its standard input
brings the secrets as one line of JSON, then commands (`repair dead`); when that ends, so does the process. The first line of
its standard output is its port.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import sys
import time
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any, TextIO

from aiohttp import web

WINDOW_S = 300
SLOW_S = 0.3


def signature_ok(scheme: str, secret: bytes, headers: Any, body: bytes) -> bool:
    """Whether a request was signed with our secret within the last (or next) 300 seconds."""
    x = "" if scheme == "standard" else "x-"
    timestamp = headers.get(f"{x}webhook-timestamp", "")
    given = headers.get(f"{x}webhook-signature", "")
    if not timestamp.isdigit() or abs(time.time() - int(timestamp)) > WINDOW_S:
        return False
    content = f"{timestamp}.".encode() + body
    if scheme == "standard":
        content = f"{headers.get('webhook-id', '')}.".encode() + content
    digest = hmac.new(secret, content, hashlib.sha256)
    wanted = "v1," + b64encode(digest.digest()).decode() if scheme == "standard" else "v1=" + digest.hexdigest()
    # bytes: text with a non-ASCII character would make compare_digest raise
    return any(hmac.compare_digest(one.encode(), wanted.encode()) for one in given.replace(",v1=", " v1=").split(" "))


class Receiver:
    """Answers requests and appends each to the log, before its answer goes out."""

    def __init__(self, endpoints: dict[str, dict[str, str]], log: TextIO) -> None:
        self._endpoints = endpoints
        self._log = log
        self._done: set[tuple[str, str]] = set()
        self._repaired: set[str] = set()

    async def handle(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        endpoint = self._endpoints.get(name)
        body = await request.read()
        webhook_id = request.headers.get("webhook-id", request.headers.get("x-webhook-id", ""))
        good = endpoint is not None and signature_ok(
            endpoint["scheme"], b64decode(endpoint["secret"].removeprefix("whsec_")), request.headers, body
        )
        status, first = await self._answer(name, webhook_id) if good else (401, False)
        entry = {
            "endpoint": name,
            "webhook_id": webhook_id,
            "attempt": int(request.headers.get("webhook-attempt", "0")),
            "order_id": _order_id(body),
            "signature_ok": good,
            "did_its_work": first,
            "status": status,
            "caller_waited": request.transport is not None and not request.transport.is_closing(),
            "at": round(time.time(), 3),
        }
        self._log.write(json.dumps(entry) + "\n")
        self._log.flush()
        return web.Response(status=status, text=f"{name} says {status}\n")

    def repair(self, name: str) -> None:
        self._repaired.add(name)

    async def _answer(self, name: str, webhook_id: str) -> tuple[int, bool]:
        """The status, and whether the work was done now; an id that was seen before is not worked on again."""
        if name == "dead" and name not in self._repaired:
            return 500, False
        if name == "slow":
            await asyncio.sleep(SLOW_S)
        first = (name, webhook_id) not in self._done
        self._done.add((name, webhook_id))
        return (503 if name == "flaky" and first else 200), first


def _order_id(body: bytes) -> int | None:
    try:
        return int(json.loads(body)["order_id"])
    except (ValueError, KeyError, TypeError):
        return None


def _opened(path: str) -> TextIO:
    return Path(path).open("a", encoding="utf-8")


async def serve() -> None:
    """Serve until standard input ends."""
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    given = json.loads(await commands.readline())
    with _opened(given["log"]) as log:
        receiver = Receiver(given["endpoints"], log)
        application = web.Application()
        application.router.add_post("/{name}", receiver.handle)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        while line := await commands.readline():
            verb, _, name = line.decode().strip().partition(" ")
            if verb == "repair":
                receiver.repair(name)
                print("repaired", flush=True)
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve())
