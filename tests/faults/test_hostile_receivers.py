"""Receivers that break the protocol, flood or starve: each attempt ends in time, is classed, and costs little memory.

What an honest network can do is in `tests/integration/test_transport.py`; this is what only malice or ruin does.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.config import Settings
from app.outcome import AttemptResult, FailureClass, Outcome
from app.transport import Transport
from tests import receiver as play
from tests.faults.certificates import trust
from tests.receiver import Connection, Receiver, Request

HEADERS = {"content-type": "application/json"}
BODY = b'{"a": 1}'
DEADLINE_S = 1.0
MARGIN_S = 1.0
RSS_MAX = 16 << 20
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
async def transport(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Transport]:
    monkeypatch.setenv("SSL_CERT_FILE", trust(tmp_path))
    settings = Settings(
        _env_file=None,
        deadline_s=DEADLINE_S,
        connect_timeout_s=DEADLINE_S,
        lease_s=30,
        allow_networks=("127.0.0.0/8",),
        metrics_port=0,
    )
    async with Transport(settings) as opened:
        yield opened


class Memory:
    """Growth of this process's resident memory at its highest, in bytes."""

    _STATUS = Path("/proc/self/status")

    def __init__(self) -> None:
        if not self._STATUS.exists():
            pytest.skip("needs /proc")
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark so far is forgotten
        self._before = self._read("VmRSS")

    def growth(self) -> int:
        return self._read("VmHWM") - self._before

    def _read(self, name: str) -> int:
        line = next(line for line in self._STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1]) << 10


def flood(head: bytes, piece: bytes) -> tuple[play.Behaviour, list[int]]:
    """`head`, then `piece` for ever; and how much of it went out."""
    sent = [0]

    async def behave(request: Request, connection: Connection) -> None:
        await connection.send(head)
        while not connection.writer.is_closing():
            await connection.send(piece)
            sent[0] += len(piece)

    return behave, sent


async def in_time(transport: Transport, receiver: Receiver, body: bytes = BODY) -> AttemptResult:
    result = await transport.post(receiver.url, HEADERS, body)
    assert result.duration_s < DEADLINE_S + MARGIN_S
    assert result.error is None or len(result.error) <= 500
    assert len((result.response_excerpt or "").encode()) <= 2048
    return result


# --- not HTTP --------------------------------------------------------------------------------------------------------

NOT_HTTP = {
    "conflicting lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
    "list of lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nhello",
    "length with sign": b"HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\nhello",
    "length in hex": b"HTTP/1.1 200 OK\r\ncontent-length: 0x5\r\n\r\nhello",
    "length with underscore": b"HTTP/1.1 200 OK\r\ncontent-length: 1_0\r\n\r\nhello",
    "length without end": b"HTTP/1.1 200 OK\r\ncontent-length: " + b"9" * 5000 + b"\r\n\r\nhello",
    "length and chunks": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "NUL in a header": b"HTTP/1.1 200 OK\r\nx: a\x00b\r\ncontent-length: 0\r\n\r\n",
    "space before the colon": b"HTTP/1.1 200 OK\r\ncontent-length : 0\r\n\r\n",
    "header without a colon": b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
    "header without a name": b"HTTP/1.1 200 OK\r\n: value\r\n\r\n",
    "folded header": b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 0\r\n\r\n",
    "bare CR": b"HTTP/1.1 200 OK\r\nx: a\rb: c\r\ncontent-length: 0\r\n\r\n",
    "future version": b"HTTP/9.9 200 OK\r\ncontent-length: 0\r\n\r\n",
    "HTTP/2 settings": b"\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "TLS alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "negative status": b"HTTP/1.1 -200 OK\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "status in letters": b"HTTP/1.1 OK 200\r\n\r\n",
    "full-width status": "HTTP/1.1 ２００ OK\r\n\r\n".encode(),
    "no status": b"HTTP/1.1\r\n\r\n",
    "long reason": b"HTTP/1.1 200 " + b"O" * (1 << 20) + b"\r\n\r\n",
    "RTSP": b"RTSP/1.0 200 OK\r\n\r\n",
    "nothing but line ends": b"\r\n" * 5000,
    "a request": b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
    "zeros": bytes(4096),
}


@pytest.mark.parametrize("name", NOT_HTTP)
async def test_broken_http_is_classed_and_its_connection_never_used_again(transport: Transport, name: str) -> None:
    async with Receiver(play.sequence(play.raw(NOT_HTTP[name], then_close=True), play.status(404))) as receiver:
        first = await in_time(transport, receiver)
        while transport.idle_connections():  # until the receiver's end of the connection arrives
            await asyncio.sleep(0)
        second = await in_time(transport, receiver)
        assert second.http_status == 404
        assert receiver.connections == 2
    # Either it is no answer, or its status counts and nothing of the rest: never an error of our own.
    assert first.failure_class in (None, FailureClass.PROTOCOL, FailureClass.CLOSED_EARLY)
    assert first.outcome in (Outcome.TRANSIENT, Outcome.DELIVERED)
    assert first.http_status in (None, 200)


BROKEN_BODIES = {
    "chunk size beyond 64 bits": b"transfer-encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\nab",
    "chunk size negative": b"transfer-encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
    "chunk size without end": b"transfer-encoding: chunked\r\n\r\n" + b"1" * 100_000,
    "chunk longer than it says": b"transfer-encoding: chunked\r\n\r\n2\r\nabcdef\r\n0\r\n\r\n",
    "chunk extension of 1 MB": b"transfer-encoding: chunked\r\n\r\n5;" + b"x" * (1 << 20) + b"\r\nhello\r\n0\r\n\r\n",
    "chunk with bare LF": b"transfer-encoding: chunked\r\n\r\n5\nhello\n0\n\n",
    "trailers that never end": b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"x: y\r\n" * 100_000,
    "unknown transfer encoding": b"transfer-encoding: tomato\r\n\r\nhello",
    "chunked twice": b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "length of an exabyte": b"content-length: 1000000000000000000\r\n\r\nhello",
    "smuggled answer": b"content-length: 0\r\n\r\nHTTP/1.1 200 OK\r\nx-smuggled: 1\r\ncontent-length: 0\r\n\r\n",
    "unknown content encoding": b"content-encoding: tomato\r\ncontent-length: 5\r\n\r\nhello",
    "deflate that lies": b"content-encoding: deflate\r\ncontent-length: 5\r\n\r\nhello",
    "gzip over gzip": b"content-encoding: gzip, gzip\r\ncontent-length: 5\r\n\r\nhello",
}


@pytest.mark.parametrize("name", BROKEN_BODIES)
@pytest.mark.parametrize("status", [b"200", b"503"], ids=bytes.decode)
async def test_status_stands_whatever_follows_it(transport: Transport, status: bytes, name: str) -> None:
    answer = b"HTTP/1.1 " + status + b" X\r\n" + BROKEN_BODIES[name]
    async with Receiver(play.raw(answer, then_close=True)) as receiver:
        result = await in_time(transport, receiver)
    if result.http_status is None:  # refused with its head
        assert (result.outcome, result.failure_class) == (Outcome.TRANSIENT, FailureClass.PROTOCOL)
    else:
        assert result.http_status == int(status)
        assert result.outcome is (Outcome.DELIVERED if status == b"200" else Outcome.TRANSIENT)


# --- floods and famines ----------------------------------------------------------------------------------------------

FLOODS = {
    "body of 1 EiB": (OK + b"content-length: 1152921504606846976\r\n\r\n", b"b" * 65536),
    "body without a length": (OK + b"connection: close\r\n\r\n", b"b" * 65536),
    "big chunks": (OK + b"transfer-encoding: chunked\r\n\r\n", b"10000\r\n" + b"c" * 65536 + b"\r\n"),
    "chunks of one byte": (OK + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nc\r\n" * 10_000),
    "one endless chunk": (OK + b"transfer-encoding: chunked\r\n\r\nffffffff\r\n", b"c" * 65536),
    "endless chunk extension": (OK + b"transfer-encoding: chunked\r\n\r\n5;", b"x" * 65536),
    "endless trailers": (OK + b"transfer-encoding: chunked\r\n\r\n0\r\n", b"x-trailer: y\r\n" * 1000),
    "gzip bomb of 1 GiB": (
        OK + b"content-encoding: gzip\r\nconnection: close\r\n\r\n",
        gzip.compress(bytes(1 << 20)) * 64,
    ),
    "headers": (OK, b"x-huge: " + b"a" * 4000 + b"\r\n"),
    "10,000 small headers a time": (OK, b"a: b\r\n" * 10_000),
    "one header": (OK + b"x-huge: ", b"a" * 65536),
    "one header name": (OK, b"a" * 65536),
    "folded header": (OK + b"x: a\r\n", b" more\r\n" * 10_000),
    "status line": (b"HTTP/1.1 200 ", b"O" * 65536),
    "no line end at all": (b"", b"x" * 65536),
    "line ends": (b"", b"\r\n" * 32768),
    "interim answers": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000),
    "interim answers with headers": (b"", b"HTTP/1.1 103 Early Hints\r\nlink: <" + b"a" * 4000 + b">\r\n\r\n"),
    "answers": (b"", play.response(200) * 1000),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_flood_ends_in_time_with_little_read_and_little_memory(transport: Transport, name: str) -> None:
    async with Receiver() as polite:
        await transport.post(polite.url, HEADERS, BODY)  # loads what is loaded lazily
    behaviour, sent = flood(*FLOODS[name])
    async with Receiver(behaviour) as receiver:
        memory = Memory()
        results = await asyncio.gather(*(in_time(transport, receiver) for _ in range(4)))
        assert memory.growth() < RSS_MAX
        assert transport.idle_connections() == 0
    assert {result.failure_class for result in results} <= {None, FailureClass.PROTOCOL, FailureClass.TIMEOUT}
    # 64 KiB are wanted; the rest is in the buffers of two sockets and of the receiver itself.
    assert sent[0] / 4 < 12 << 20


async def test_receiver_that_reads_nothing_of_a_long_request_ends_at_the_deadline(transport: Transport) -> None:
    async def ignore(connection: Connection) -> None:
        connection.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await connection.closing.wait()

    body = b"x" * (8 << 20)  # which aiohttp copies once
    async with Receiver(at_accept=ignore) as receiver:
        memory = Memory()
        result = await in_time(transport, receiver, body)
        assert memory.growth() < RSS_MAX
    assert (result.outcome, result.failure_class) == (Outcome.TRANSIENT, FailureClass.TIMEOUT)
    assert result.duration_s >= DEADLINE_S
    assert transport.idle_connections() == 0


async def reset(connection: Connection) -> None:
    await connection.reader.readexactly(1000)
    connection.reset()


async def finish(connection: Connection) -> None:
    await connection.reader.readexactly(1000)
    connection.close()


async def close_one_way(connection: Connection) -> None:
    await connection.reader.readuntil(b"\r\n\r\n")
    connection.writer.write_eof()
    await connection.closing.wait()


@pytest.mark.parametrize("at_accept", [reset, finish, close_one_way])
async def test_connection_cut_in_the_middle_of_the_request_is_transient(
    transport: Transport, at_accept: object
) -> None:
    async with Receiver(at_accept=at_accept) as receiver:  # type: ignore[arg-type]
        result = await in_time(transport, receiver, bytes(4 << 20))
    assert result.outcome is Outcome.TRANSIENT
    assert result.failure_class in (FailureClass.CONNECT_RESET, FailureClass.CLOSED_EARLY)


async def test_reset_in_the_middle_of_the_answers_body_leaves_it_delivered(transport: Transport) -> None:
    async def cut(request: Request, connection: Connection) -> None:
        await connection.send(OK + b"content-length: 1000\r\n\r\nhalf")
        connection.reset()

    async with Receiver(cut) as receiver:
        assert (await in_time(transport, receiver)).outcome is Outcome.DELIVERED


async def test_receivers_that_hang_do_not_slow_another_down(transport: Transport) -> None:
    async with Receiver(play.silent) as hanging, Receiver() as good:
        waiting = [asyncio.create_task(transport.post(hanging.url, HEADERS, BODY)) for _ in range(100)]
        while len(hanging.requests) < 100:
            await asyncio.sleep(0)
        results = [await transport.post(good.url, HEADERS, BODY) for _ in range(50)]
        assert {result.failure_class for result in await asyncio.gather(*waiting)} == {FailureClass.TIMEOUT}
    assert {result.outcome for result in results} == {Outcome.DELIVERED}
    assert sorted(result.duration_s for result in results)[25] < 0.1


# --- Retry-After -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        *(
            "0",
            "7",
            "7.5",
            " 7 ",
            "007",
            "7, 8",
            "7;x",
            "-0",
            "+7",
            "0x7",
            "1e309",
            "NaN",
            "Infinity",
            "7s",
            "",
            "soon",
        ),
        *("9" * 20, "9" * 4000, "Fri, 31 Dec 1999 23:59:59 GMT", "Fri, 31 Dec 9999 23:59:59 GMT", "31 Dec 9999"),
        *("Friday, 31-Dec-99 23:59:59 GMT", "Fri Dec 31 23:59:59 1999", "Fri, 31 Dec 2999 23:59:59 +9999"),
        *("Fri, 99 Dec 2999 99:99:99 GMT", "Fri, 31 Dec 99999 23:59:59 GMT", "2999-12-31T23:59:59Z", "\xb2", "\xa07"),
    ],
)
async def test_retry_after_is_a_bounded_number_or_nothing(transport: Transport, value: str) -> None:
    async with Receiver(play.status(503, {"retry-after": value})) as receiver:
        result = await in_time(transport, receiver)
    assert (result.outcome, result.http_status) == (Outcome.TRANSIENT, 503)
    assert result.retry_after_s is None or 0 <= result.retry_after_s < 1e12


async def test_first_of_several_retry_after_counts_or_none(transport: Transport) -> None:
    answer = b"HTTP/1.1 429 X\r\nretry-after: 7\r\nretry-after: 999999\r\ncontent-length: 0\r\n\r\n"
    async with Receiver(play.raw(answer)) as receiver:
        assert (await in_time(transport, receiver)).retry_after_s in (7.0, None)
