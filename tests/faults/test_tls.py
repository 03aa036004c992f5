"""TLS: only a certificate that a trusted authority issued for the URL's host, valid now, over TLS 1.2 or later."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import warnings
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from app.config import Settings
from app.outcome import AttemptResult, FailureClass, Outcome
from app.transport import Transport
from tests import receiver as play
from tests.faults.certificates import authority, server_context, trust
from tests.faults.nameserver import NameServer
from tests.receiver import Connection, Receiver

HEADERS = {"content-type": "application/json"}
BODY = b'{"secret": 1}'
NAME = "hooks.example"
CONNECT_S = 0.5
MARGIN_S = 1.0
DAY = timedelta(days=1)


@pytest.fixture
async def transport(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Transport]:
    """Trusts one authority; `hooks.example`, its subdomains and `straße.example` are on 127.0.0.1."""
    monkeypatch.setenv("SSL_CERT_FILE", trust(tmp_path))
    settings = Settings(
        _env_file=None, deadline_s=2.0, connect_timeout_s=CONNECT_S, allow_networks=("127.0.0.0/8",), metrics_port=0
    )
    hosts = (NAME, f"a.{NAME}", f"a.b.{NAME}", "xn--strae-oqa.example")
    with NameServer({host: [["127.0.0.1"]] for host in hosts}) as names:
        async with Transport(settings, getaddrinfo=names.getaddrinfo) as opened:
            yield opened


async def call(transport: Transport, context: ssl.SSLContext, host: str = NAME) -> tuple[AttemptResult, Receiver]:
    async with Receiver(tls=context) as receiver:
        return await transport.post(f"https://{host}:{receiver.port}/hook", HEADERS, BODY), receiver


async def call_one_that_says_why(transport: Transport, context: ssl.SSLContext) -> AttemptResult:
    """With OpenSSL's own server, which sends an alert before it hangs up; asyncio's only hangs up."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
            tls.recv(65536)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serving = asyncio.create_task(asyncio.to_thread(serve))
        result = await transport.post(f"https://{NAME}:{listener.getsockname()[1]}/hook", HEADERS, BODY)
        await serving
    return result


def assert_refused(result: AttemptResult, receiver: Receiver | None = None) -> None:
    assert (result.outcome, result.failure_class) == (Outcome.DEFINITE, FailureClass.TLS)
    assert receiver is None or receiver.requests == []
    assert result.error is not None
    assert result.error.startswith("TLS failed: ")
    assert "127.0.0" not in result.error
    assert result.duration_s < CONNECT_S + MARGIN_S


# --- accepted --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("certified", "host"),
    [
        (NAME, NAME),
        (NAME, NAME.upper()),
        (NAME, f"{NAME}."),
        (f"*.{NAME}", f"a.{NAME}"),
        ("127.0.0.1", "127.0.0.1"),
        ("xn--strae-oqa.example", "xn--strae-oqa.example"),
    ],
)
async def test_certificate_of_a_trusted_authority_for_the_host_is_accepted(
    transport: Transport, certified: str, host: str
) -> None:
    result, receiver = await call(transport, server_context(certified), host)
    assert result.outcome is Outcome.DELIVERED
    assert receiver.requests[0].body == BODY


async def test_name_is_asked_for_and_checked_although_an_address_is_dialled(transport: Transport) -> None:
    asked: list[str | None] = []
    context = server_context(NAME)
    context.sni_callback = lambda connection, name, _: asked.append(name)
    result, _ = await call(transport, context)
    assert (result.outcome, asked) == (Outcome.DELIVERED, [NAME])


async def test_intermediate_authority_sent_along_is_accepted(transport: Transport) -> None:
    result, _ = await call(transport, server_context(NAME, ca=authority().create_child_ca()))
    assert result.outcome is Outcome.DELIVERED


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=str)
async def test_tls_1_2_and_1_3_are_spoken(transport: Transport, version: ssl.TLSVersion) -> None:
    context = server_context(NAME)
    context.minimum_version = context.maximum_version = version
    result, _ = await call(transport, context)
    assert result.outcome is Outcome.DELIVERED


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("certified", "host"),
    [
        ("other.example", NAME),
        ("127.0.0.1", NAME),  # the address that is dialled, and not the name
        (NAME, "127.0.0.1"),
        ("127.0.0.2", "127.0.0.1"),
        (f"a.{NAME}", NAME),
        (f"*.{NAME}", NAME),
        (f"*.{NAME}", f"a.b.{NAME}"),
        ("*.example", f"a.{NAME}"),
        (f"{NAME}.evil.example", NAME),
        (f"evil{NAME}", NAME),
    ],
)
async def test_certificate_for_another_host_is_refused(transport: Transport, certified: str, host: str) -> None:
    result, receiver = await call(transport, server_context(certified), host)
    assert_refused(result, receiver)


async def test_name_outside_the_alternative_names_does_not_count(transport: Transport) -> None:
    result, receiver = await call(transport, server_context("other.example", common_name=NAME))
    assert_refused(result, receiver)


@pytest.mark.parametrize(("begins", "ends"), [(-10 * DAY, -DAY), (DAY, 10 * DAY)], ids=["expired", "not-yet-valid"])
async def test_certificate_outside_its_time_is_refused(
    transport: Transport, begins: timedelta, ends: timedelta
) -> None:
    now = datetime.now(UTC)
    context = server_context(NAME, not_before=now + begins, not_after=now + ends)
    result, receiver = await call(transport, context)
    assert_refused(result, receiver)


@pytest.mark.parametrize("made_by", ["stranger", "namesake", "strangers-child"])
async def test_certificate_of_an_unknown_authority_is_refused(transport: Transport, made_by: str) -> None:
    ca = {
        "stranger": lambda: authority("stranger"),
        "namesake": lambda: trustme.CA(organization_name="trusted"),  # another key under the trusted one's name
        "strangers-child": lambda: authority("stranger").create_child_ca(),
    }[made_by]()
    result, receiver = await call(transport, server_context(NAME, ca=ca))
    assert_refused(result, receiver)


async def test_certificate_that_signed_itself_is_refused(transport: Transport, tmp_path: Path) -> None:
    ca = authority("stranger")
    files = tmp_path / "own.pem", tmp_path / "own.key"
    ca.cert_pem.write_to_path(files[0])
    ca.private_key_pem.write_to_path(files[1])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*files)
    result, receiver = await call(transport, context)
    assert_refused(result, receiver)


async def test_ordinary_certificate_cannot_act_as_an_authority(transport: Transport, tmp_path: Path) -> None:
    """A leaf of the trusted authority signs another: the classic mistake of clients that skip basic constraints."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    leaf = authority().issue_cert("mine.example")
    leaf_key = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    leaf_certificate = x509.load_pem_x509_certificate(leaf.cert_chain_pems[0].bytes())
    assert isinstance(leaf_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    forged = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)]))
        .issuer_name(leaf_certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - DAY)
        .not_valid_after(datetime.now(UTC) + DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(NAME)]), critical=False)
        .sign(leaf_key, hashes.SHA256())
    )
    (tmp_path / "chain.pem").write_bytes(
        forged.public_bytes(serialization.Encoding.PEM) + leaf.cert_chain_pems[0].bytes()
    )
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
    result, receiver = await call(transport, context)
    assert_refused(result, receiver)


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
async def test_server_that_speaks_only_old_tls_is_refused(transport: Transport, version: str) -> None:
    context = server_context(NAME)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # which is the point
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion[version]
    context.set_ciphers("ALL:@SECLEVEL=0")
    assert_refused(await call_one_that_says_why(transport, context))
    result, receiver = await call(transport, context)
    assert result.outcome is not Outcome.DELIVERED
    assert receiver.requests == []


@pytest.mark.parametrize("ciphers", ["aNULL:@SECLEVEL=0", "NULL-SHA256:@SECLEVEL=0"])
async def test_server_without_certificate_or_encryption_is_refused(transport: Transport, ciphers: str) -> None:
    context = server_context(NAME)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(ciphers)
    assert_refused(await call_one_that_says_why(transport, context))
    result, receiver = await call(transport, context)
    assert result.outcome is not Outcome.DELIVERED
    assert receiver.requests == []


async def test_receiver_that_wants_a_certificate_of_ours_is_refused(transport: Transport) -> None:
    context = server_context(NAME)
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # later versions ask after our handshake is over
    context.verify_mode = ssl.CERT_REQUIRED
    authority().configure_trust(context)
    result, receiver = await call(transport, context)
    assert receiver.requests == []
    assert result.failure_class in (FailureClass.TLS, FailureClass.CONNECT_RESET, FailureClass.CLOSED_EARLY)


async def test_refusal_is_for_this_attempt_only(transport: Transport) -> None:
    """A receiver that mends its certificate gets the next attempt; nothing is remembered."""
    bad, _ = await call(transport, server_context("other.example"))
    good, _ = await call(transport, server_context(NAME))
    assert (bad.outcome, good.outcome) == (Outcome.DEFINITE, Outcome.DELIVERED)


# --- handshakes that do not come to an end ---------------------------------------------------------------------------


async def hang(connection: Connection) -> None:
    await connection.closing.wait()


async def hang_in_the_middle(connection: Connection) -> None:
    await connection.reader.read(1)
    await connection.send(b"\x16\x03\x03\x40\x00")  # a handshake record of 16 KiB, announced and never sent
    await connection.closing.wait()


@pytest.mark.parametrize("at_accept", [hang, hang_in_the_middle])
async def test_handshake_that_hangs_ends_at_the_connect_limit(transport: Transport, at_accept: object) -> None:
    async with Receiver(at_accept=at_accept) as receiver:  # type: ignore[arg-type]
        result = await transport.post(f"https://{NAME}:{receiver.port}/", HEADERS, BODY)
    assert (result.outcome, result.failure_class) == (Outcome.TRANSIENT, FailureClass.CONNECT_TIMEOUT)
    assert CONNECT_S <= result.duration_s < CONNECT_S + MARGIN_S


async def test_endless_handshake_is_refused_or_ends_at_the_connect_limit(transport: Transport) -> None:
    async def flood(connection: Connection) -> None:
        await connection.reader.read(1)
        while not connection.writer.is_closing():
            await connection.send(
                b"\x16\x03\x03\x40\x00" + b"\x0b\xff\xff\xff" + bytes(16380)
            )  # a certificate of 16 MiB

    async with Receiver(at_accept=flood) as receiver:
        result = await transport.post(f"https://{NAME}:{receiver.port}/", HEADERS, BODY)
    assert result.failure_class in (FailureClass.TLS, FailureClass.CONNECT_TIMEOUT, FailureClass.CONNECT_RESET)
    assert result.duration_s < CONNECT_S + MARGIN_S


async def test_huge_chain_is_refused(transport: Transport) -> None:
    ca = authority()
    for _ in range(8):
        ca = ca.create_child_ca()
    names = [f"{'n' * 50}{n}.example" for n in range(3000)]
    result, receiver = await call(transport, server_context(NAME, *names, ca=ca))
    assert_refused(result, receiver)


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mail.example ESMTP\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", bytes(64)],
    ids=["http", "smtp", "ssh", "zeros"],
)
async def test_other_protocol_behind_https_is_refused(transport: Transport, answer: bytes) -> None:
    async def speak(connection: Connection) -> None:
        await connection.send(answer)
        await connection.reader.read(1)

    async with Receiver(at_accept=speak) as receiver:
        result = await transport.post(f"https://{NAME}:{receiver.port}/", HEADERS, BODY)
    assert_refused(result, receiver)


async def test_connection_is_never_moved_from_https_to_http(transport: Transport) -> None:
    """The same host and port under both schemes: a pooled connection of one must not serve the other."""
    async with Receiver(play.ok, tls=server_context(NAME)) as receiver:
        secure = await transport.post(f"https://{NAME}:{receiver.port}/", HEADERS, BODY)
        plain = await transport.post(f"http://{NAME}:{receiver.port}/", HEADERS, BODY)
        assert len(receiver.requests) == 1
    assert secure.outcome is Outcome.DELIVERED
    assert plain.outcome is Outcome.TRANSIENT
