"""Every toxic of the fault suite's proxy does what its name says."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import pytest

from workers.chaos.proxy import Factory, Proxy
from workers.chaos.toxics import Bandwidth, CutAfter, Latency, LimitData, ResetPeer, Slicer, SlowClose, Timeout


class Echo:
    def __init__(self) -> None:
        self.received = bytearray()
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                self.received += data
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def proxied() -> AsyncIterator[tuple[Proxy, Echo]]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    async with Proxy("127.0.0.1", echo.port) as proxy:
        yield proxy, echo
    server.close()


async def say(proxy: Proxy, data: bytes = b"hello", *, limit_s: float = 5.0) -> tuple[bytes, float]:
    """What came back until as much had come or the connection ended, and how long that took."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    began = monotonic()
    try:
        writer.write(data)
        await writer.drain()
        back = bytearray()
        async with asyncio.timeout(limit_s):
            while len(back) < len(data) and (piece := await reader.read(65536)):
                back += piece
        return bytes(back), monotonic() - began
    finally:
        writer.close()


async def test_without_toxics_everything_passes_unchanged() -> None:
    data = bytes(range(256)) * 4000
    async with proxied() as (proxy, echo):
        assert (await say(proxy, data))[0] == data
        assert bytes(echo.received) == data


@pytest.mark.parametrize(
    ("toxic", "at_least_s"),
    [
        (lambda: Latency(0.3), 0.3),
        (lambda: Bandwidth(50), 0.4),
        (lambda: Slicer(1, 0.02), 0.3),
    ],
    ids=["latency", "bandwidth", "slicer"],
)
async def test_slow_but_whole(toxic: Factory, at_least_s: float) -> None:
    data = b"twenty bytes exactly"
    async with proxied() as (proxy, _):
        proxy.poison(toxic)
        back, seconds = await say(proxy, data)
        assert back == data
        assert seconds >= at_least_s


async def test_limit_data_closes_after_so_many_bytes() -> None:
    async with proxied() as (proxy, _):
        proxy.poison(lambda: LimitData(100))
        assert len((await say(proxy, b"x" * 5000))[0]) == 100


async def test_timeout_lets_nothing_through_and_then_closes() -> None:
    async with proxied() as (proxy, _):
        proxy.poison(lambda: Timeout(0.3))
        back, seconds = await say(proxy)
        assert back == b""
        assert 0.3 <= seconds < 2


async def test_timeout_of_zero_never_closes() -> None:
    async with proxied() as (proxy, _):
        proxy.poison(Timeout)
        with pytest.raises(TimeoutError):
            await say(proxy, limit_s=0.5)


async def test_reset_peer_resets() -> None:
    async with proxied() as (proxy, _):
        proxy.poison(lambda: ResetPeer(0.1))
        with pytest.raises(ConnectionResetError):
            await say(proxy)


async def test_slow_close_keeps_the_end_back() -> None:
    async with proxied() as (proxy, _):
        proxy.poison(lambda: SlowClose(0.4))
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"bye")
        writer.write_eof()
        assert await reader.readexactly(3) == b"bye"
        began = monotonic()
        assert await reader.read() == b""
        assert monotonic() - began >= 0.3
        writer.close()


async def test_down_refuses_and_resets_and_up_serves_on_the_same_port() -> None:
    async with proxied() as (proxy, _):
        port = proxy.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        await proxy.down()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        await proxy.up()
        assert proxy.port == port
        assert (await say(proxy))[0] == b"hello"
        writer.close()


async def test_cut_after_lets_the_server_have_it_and_loses_the_answer() -> None:
    async with proxied() as (proxy, echo):
        proxy.poison(lambda: CutAfter(b"COMMIT", 1.0, random.Random(1)), stream="upstream")
        assert (await say(proxy, b"BEGIN"))[0] == b"BEGIN"
        echo.received.clear()
        with pytest.raises(ConnectionResetError):
            await say(proxy, b"COMMIT")
        assert bytes(echo.received) == b"COMMIT"


async def test_healed_proxy_passes_again() -> None:
    async with proxied() as (proxy, _):
        proxy.poison(lambda: ResetPeer())
        proxy.heal()
        assert (await say(proxy))[0] == b"hello"
