"""Every row of the delivery table on real sockets, and what a receiver must not be able to do to us."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import ipaddress
import socket
import ssl
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app.config import Settings
from app.outcome import AttemptResult, FailureClass, Outcome
from app.transport import Transport
from tests import receiver as play
from tests.receiver import Receiver

LOOPBACK = ("127.0.0.0/8",)
BODY = b'{"a": 1}'
HEADERS = {"content-type": "application/json", "accept-encoding": "identity", "user-agent": "Homing/test"}
# Scheduling noise on a busy machine; a broken deadline is off by the rest of the 15 s or for ever.
MARGIN_S = 1.0


def settings(**changes: object) -> Settings:
    values: dict[str, object] = {"deadline_s": 1.0, "connect_timeout_s": 0.5, "allow_networks": LOOPBACK}
    return Settings(_env_file=None, **(values | changes))  # type: ignore[arg-type]


@pytest.fixture
async def transport() -> AsyncIterator[Transport]:
    async with Transport(settings()) as opened:
        yield opened


async def attempt(transport: Transport, behaviour: play.Behaviour) -> AttemptResult:
    async with Receiver(behaviour) as receiver:
        result = await transport.post(receiver.url, HEADERS, BODY)
        assert len(receiver.requests) == 1
        return result


# --- what is sent ----------------------------------------------------------------------------------------------------


async def test_request_carries_exactly_the_given_headers_and_body(transport: Transport) -> None:
    async with Receiver() as receiver:
        url = receiver.url + "/a%2Fb?q=%41&r"
        await transport.post(url, HEADERS | {"webhook-id": "m_1"}, BODY)
        (request,) = receiver.requests
    assert request.method == "POST"
    assert request.target == "/hook/a%2Fb?q=%41&r"
    assert request.body == BODY
    expected = HEADERS | {
        "webhook-id": "m_1",
        "host": f"127.0.0.1:{receiver.port}",
        "content-length": str(len(BODY)),
    }
    assert request.headers == expected
    assert len(request.raw_headers) == len(expected)


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3 << 20])
async def test_body_of_any_size_arrives_unchanged(transport: Transport, size: int) -> None:
    body = bytes(index % 251 for index in range(size))
    async with Receiver() as receiver:
        result = await transport.post(receiver.url, HEADERS, body)
        assert result.outcome is Outcome.DELIVERED
        assert receiver.requests[0].body == body


async def test_cookies_are_not_replayed(transport: Transport) -> None:
    async with Receiver(play.status(200, {"set-cookie": "sid=1; Path=/"})) as receiver:
        for _ in range(2):
            await transport.post(receiver.url.replace("127.0.0.1", "localhost"), HEADERS, BODY)
            await transport.post(receiver.url, HEADERS, BODY)
        assert len(receiver.requests) >= 2
        assert all("cookie" not in request.headers for request in receiver.requests)


async def test_proxies_and_netrc_of_the_environment_are_ignored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("default login someone password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    async with Receiver() as canary, Receiver() as receiver, Transport(settings()) as transport:
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{canary.port}")
        result = await transport.post(receiver.url, HEADERS, BODY)
        assert result.outcome is Outcome.DELIVERED
        assert canary.connections == 0
        assert "authorization" not in receiver.requests[0].headers


# --- the table: statuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [200, 201, 202, 204, 206, 226, 299])
async def test_any_2xx_is_delivered(transport: Transport, code: int) -> None:
    result = await attempt(transport, play.status(code))
    assert (result.outcome, result.failure_class, result.http_status) == (Outcome.DELIVERED, None, code)
    assert result.error is None


@pytest.mark.parametrize("code", [408, 429, 500, 501, 502, 503, 504, 507, 599])
async def test_busy_or_broken_receiver_is_transient(transport: Transport, code: int) -> None:
    result = await attempt(transport, play.status(code, {"retry-after": "7"}, b"busy"))
    assert (result.outcome, result.failure_class) == (Outcome.TRANSIENT, FailureClass.HTTP_STATUS)
    assert (result.http_status, result.retry_after_s) == (code, 7.0)
    assert (result.error, result.response_excerpt) == (f"HTTP {code}", "busy")


async def test_410_is_gone(transport: Transport) -> None:
    result = await attempt(transport, play.status(410))
    assert (result.outcome, result.failure_class, result.http_status) == (Outcome.GONE, FailureClass.GONE, 410)


@pytest.mark.parametrize("code", [300, 304, 305, 400, 401, 403, 404, 409, 413, 422, 451, 499])
async def test_any_other_answer_is_definite(transport: Transport, code: int) -> None:
    result = await attempt(transport, play.status(code, {"retry-after": "7"}))
    assert (result.outcome, result.failure_class) == (Outcome.DEFINITE, FailureClass.HTTP_STATUS)
    assert (result.http_status, result.retry_after_s) == (code, None)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_redirect_is_definite_and_its_target_never_visited(transport: Transport, code: int) -> None:
    async with Receiver() as canary:
        result = await attempt(transport, play.redirect(canary.url, code))
        assert (result.outcome, result.http_status) == (Outcome.DEFINITE, code)
        assert canary.connections == 0
    assert result.error == f"HTTP {code}: redirects are not followed"


@pytest.mark.parametrize("value", ["-1", "1e9", "junk", "\xb2", "Thu, 01 Jan 1970 00:00:00 GMT"])
async def test_useless_retry_after_is_ignored(transport: Transport, value: str) -> None:
    result = await attempt(transport, play.status(503, {"retry-after": value}))
    assert (result.outcome, result.retry_after_s) == (Outcome.TRANSIENT, None)


# --- the table: network ----------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_refused_connection_is_transient_and_names_no_address(transport: Transport) -> None:
    port = free_port()
    result = await transport.post(f"http://127.0.0.1:{port}/secret-path", HEADERS, BODY)
    assert (result.outcome, result.failure_class) == (Outcome.TRANSIENT, FailureClass.CONNECT_REFUSED)
    assert result.http_status is None
    assert result.error is not None
    assert not any(part in result.error for part in ("127", str(port), "secret-path"))


async def test_unresolvable_name_is_transient(transport: Transport) -> None:
    result = await transport.post("http://does-not-exist.invalid/", HEADERS, BODY)
    assert (result.outcome, result.failure_class) == (Outcome.TRANSIENT, FailureClass.DNS)


async def test_name_too_long_to_resolve_is_a_dns_failure(transport: Transport) -> None:
    result = await transport.post(f"http://{'a' * 70}.invalid/", HEADERS, BODY)
    assert (result.outcome, result.failure_class) == (Outcome.TRANSIENT, FailureClass.DNS)


@pytest.mark.parametrize(
    ("behaviour", "failure"),
    [
        pytest.param(play.reset, FailureClass.CONNECT_RESET, id="reset-after-request"),
        pytest.param(play.reset_mid_headers, FailureClass.CONNECT_RESET, id="reset-mid-headers"),
        pytest.param(play.close_early, FailureClass.CLOSED_EARLY, id="closed-after-request"),
        pytest.param(play.close_mid_headers, FailureClass.CLOSED_EARLY, id="closed-mid-headers"),
        pytest.param(play.raw(b"220 mail.example ESMTP ready\r\n"), FailureClass.PROTOCOL, id="smtp-banner"),
        pytest.param(play.raw(b"<html>hello</html>\n", then_close=True), FailureClass.PROTOCOL, id="http-0.9"),
        pytest.param(play.raw(b"HTTP/1.1 20 OK\r\n\r\n"), FailureClass.PROTOCOL, id="two-digit-status"),
        pytest.param(
            play.raw(b"HTTP/1.1 200 OK\r\ncontent-length: -5\r\n\r\n"), FailureClass.PROTOCOL, id="negative-length"
        ),
        pytest.param(play.status(999), FailureClass.PROTOCOL, id="status-999"),
        pytest.param(
            play.raw(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nzzz"),
            FailureClass.PROTOCOL,
            id="unasked-101",
        ),
        pytest.param(play.huge_headers(), FailureClass.PROTOCOL, id="huge-headers"),
        pytest.param(play.long_header_line(), FailureClass.PROTOCOL, id="long-header-line"),
        pytest.param(play.flood_interim(), FailureClass.PROTOCOL, id="flood-of-1xx"),
        pytest.param(play.drip_interim(), FailureClass.TIMEOUT, id="drip-of-1xx"),
        pytest.param(play.drip_headers(), FailureClass.TIMEOUT, id="drip-of-headers"),
        pytest.param(play.silent, FailureClass.TIMEOUT, id="never-answers"),
    ],
)
async def test_broken_exchange_is_transient_within_the_deadline(
    transport: Transport, behaviour: play.Behaviour, failure: FailureClass
) -> None:
    started = time.monotonic()
    result = await attempt(transport, behaviour)
    assert time.monotonic() - started < 1.0 + MARGIN_S
    assert (result.outcome, result.failure_class) == (Outcome.TRANSIENT, failure)
    assert result.error


async def reset_at_once(connection: play.Connection) -> None:
    connection.reset()


async def test_reset_at_accept_is_transient(transport: Transport) -> None:
    async with Receiver(at_accept=reset_at_once) as receiver:
        result = await transport.post(receiver.url, HEADERS, BODY)
    assert result.outcome is Outcome.TRANSIENT
    assert result.failure_class in (FailureClass.CONNECT_RESET, FailureClass.CLOSED_EARLY)


async def test_receiver_that_never_accepts_is_a_connect_timeout(transport: Transport) -> None:
    with socket.socket() as listener, contextlib.ExitStack() as fillers:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):  # fills the queue of connections that nobody accepts
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        result = await transport.post(f"http://127.0.0.1:{listener.getsockname()[1]}/", HEADERS, BODY)
    assert (result.outcome, result.failure_class) == (Outcome.TRANSIENT, FailureClass.CONNECT_TIMEOUT)
    assert result.duration_s < 0.5 + MARGIN_S


async def test_slow_name_lookup_ends_with_the_connect_limit(
    transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    release = threading.Event()

    def slow(*_: object, **__: object) -> None:
        release.wait(10)
        raise socket.gaierror(socket.EAI_AGAIN, "slow")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        result = await transport.post("http://slow.example/", HEADERS, BODY)
    finally:
        release.set()
    assert (result.outcome, result.failure_class) == (Outcome.TRANSIENT, FailureClass.CONNECT_TIMEOUT)
    assert result.duration_s < 0.5 + MARGIN_S


# --- bodies ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(play.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nab", then_close=True), id="cut"),
        pytest.param(play.raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\nab"), id="bad-chunk"),
        pytest.param(play.drip_body(), id="drip"),
        pytest.param(play.big_body(64 << 20), id="64-MiB"),
        pytest.param(play.infinite_chunks(), id="infinite"),
        pytest.param(play.gzip_bomb(), id="gzip-bomb"),
        pytest.param(play.status(200, {"content-encoding": "gzip"}, b"not gzip"), id="gzip-lie"),
        pytest.param(play.raw(b"HTTP/1.1 204 No Content\r\n\r\nsmuggled body"), id="204-with-body"),
    ],
)
async def test_2xx_is_delivered_whatever_its_body(transport: Transport, behaviour: play.Behaviour) -> None:
    started = time.monotonic()
    result = await attempt(transport, behaviour)
    assert time.monotonic() - started < 1.0 + MARGIN_S
    assert result.outcome is Outcome.DELIVERED
    assert result.http_status in (200, 204)
    assert len((result.response_excerpt or "").encode()) <= 2048


@pytest.mark.parametrize("behaviour", [play.drip_body(503), play.big_body(64 << 20, 503)], ids=["drip", "64-MiB"])
async def test_status_stands_although_the_body_never_ends(transport: Transport, behaviour: play.Behaviour) -> None:
    result = await attempt(transport, behaviour)
    assert (result.outcome, result.failure_class) == (Outcome.TRANSIENT, FailureClass.HTTP_STATUS)
    assert result.http_status == 503


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(play.big_body(64 << 20), id="64-MiB"),
        pytest.param(play.infinite_chunks(), id="infinite"),
        pytest.param(play.gzip_bomb(256 << 20), id="gzip-bomb"),
        pytest.param(play.huge_headers(), id="headers"),
        pytest.param(play.long_header_line(), id="header-line"),
        pytest.param(play.flood_interim(), id="1xx"),
    ],
)
async def test_memory_stays_bounded(transport: Transport, behaviour: play.Behaviour) -> None:
    async with Receiver(behaviour) as receiver:
        gc.collect()
        tracemalloc.start()
        try:
            await asyncio.gather(*(transport.post(receiver.url, HEADERS, BODY) for _ in range(4)))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 16 << 20


async def test_excerpt_is_redacted_bounded_and_storable(transport: Transport) -> None:
    body = b'{"token": "canary-1", "note": "\x00\xff"} ' + b"n" * 5000
    result = await attempt(transport, play.status(500, {}, body))
    assert result.response_excerpt is not None
    assert "canary-1" not in result.response_excerpt
    assert "\x00" not in result.response_excerpt
    assert len(result.response_excerpt.encode()) <= 2048


async def test_compressed_body_is_not_kept(transport: Transport) -> None:
    result = await attempt(transport, play.status(500, {"content-encoding": "gzip"}, b"\x1f\x8b123"))
    assert result.response_excerpt is None


async def test_body_is_never_decompressed(transport: Transport) -> None:
    lie = play.status(200, {"content-encoding": "gzip"}, b"not gzip")
    async with Receiver(lie) as receiver:
        for _ in range(2):
            await transport.post(receiver.url, HEADERS, BODY)
        assert receiver.connections == 1  # trying would have failed, and closed the connection


async def test_nothing_is_read_when_the_limit_is_zero() -> None:
    async with Transport(settings(response_read_bytes=0, response_keep_bytes=0)) as transport:
        result = await attempt(transport, play.status(200, {}, b"hello"))
    assert (result.outcome, result.response_excerpt) == (Outcome.DELIVERED, None)


# --- connections -----------------------------------------------------------------------------------------------------


async def test_connection_is_reused_after_a_clean_answer(transport: Transport) -> None:
    async with Receiver(play.sequence(play.status(200, {}, b"ok"), play.status(503, {}, b"no"), play.ok)) as receiver:
        for _ in range(3):
            await transport.post(receiver.url, HEADERS, BODY)
        assert len(receiver.requests) == 3
        assert receiver.connections == 1


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param(play.big_body(1 << 20), id="unread-rest"),
        pytest.param(play.raw(b"HTTP/1.1 204 No Content\r\n\r\nsmuggled"), id="204-with-body"),
        pytest.param(play.raw(play.response(200) + play.response(500)), id="second-response"),
        pytest.param(play.raw(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n"), id="bad-chunk"),
        pytest.param(play.raw(b"HTTP/1.1 101 X\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"), id="101"),
        pytest.param(play.status(999), id="999"),
    ],
)
async def test_connection_is_not_reused_after_a_strange_answer(transport: Transport, behaviour: play.Behaviour) -> None:
    async with Receiver(play.sequence(behaviour, play.status(404))) as receiver:
        await transport.post(receiver.url, HEADERS, BODY)
        second = await transport.post(receiver.url, HEADERS, BODY)
        assert second.http_status == 404
        assert receiver.connections == 2


async def test_late_second_response_is_not_taken_for_the_next_answer(transport: Transport) -> None:
    smuggled = asyncio.Event()

    async def answer_twice(request: play.Request, connection: play.Connection) -> None:
        await connection.send(play.response(200))
        await smuggled.wait()
        await connection.send(play.response(200, {"x-smuggled": "1"}))
        await connection.closing.wait()

    async with Receiver(play.sequence(answer_twice, play.status(503))) as receiver:
        first = await transport.post(receiver.url, HEADERS, BODY)
        smuggled.set()
        for _ in range(10_000):  # until it arrives; the pool's own idle limit must not be what closes the connection
            if not transport.idle_connections():
                break
            await asyncio.sleep(0)
        second = await transport.post(receiver.url, HEADERS, BODY)
    assert (first.http_status, second.http_status) == (200, 503)


async def test_early_answer_to_an_unfinished_upload_leaves_no_half_sent_connection(transport: Transport) -> None:
    async def answer_early(connection: play.Connection) -> None:
        await connection.reader.readuntil(b"\r\n\r\n")
        await connection.send(play.response(200))
        await connection.closing.wait()

    async with Receiver(at_accept=answer_early) as receiver:
        result = await transport.post(receiver.url, HEADERS, b"x" * (16 << 20))
        assert (result.outcome, result.http_status) == (Outcome.DELIVERED, 200)
        assert transport.idle_connections() == 0


async def test_no_more_requests_at_once_than_connections_allowed() -> None:
    running = 0
    most = 0

    async def count(request: play.Request, connection: play.Connection) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(20):
            await asyncio.sleep(0)
        running -= 1
        await connection.send(play.response(200))

    async with Receiver(count) as receiver, Transport(settings(connections_per_endpoint=3)) as transport:
        results = await asyncio.gather(*(transport.post(receiver.url, HEADERS, BODY) for _ in range(30)))
    assert {result.outcome for result in results} == {Outcome.DELIVERED}
    assert most <= 3


async def test_waiting_for_a_connection_is_our_own_fault_and_sends_nothing() -> None:
    limits = settings(connections_per_endpoint=1, lease_s=2.05)
    async with Receiver(play.silent) as receiver, Transport(limits) as transport:
        results = await asyncio.gather(*(transport.post(receiver.url, HEADERS, BODY) for _ in range(2)))
        assert len(receiver.requests) == 1
    assert [result.failure_class for result in results] == [FailureClass.TIMEOUT, FailureClass.OWN_FAULT]
    assert [result.counts for result in results] == [True, False]


async def test_endpoint_that_hangs_takes_no_places_from_another_of_the_same_host() -> None:
    async def by_path(request: play.Request, connection: play.Connection) -> None:
        await (play.silent if request.target == "/hangs" else play.ok)(request, connection)

    async with Receiver(by_path) as receiver, Transport(settings(connections_per_endpoint=2)) as transport:
        origin = receiver.url.rpartition("/")[0]
        hanging = [asyncio.create_task(transport.post(f"{origin}/hangs", HEADERS, BODY)) for _ in range(4)]
        while len(receiver.requests) < 2:
            await asyncio.sleep(0)
        assert (await transport.post(f"{origin}/well", HEADERS, BODY)).outcome is Outcome.DELIVERED
        assert not any(task.done() for task in hanging)
        await asyncio.gather(*hanging)


async def test_waiting_for_a_connection_does_not_shorten_the_deadline() -> None:
    limits = settings(connections_per_endpoint=1, lease_s=30)
    async with Receiver(play.silent) as receiver, Transport(limits) as transport:
        results = await asyncio.gather(*(transport.post(receiver.url, HEADERS, BODY) for _ in range(2)))
        assert len(receiver.requests) == 2
    assert all(1.0 <= result.duration_s < 1.0 + MARGIN_S for result in results)


async def test_cancelled_attempt_raises_and_frees_its_place() -> None:
    async with (
        Receiver(play.sequence(play.silent, play.ok)) as receiver,
        Transport(settings(connections_per_endpoint=1)) as transport,
    ):
        task = asyncio.create_task(transport.post(receiver.url, HEADERS, BODY))
        while not receiver.requests:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await transport.post(receiver.url, HEADERS, BODY)).outcome is Outcome.DELIVERED


# --- addresses -------------------------------------------------------------------------------------------------------

SPELLINGS = [
    *("127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "0"),
    *("127.0.0.1.", "0.0.0.0", "localhost", "LOCALHOST.", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"),
    *("[::127.0.0.1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]", "[0:0:0:0:0:ffff:7f00:0001]", "[::ffff:0:127.0.0.1]"),
    *("１２７.0.0.1", "①②⑦.0.0.1", "127。0。0。1"),
]


@pytest.mark.parametrize("host", SPELLINGS)
async def test_no_spelling_of_loopback_is_ever_dialled(host: str) -> None:
    async with Receiver() as canary, Transport(settings(allow_networks=())) as transport:
        result = await transport.post(f"http://{host}:{canary.port}/", HEADERS, BODY)
        assert canary.connections == 0
    assert result.outcome in (Outcome.DEFINITE, Outcome.TRANSIENT)
    assert result.failure_class in (FailureClass.BLOCKED_ADDRESS, FailureClass.DNS, FailureClass.INVALID_URL)
    assert "127" not in (result.error or "")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "0x7f.1", "localhost", "[::ffff:7f00:1]", "[::1]", "10.0.0.1"])
async def test_blocked_address_is_definite_and_named_without_its_address(host: str) -> None:
    async with Transport(settings(allow_networks=())) as transport:
        result = await transport.post(f"http://{host}:8080/", HEADERS, BODY)
    assert (result.outcome, result.failure_class) == (Outcome.DEFINITE, FailureClass.BLOCKED_ADDRESS)
    assert result.error == "the host is, or resolves to, an address that may not be called"


def answer(monkeypatch: pytest.MonkeyPatch, *rounds: list[str]) -> None:
    """Let the system's resolver give these answers, one round after the other, the last for ever."""
    left = list(rounds)

    def resolve(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        addresses = left.pop(0) if len(left) > 1 else left[0]
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.mark.parametrize("addresses", [["127.0.0.1", "10.0.0.1"], ["10.0.0.1", "127.0.0.1"], ["127.0.0.1", "fe80::1"]])
async def test_one_bad_address_refuses_the_whole_answer(
    monkeypatch: pytest.MonkeyPatch, transport: Transport, addresses: list[str]
) -> None:
    async with Receiver() as canary:
        answer(monkeypatch, addresses)
        result = await transport.post(f"http://mixed.example:{canary.port}/", HEADERS, BODY)
        assert (result.outcome, result.failure_class) == (Outcome.DEFINITE, FailureClass.BLOCKED_ADDRESS)
        assert canary.connections == 0


async def test_rebinding_name_is_judged_on_each_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Receiver() as good, Receiver() as canary:
        answer(monkeypatch, ["127.0.0.1"], ["127.0.0.2"])
        async with Transport(settings(allow_networks=("127.0.0.1/32",))) as transport:
            first = await transport.post(f"http://rebind.example:{good.port}/", HEADERS, BODY)
            second = await transport.post(f"http://rebind.example:{canary.port}/", HEADERS, BODY)
        assert first.outcome is Outcome.DELIVERED
        assert (second.outcome, second.failure_class) == (Outcome.DEFINITE, FailureClass.BLOCKED_ADDRESS)
        assert canary.connections == 0


async def test_name_with_a_dead_address_still_delivers(monkeypatch: pytest.MonkeyPatch, transport: Transport) -> None:
    async with Receiver() as receiver:
        answer(monkeypatch, ["127.0.0.9", "127.0.0.1"])  # nothing listens on the first
        result = await transport.post(f"http://two.example:{receiver.port}/", HEADERS, BODY)
    assert result.outcome is Outcome.DELIVERED


# --- TLS -------------------------------------------------------------------------------------------------------------


class Certificate:
    """A self-signed certificate and its key, as files."""

    def __init__(self, folder: Path, name: str = "127.0.0.1", days: int = 1) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "receiver")])
        try:
            alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            alternative = x509.DNSName(name)
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=10))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(key, hashes.SHA256())
        )
        self.path = folder / "certificate.pem"
        self.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_path = folder / "key.pem"
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.path, key_path)


async def test_trusted_certificate_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = Certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.path))
    async with Receiver(tls=certificate.context) as receiver, Transport(settings()) as transport:
        results = [await transport.post(receiver.url, HEADERS, BODY) for _ in range(2)]
        assert [result.outcome for result in results] == [Outcome.DELIVERED] * 2
        assert receiver.connections == 1


@pytest.mark.parametrize(
    ("name", "days", "trusted"),
    [("127.0.0.1", 1, False), ("other.example", 1, True), ("127.0.0.1", -1, True)],
    ids=["self-signed", "wrong-host", "expired"],
)
async def test_bad_certificate_is_definite_and_nothing_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, days: int, trusted: bool
) -> None:
    certificate = Certificate(tmp_path, name, days)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate.path))
    async with Receiver(tls=certificate.context) as receiver, Transport(settings()) as transport:
        result = await transport.post(receiver.url, HEADERS, BODY)
        assert receiver.requests == []
    assert (result.outcome, result.failure_class) == (Outcome.DEFINITE, FailureClass.TLS)
    assert result.error is not None
    assert result.error.startswith("TLS failed: ")
    assert "127.0.0.1" not in result.error


async def test_plain_http_behind_an_https_url_is_a_tls_failure(transport: Transport) -> None:
    async def banner(connection: play.Connection) -> None:
        await connection.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await connection.reader.read(1)

    async with Receiver(at_accept=banner) as receiver:
        result = await transport.post(receiver.url.replace("http:", "https:"), HEADERS, BODY)
    assert (result.outcome, result.failure_class) == (Outcome.DEFINITE, FailureClass.TLS)


async def hang(connection: play.Connection) -> None:
    await connection.closing.wait()


async def close_at_once(connection: play.Connection) -> None:
    await connection.reader.read(1)
    connection.close()


async def reset_in_handshake(connection: play.Connection) -> None:
    await connection.reader.read(1)
    connection.reset()


@pytest.mark.parametrize(
    ("at_accept", "failures"),
    [
        pytest.param(hang, {FailureClass.CONNECT_TIMEOUT}, id="hang"),
        pytest.param(close_at_once, {FailureClass.CLOSED_EARLY, FailureClass.CONNECT_RESET}, id="close"),
        pytest.param(reset_in_handshake, {FailureClass.CONNECT_RESET}, id="reset"),
    ],
)
async def test_interrupted_handshake_is_transient(
    transport: Transport,
    at_accept: Callable[[play.Connection], Awaitable[None]],
    failures: set[FailureClass],
) -> None:
    async with Receiver(at_accept=at_accept) as receiver:
        result = await transport.post(receiver.url.replace("http:", "https:"), HEADERS, BODY)
    assert result.outcome is Outcome.TRANSIENT
    assert result.failure_class in failures
    assert result.duration_s < 0.5 + MARGIN_S


# --- our own mistakes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["", "ftp://a.example/", "http://", "http://u:p@a.example/", "http://[::1/", "junk"])
async def test_unusable_url_is_definite(transport: Transport, url: str) -> None:
    result = await transport.post(url, HEADERS, BODY)
    assert (result.outcome, result.failure_class) == (Outcome.DEFINITE, FailureClass.INVALID_URL)


async def test_out_of_descriptors_does_not_count(monkeypatch: pytest.MonkeyPatch, transport: Transport) -> None:
    def exhausted(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("app.connector.socket.socket", exhausted)
    result = await transport.post("http://127.0.0.1:9/", HEADERS, BODY)
    assert (result.outcome, result.failure_class) == (Outcome.TRANSIENT, FailureClass.OWN_FAULT)
    assert not result.counts


async def test_header_that_cannot_be_sent_is_a_failure_and_not_an_exception(transport: Transport) -> None:
    async with Receiver() as receiver:
        result = await transport.post(receiver.url, {"x-a": "b\r\nx-injected: 1"}, BODY)
        assert receiver.requests == []
    assert (result.outcome, result.failure_class) == (Outcome.TRANSIENT, FailureClass.UNKNOWN)
