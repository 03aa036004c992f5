"""Name servers that refuse, dawdle or ramble: each attempt ends in time, in a class of its own, and none is charged wrongly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.addresses import NOT_CALLABLE
from app.config import Settings
from app.outcome import AttemptResult, FailureClass, Outcome
from app.transport import Transport
from tests.faults.certificates import trust
from tests.faults.nameserver import EMPTY, NXDOMAIN, SERVFAIL, Alias, Delayed, NameServer, Refusal, Round
from tests.receiver import Receiver

HEADERS = {"content-type": "application/json"}
CONNECT_S = 0.5
MARGIN_S = 1.0
MANY = [f"127.0.{n}.9" for n in range(99)]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as running:
        yield running


@pytest.fixture(autouse=True)
def few_authorities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", trust(tmp_path))


def open_transport(names: NameServer, connect_s: float = 2.0) -> Transport:
    settings = Settings(
        _env_file=None, deadline_s=2.0, connect_timeout_s=connect_s, allow_networks=("127.0.0.0/8",), metrics_port=0
    )
    return Transport(settings, getaddrinfo=names.getaddrinfo)


async def call(receiver: Receiver, *rounds: Round, attempts: int = 1, connect_s: float = 2.0) -> list[AttemptResult]:
    url = f"http://hooks.example:{receiver.port}/"
    with NameServer({"hooks.example": rounds}) as names:
        async with open_transport(names, connect_s) as transport:
            return [await transport.post(url, HEADERS, b"{}") for _ in range(attempts)]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(NXDOMAIN, id="NXDOMAIN"),
        pytest.param(SERVFAIL, id="SERVFAIL"),
        pytest.param(Refusal("REFUSED"), id="REFUSED"),
        pytest.param(EMPTY, id="empty"),
        pytest.param(Alias(("b.example", "hooks.example", "b.example")), id="alias-loop"),
        pytest.param(Alias(("hooks.example",)), id="alias-of-itself"),
        pytest.param(Alias(tuple(f"hop{n}.example" for n in range(200))), id="aliases-to-nowhere"),
    ],
)
async def test_name_without_an_address_is_a_transient_dns_failure_at_once(receiver: Receiver, answer: Round) -> None:
    (result,) = await call(receiver, answer)
    assert (result.outcome, result.failure_class) == (Outcome.TRANSIENT, FailureClass.DNS)
    assert result.error == "the host name could not be resolved"
    assert result.duration_s < CONNECT_S + MARGIN_S
    assert receiver.connections == 0


@pytest.mark.parametrize("refusal", [NXDOMAIN, SERVFAIL, EMPTY], ids=lambda refusal: refusal.code)
async def test_failed_lookup_is_not_remembered(receiver: Receiver, refusal: Round) -> None:
    first, second = await call(receiver, refusal, ["127.0.0.1"], attempts=2)
    assert (first.failure_class, second.outcome) == (FailureClass.DNS, Outcome.DELIVERED)


async def test_slow_answer_ends_the_attempt_at_the_connect_limit(receiver: Receiver) -> None:
    (result,) = await call(receiver, Delayed(10.0, ("127.0.0.1",)), connect_s=CONNECT_S)
    assert (result.outcome, result.failure_class) == (Outcome.TRANSIENT, FailureClass.CONNECT_TIMEOUT)
    assert CONNECT_S <= result.duration_s < CONNECT_S + MARGIN_S
    assert receiver.connections == 0


async def test_answer_that_comes_too_late_is_judged_like_any_other(receiver: Receiver) -> None:
    """It arrives after the attempt that asked (two answers make it up), and is what the next attempt is given."""
    with NameServer({"hooks.example": [Delayed(CONNECT_S * 0.7, ("10.0.0.1",))]}) as names:
        async with open_transport(names, CONNECT_S) as transport:
            url = f"http://hooks.example:{receiver.port}/"
            results = [await transport.post(url, HEADERS, b"{}") for _ in range(2)]
    assert results[0].failure_class is FailureClass.CONNECT_TIMEOUT
    assert (results[1].outcome, results[1].error) == (Outcome.DEFINITE, NOT_CALLABLE)


async def test_a_hundred_good_addresses_are_tried_within_the_deadline(receiver: Receiver) -> None:
    # Nothing listens on the first 99; each refuses at once.
    (result,) = await call(receiver, [*MANY, "127.0.0.1"])
    assert result.outcome is Outcome.DELIVERED
    assert result.duration_s < 2.0 + MARGIN_S
    assert receiver.connections == 1


@pytest.mark.parametrize("place", [0, 50, 99])
async def test_one_bad_address_among_a_hundred_refuses_them_all(receiver: Receiver, place: int) -> None:
    (result,) = await call(receiver, [*MANY[:place], "10.0.0.1", *MANY[place:], "127.0.0.1"])
    assert (result.outcome, result.failure_class) == (Outcome.DEFINITE, FailureClass.BLOCKED_ADDRESS)
    assert receiver.connections == 0


async def test_long_chain_of_aliases_that_ends_in_a_good_address_is_delivered(receiver: Receiver) -> None:
    (result,) = await call(receiver, Alias(tuple(f"hop{n}.example" for n in range(10)), ("127.0.0.1",)))
    assert result.outcome is Outcome.DELIVERED


async def test_many_attempts_at_once_share_one_lookup(receiver: Receiver) -> None:
    with NameServer({"hooks.example": [["127.0.0.1"]]}) as names:
        async with open_transport(names) as transport:
            url = f"http://hooks.example:{receiver.port}/"
            results = await asyncio.gather(*(transport.post(url, HEADERS, b"{}") for _ in range(40)))
        assert names.queries == [("hooks.example", "A"), ("hooks.example", "AAAA")]
    assert {result.outcome for result in results} == {Outcome.DELIVERED}


async def test_failed_lookup_fails_every_attempt_that_waits_for_it_and_hangs_none(receiver: Receiver) -> None:
    with NameServer({"hooks.example": [SERVFAIL]}) as names:
        async with open_transport(names) as transport, asyncio.timeout(2.0 + MARGIN_S):
            url = f"http://hooks.example:{receiver.port}/"
            results = await asyncio.gather(*(transport.post(url, HEADERS, b"{}") for _ in range(40)))
    assert {result.failure_class for result in results} == {FailureClass.DNS}


async def test_slow_names_hold_up_no_other_name(receiver: Receiver) -> None:
    """Fewer than the resolver's threads; from there on, other names wait."""
    slow = {f"slow{n}.example": [Delayed(10.0, ("127.0.0.1",))] for n in range(24)}
    with NameServer(slow | {"hooks.example": [["127.0.0.1"]]}) as names:
        async with open_transport(names, 1.0) as transport:
            waiting = [
                asyncio.create_task(transport.post(f"http://{host}:{receiver.port}/", HEADERS, b"{}")) for host in slow
            ]
            while len({name for name, _ in names.queries}) < len(slow):
                await asyncio.sleep(0)
            result = await transport.post(f"http://hooks.example:{receiver.port}/", HEADERS, b"{}")
            assert {r.failure_class for r in await asyncio.gather(*waiting)} == {FailureClass.CONNECT_TIMEOUT}
    assert result.outcome is Outcome.DELIVERED
