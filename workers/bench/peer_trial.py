"""Try a peer by hand: signatures checked, then a backlog and a steady rate. Run by `python -m workers.bench.peers NAME`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from typing import Any

from app.signing import SigningKey, new_secret, parse_secret, sign
from workers.bench.homing import ENDPOINTS
from workers.bench.load import drain, steady
from workers.bench.peers import Peer, known, peer, plan_of, version_of
from workers.bench.stage import Stage, stage

#: Deliveries whose signatures are checked.
SAMPLE = 50


def main() -> None:
    """Read the command line, try, and print one JSON object."""
    parser = argparse.ArgumentParser(prog="python -m workers.bench.peers", description=__doc__)
    parser.add_argument("name", choices=known())
    parser.add_argument("--events", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--concurrency", type=int, help="tasks under way per worker; what the peer is tuned to by default"
    )
    parser.add_argument("--delay-ms", type=float, default=0)
    parser.add_argument("--payload-bytes", type=int, default=512)
    parser.add_argument("--steady-s", type=float, default=0, help="seconds at 50 events a second afterwards")
    print(json.dumps(asyncio.run(_try(parser.parse_args())), indent=1))


async def _try(wanted: argparse.Namespace) -> dict[str, Any]:
    plan = plan_of(wanted.name)
    concurrency = wanted.concurrency or (plan.concurrency_waiting if wanted.delay_ms else plan.concurrency)
    with stage(delay_ms=wanted.delay_ms) as s:
        async with peer(s, wanted.name, concurrency) as tried:
            types = [f"bench.{n}" for n in range(ENDPOINTS)]
            await tried.make_endpoints([str(n) for n in range(ENDPOINTS)], types)
            await tried.start_workers(wanted.workers)
            drained = await drain(s, tried, wanted.events, wanted.events, _quiet, payload_bytes=wanted.payload_bytes)
            committed = {row[0] for row in await tried.rows.fetch("SELECT event_id::text FROM deliveries")}
            received = await asyncio.to_thread(s.receiver.so_far)
            twice = s.receiver.count - len(received)
            late = await steady(s, tried, 50, wanted.steady_s, _quiet) if wanted.steady_s else {}
            signatures = await _signatures(s, tried)
    return {
        "peer": f"{plan.title} {version_of(wanted.name)}",
        "concurrency": concurrency,
        "committed_and_received": committed == set(received),
        "received_twice": twice,
        **signatures,
        **drained,
        **{f"steady_{key}": value for key, value in late.items() if key.endswith("_ms") or key.startswith("cpu")},
    }


async def _signatures(s: Stage, tried: Peer) -> dict[str, int]:
    """Let the peer deliver a few events to a receiver that checks what Homing's own signer would have sent."""
    key = SigningKey("peer", parse_secret(secret := new_secret()))
    good: set[str] = set()
    bad: list[str] = []

    async def check(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[1:]
                pairs = (line.partition(":") for line in lines if line)
                headers = {name.lower(): value.strip() for name, _, value in pairs}
                body = await reader.readexactly(int(headers["content-length"]))
                name, timestamp = headers.get("webhook-id", ""), int(headers.get("webhook-timestamp", 0))
                wanted = sign("standard", [key], name, timestamp, body)
                now = abs(time.time() - timestamp) < 60 and json.loads(body)["n"] >= 0
                if now and headers["content-type"] == "application/json" and wanted.items() <= headers.items():
                    good.add(name)
                else:
                    bad.append(name)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        writer.close()

    server = await asyncio.start_server(check, "127.0.0.1", 0)
    async with server:
        await tried.add_endpoint("bench.0", f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/check", secret)
        before, _ = await tried.rows.recorded()
        names = {(await tried.rows.one(n, 1))[0] for n in range(SAMPLE)}
        for _ in range(200):
            if (await tried.rows.recorded())[0] >= before + 2 * SAMPLE:  # the stage's receiver has a copy
                break
            await asyncio.sleep(0.1)
        tried.stop()
    return {"signatures_good": len(good & names), "signatures_bad": len(bad), "signatures_missing": len(names - good)}


def _quiet(text: str) -> None:
    """Say nothing."""
