from __future__ import annotations

import errno
import socket
import ssl

import aiohttp
import pytest
from aiohttp.client_reqrep import ConnectionKey
from aiohttp.http_exceptions import BadStatusLine
from hypothesis import given
from hypothesis import strategies as st

from app.addresses import BlockedAddressError
from app.outcome import AttemptResult, FailureClass, Outcome, classify_exception, classify_status

TRANSIENT, DEFINITE = Outcome.TRANSIENT, Outcome.DEFINITE
KEY = ConnectionKey("receiver.example", 443, True, True, None, None, None)


@given(st.integers(100, 999))
def test_every_status_has_the_outcome_of_the_table(status: int) -> None:
    outcome = classify_status(status)
    if 200 <= status < 300:
        assert outcome is Outcome.DELIVERED
    elif status in (408, 429) or status >= 500:
        assert outcome is TRANSIENT
    elif status == 410:
        assert outcome is Outcome.GONE
    else:
        assert outcome is DEFINITE


def connector_error(error: OSError, kind: type[Exception] = aiohttp.ClientConnectorError) -> Exception:
    wrapped = kind(KEY, error)
    wrapped.__cause__ = error
    return wrapped


def wrapped_timeout() -> Exception:
    error = aiohttp.ConnectionTimeoutError("slow")
    error.__cause__ = TimeoutError()
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (connector_error(ConnectionRefusedError(errno.ECONNREFUSED, "no")), (TRANSIENT, FailureClass.CONNECT_REFUSED)),
        (connector_error(ConnectionResetError(errno.ECONNRESET, "no")), (TRANSIENT, FailureClass.CONNECT_RESET)),
        (connector_error(ConnectionResetError()), (TRANSIENT, FailureClass.CONNECT_RESET)),
        (connector_error(TimeoutError(errno.ETIMEDOUT, "no")), (TRANSIENT, FailureClass.CONNECT_TIMEOUT)),
        (connector_error(OSError(errno.EHOSTUNREACH, "no")), (TRANSIENT, FailureClass.UNREACHABLE)),
        (connector_error(OSError(errno.ENETUNREACH, "no")), (TRANSIENT, FailureClass.UNREACHABLE)),
        (connector_error(OSError(errno.EMFILE, "no")), (TRANSIENT, FailureClass.OWN_FAULT)),
        (connector_error(OSError(errno.ENOBUFS, "no")), (TRANSIENT, FailureClass.OWN_FAULT)),
        (connector_error(OSError(errno.EIO, "no")), (TRANSIENT, FailureClass.UNKNOWN)),
        (connector_error(BlockedAddressError()), (DEFINITE, FailureClass.BLOCKED_ADDRESS)),
        (
            connector_error(BlockedAddressError(), aiohttp.ClientConnectorDNSError),
            (DEFINITE, FailureClass.BLOCKED_ADDRESS),
        ),
        (
            connector_error(socket.gaierror(socket.EAI_NONAME, "no"), aiohttp.ClientConnectorDNSError),
            (TRANSIENT, FailureClass.DNS),
        ),
        (UnicodeError("label too long"), (TRANSIENT, FailureClass.DNS)),
        (aiohttp.InvalidURL("http://127.1/"), (DEFINITE, FailureClass.BLOCKED_ADDRESS)),
        (
            aiohttp.ClientConnectorCertificateError(KEY, ssl.SSLCertVerificationError(1, "bad")),
            (DEFINITE, FailureClass.TLS),
        ),
        (connector_error(ssl.SSLError(1, "alert"), aiohttp.ClientConnectorSSLError), (DEFINITE, FailureClass.TLS)),
        (
            connector_error(ssl.SSLEOFError(8, "eof"), aiohttp.ClientConnectorSSLError),
            (TRANSIENT, FailureClass.CLOSED_EARLY),
        ),
        (wrapped_timeout(), (TRANSIENT, FailureClass.CONNECT_TIMEOUT)),
        (TimeoutError(), (TRANSIENT, FailureClass.TIMEOUT)),
        (aiohttp.SocketTimeoutError(), (TRANSIENT, FailureClass.TIMEOUT)),
        (aiohttp.ServerDisconnectedError(), (TRANSIENT, FailureClass.CLOSED_EARLY)),
        (aiohttp.ClientOSError(errno.ECONNRESET, "no"), (TRANSIENT, FailureClass.CONNECT_RESET)),
        (aiohttp.ClientOSError(errno.EPIPE, "no"), (TRANSIENT, FailureClass.CONNECT_RESET)),
        (aiohttp.ClientConnectionResetError("closing"), (TRANSIENT, FailureClass.CONNECT_RESET)),
        (aiohttp.ClientPayloadError("cut"), (TRANSIENT, FailureClass.PROTOCOL)),
        (BadStatusLine("220 mail"), (TRANSIENT, FailureClass.PROTOCOL)),
        (RuntimeError("bug"), (TRANSIENT, FailureClass.UNKNOWN)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else value[1],
)
def test_exception_is_classified_by_its_cause(error: Exception, expected: tuple[Outcome, FailureClass]) -> None:
    assert classify_exception(error) == expected


def test_circular_causes_end() -> None:
    first, second = RuntimeError(), RuntimeError()
    first.__cause__, second.__cause__ = second, first
    assert classify_exception(first) == (TRANSIENT, FailureClass.UNKNOWN)


def test_only_our_own_fault_does_not_count() -> None:
    assert [kind for kind in FailureClass if not AttemptResult(TRANSIENT, kind).counts] == [FailureClass.OWN_FAULT]
    assert AttemptResult(Outcome.DELIVERED).counts
