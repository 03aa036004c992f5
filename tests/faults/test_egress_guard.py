"""No way of writing, resolving, redirecting or proxying reaches an address that may not be called.

Each vector goes through the real transport, under the laxest settings for everything but addresses, to listeners that
count who connects.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from app.addresses import NOT_CALLABLE
from app.config import Settings
from app.endpoint_url import validate_endpoint_url
from app.errors import InvalidInput
from app.outcome import AttemptResult, FailureClass, Outcome
from app.transport import Transport
from tests.faults.canaries import Canaries
from tests.faults.certificates import trust
from tests.faults.egress_vectors import ANSWERS, LITERALS, NAMES, NOT_A_HOST, SPLIT_PARSERS
from tests.faults.nameserver import NameServer

HEADERS = {"content-type": "application/json"}
BODY = b"{}"
REFUSED = (FailureClass.BLOCKED_ADDRESS, FailureClass.INVALID_URL)
HAS_ADDRESS = re.compile(r"\d+\.\d+|[0-9a-f]*::|:\d")


def lax(**changes: object) -> Settings:
    values: dict[str, object] = {"deadline_s": 2.0, "connect_timeout_s": 1.0, "metrics_port": 0}
    return Settings(_env_file=None, **(values | {"allow_http": True, "allow_ports": "1-65535"} | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def names() -> Iterator[NameServer]:
    with NameServer({name: [answer] for name, answer in ANSWERS.items()}) as server:
        yield server


@pytest.fixture
async def transport(names: NameServer, few_authorities: None) -> AsyncIterator[Transport]:
    async with Transport(lax(), getaddrinfo=names.getaddrinfo) as opened:
        yield opened


@pytest.fixture(autouse=True)
def few_authorities(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", trust(tmp_path))


@pytest.fixture
async def canaries() -> AsyncIterator[Canaries]:
    async with Canaries() as listening:
        yield listening


def spellings(host: str, port: int) -> list[str]:
    """The host in URLs as somebody might put them into the database, and as the check at creation would leave them."""
    urls = [f"http://{host}:{port}/", f"https://{host}:{port}/hook?x=1"]
    for url in list(urls):
        try:
            urls.append(validate_endpoint_url(url))
        except InvalidInput:
            continue
    return urls


def assert_refused(result: AttemptResult, url: str) -> None:
    assert (result.outcome, result.failure_class in REFUSED) == (Outcome.DEFINITE, True), (url, result)
    assert result.http_status is None
    assert result.error is not None
    assert not HAS_ADDRESS.search(result.error)


# --- hosts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [*LITERALS, *NAMES])
async def test_forbidden_address_is_refused_however_it_is_written(
    transport: Transport, canaries: Canaries, host: str
) -> None:
    for port in canaries.ports:
        for url in spellings(host, port):
            result = await transport.post(url, HEADERS, BODY)
            assert_refused(result, url)
            assert result.failure_class is FailureClass.BLOCKED_ADDRESS
            assert result.error == NOT_CALLABLE
    assert await canaries.connections() == 0


@pytest.mark.parametrize("host", NOT_A_HOST)
async def test_what_only_looks_like_an_address_is_not_dialled(
    transport: Transport, canaries: Canaries, host: str
) -> None:
    for url in spellings(host, canaries.ports[0]):
        result = await transport.post(url, HEADERS, BODY)
        if result.failure_class is not FailureClass.DNS:  # a name that nobody has
            assert_refused(result, url)
    assert await canaries.connections() == 0
    with pytest.raises(InvalidInput):
        validate_endpoint_url(f"https://{host}:{canaries.ports[0]}/")


@pytest.mark.parametrize("template", SPLIT_PARSERS)
async def test_url_that_parsers_read_differently_is_not_dialled(
    transport: Transport, canaries: Canaries, template: str
) -> None:
    url = template.format(port=canaries.ports[0])
    assert_refused(await transport.post(url, HEADERS, BODY), url)
    assert await canaries.connections() == 0


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST"])
async def test_name_of_the_hosts_file_is_judged_like_any_other(canaries: Canaries, host: str) -> None:
    async with Transport(lax()) as transport:  # with the system's own resolver
        for url in spellings(host, canaries.ports[0]):
            assert_refused(await transport.post(url, HEADERS, BODY), url)
    assert await canaries.connections() == 0


# --- what an allowed network opens -----------------------------------------------------------------------------------

# Hosts that the check at creation refuses are among them: hexadecimal is the C library's affair, which dials 127.0.0.1.
OPENED = {
    *("127.0.0.1", "127.0.0.2", "127.1.2.3", "127.255.255.254", "127．0．0．1", "127。0。0。1", "127｡0｡0｡1"),
    *("0x7f000001", "0X7F000001", "0x000000007f000001", "0x7f.0x0.0x0.0x1", "0x7f.0.0.1", "0x7f.0.1", "0x7f.1"),
    *("0x7f.0.0.01", "127.0x0.0.1", "0177.0x0.1", "0x7f.000.1", "127.0.0x1", "0177.0.0x0.1"),
    *("[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[::FFFF:7F00:0001]", "[0:0:0:0:0:ffff:127.0.0.1]"),
}
# Public addresses that name loopback as the far end of a tunnel: allowed together with it, and not on this machine.
ELSEWHERE = {"[2606:4700::5efe:7f00:1]", "[2606:4700::200:5efe:127.0.0.1]"}


@pytest.mark.parametrize("host", [host for host in LITERALS if host not in ELSEWHERE])
async def test_allowed_loopback_opens_exactly_what_dials_it(names: NameServer, canaries: Canaries, host: str) -> None:
    async with Transport(lax(allow_networks=("127.0.0.0/8",)), getaddrinfo=names.getaddrinfo) as transport:
        result = await transport.post(f"http://{host}:{canaries.ports[0]}/", HEADERS, BODY)
    assert await canaries.connections() == int(host in OPENED)
    if host not in OPENED and result.failure_class is not FailureClass.DNS:
        assert_refused(result, host)


@pytest.mark.parametrize(
    ("host", "opened"),
    [
        ("bad0.example", True),  # 127.0.0.1
        ("alias.example", False),  # ::1 too
        ("long.alias.example", True),
        ("127.0.0.1.nip.example", True),
        ("bad15.example", True),  # ::ffff:127.0.0.1
        ("metadata.google.internal", False),
        ("bad2.example", False),  # 0.0.0.0
    ],
)
async def test_allowed_loopback_opens_names_of_which_every_address_is_allowed(
    names: NameServer, canaries: Canaries, host: str, opened: bool
) -> None:
    async with Transport(lax(allow_networks=("127.0.0.0/8",)), getaddrinfo=names.getaddrinfo) as transport:
        await transport.post(f"http://{host}:{canaries.ports[0]}/", HEADERS, BODY)
    assert await canaries.connections() == int(opened)


# --- rebinding -------------------------------------------------------------------------------------------------------

# The first answers stand for a public server: an allowed address, on which the canaries' ports are somebody else's.
GOOD, BAD = "127.0.0.66", "127.0.0.1"


@pytest.mark.parametrize("after", [[BAD], ["::1"], ["0.0.0.0"], ["::ffff:127.0.0.1"], ["169.254.169.254"], [GOOD, BAD]])
@pytest.mark.parametrize("cached_s", [0, 10], ids=["no-cache", "cache"])
async def test_name_that_turns_bad_between_attempts_is_refused(
    monkeypatch: pytest.MonkeyPatch, canaries: Canaries, after: list[str], cached_s: int
) -> None:
    monkeypatch.setattr("app.connector._DNS_CACHE_S", cached_s)
    with NameServer({"rebind.example": [[GOOD], after]}) as names:
        async with Transport(lax(allow_networks=(f"{GOOD}/32",)), getaddrinfo=names.getaddrinfo) as transport:
            first, second = canaries.ports
            await transport.post(f"http://rebind.example:{first}/", HEADERS, BODY)
            assert await canaries.connections() == 1  # the good one: the test would notice
            for port in (first, second) if cached_s == 0 else (second,):
                url = f"http://rebind.example:{port}/"
                assert_refused(await transport.post(url, HEADERS, BODY), url)
    assert await canaries.connections() == 1


async def test_name_is_looked_up_once_in_an_attempt_and_what_was_judged_is_dialled(canaries: Canaries) -> None:
    with NameServer({"rebind.example": [[GOOD], [BAD]]}) as names:
        async with Transport(lax(allow_networks=(f"{GOOD}/32",)), getaddrinfo=names.getaddrinfo) as transport:
            result = await transport.post(f"http://rebind.example:{canaries.ports[0]}/", HEADERS, BODY)
        assert names.queries == [("rebind.example", "A"), ("rebind.example", "AAAA")]
    assert result.failure_class is FailureClass.CLOSED_EARLY  # a canary closes at once
    assert await canaries.connections() == 1


async def test_dead_first_answer_does_not_bring_about_a_second_lookup() -> None:
    async with Canaries(1) as canaries:
        port = canaries.ports[0]
    async with Canaries() as canaries:  # the port above is closed now
        with NameServer({"rebind.example": [[GOOD], [BAD]]}) as names:
            async with Transport(lax(allow_networks=(f"{GOOD}/32",)), getaddrinfo=names.getaddrinfo) as transport:
                result = await transport.post(f"http://rebind.example:{port}/", HEADERS, BODY)
            assert len(names.queries) == 2
        assert result.failure_class is FailureClass.CONNECT_REFUSED
        assert await canaries.connections() == 0


async def test_families_that_answer_differently_are_judged_together(canaries: Canaries) -> None:
    with NameServer(
        {"split.example": [[GOOD, "::1"]], "split6.example": [["::ffff:127.0.0.66", "127.0.0.1"]]}
    ) as names:
        async with Transport(lax(allow_networks=(f"{GOOD}/32",)), getaddrinfo=names.getaddrinfo) as transport:
            for host in ("split.example", "split6.example"):
                url = f"http://{host}:{canaries.ports[0]}/"
                assert_refused(await transport.post(url, HEADERS, BODY), url)
    assert await canaries.connections() == 0
