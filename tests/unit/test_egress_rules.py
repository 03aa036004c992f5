"""Outside the allowed networks: https, and the ports of the web; Homing's own servers nowhere."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from app.addresses import NOT_CALLABLE, PLAIN_HTTP_REFUSED, PORT_REFUSED, AddressGuard, BlockedAddressError
from app.config import Settings, load_settings
from app.connector import addresses_of
from app.errors import SettingsInvalid
from app.outcome import FailureClass, Outcome
from app.transport import Transport

PRIVATE = ip_network("10.0.0.0/8")
LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"), ip_network("0.0.0.0/8"), ip_network("::/128"))


def why(guard: AddressGuard, ip: str, port: int = 443, *, encrypted: bool = True) -> str | None:
    try:
        guard.check(ip, port, encrypted=encrypted)
    except BlockedAddressError as refusal:
        return refusal.strerror
    return None


@pytest.mark.parametrize("ip", ["8.8.8.8", "2606:4700:4700::1111"])
@pytest.mark.parametrize(("port", "open_"), [(443, True), (80, True), (8443, True), (1024, True), (65535, True)])
def test_public_address_may_be_called_on_web_ports_and_above_1023(ip: str, port: int, open_: bool) -> None:
    assert (why(AddressGuard(), ip, port) is None) is open_


@pytest.mark.parametrize("port", [0, 1, 21, 22, 23, 25, 53, 110, 143, 389, 444, 465, 587, 993, 1023])
def test_ports_of_other_protocols_are_refused_at_public_addresses(port: int) -> None:
    assert why(AddressGuard(), "8.8.8.8", port) == PORT_REFUSED


def test_plain_http_to_a_public_address_is_refused_unless_set() -> None:
    assert why(AddressGuard(), "8.8.8.8", 80, encrypted=False) == PLAIN_HTTP_REFUSED
    assert why(AddressGuard(plain_http=True), "8.8.8.8", 80, encrypted=False) is None


def test_allowed_network_is_open_on_any_port_without_encryption() -> None:
    assert why(AddressGuard([PRIVATE]), "10.0.0.1", 25, encrypted=False) is None


def test_allowing_a_translator_does_not_allow_plain_http_through_it() -> None:
    guard = AddressGuard([ip_network("64:ff9b::/96")])
    assert why(guard, "64:ff9b::8.8.8.8", encrypted=True) is None
    assert why(guard, "64:ff9b::8.8.8.8", 80, encrypted=False) == PLAIN_HTTP_REFUSED
    assert why(guard, "64:ff9b::8.8.8.8", 25) == PORT_REFUSED


def test_forbidden_address_is_refused_with_one_text_whatever_else_is_wrong() -> None:
    for ip in ("127.0.0.1", "10.0.0.1", "::1", "not an address"):
        assert why(AddressGuard(), ip, 25, encrypted=False) == NOT_CALLABLE


@pytest.mark.parametrize("ip", ["127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::"])
def test_own_server_on_loopback_is_refused_on_every_loopback_address(ip: str) -> None:
    guard = AddressGuard(LOOPBACK, own=[("127.0.0.1", 5432)])
    assert why(guard, ip, 5432) == NOT_CALLABLE
    assert why(guard, ip, 5433) is None


def test_own_server_in_an_allowed_network_is_refused_on_its_port_only() -> None:
    guard = AddressGuard([PRIVATE], own=[("10.0.0.5", 6379)])
    assert why(guard, "10.0.0.5", 6379) == why(guard, "::ffff:10.0.0.5", 6379) == NOT_CALLABLE
    assert why(guard, "10.0.0.5", 443) is why(guard, "10.0.0.6", 6379) is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:p@127.0.0.1:5433/db", {("127.0.0.1", 5433)}),
        ("postgresql+psycopg://127.0.0.1/db", {("127.0.0.1", 5432)}),
        (
            "postgresql://u:p%40@10.1.1.1:1,10.1.1.2,[fd00::3]:4/db",
            {("10.1.1.1", 1), ("10.1.1.2", 5432), ("fd00::3", 4)},
        ),
        ("redis://:p@127.0.0.1/0", {("127.0.0.1", 6379)}),
        ("rediss://[::1]:6380", {("::1", 6380)}),
        ("unix:///run/redis.sock", set()),
        ("postgresql:///db?host=/run/postgresql", set()),
        ("redis://127.0.0.1:port", set()),
    ],
)
async def test_own_servers_are_found_in_their_urls(url: str, expected: set[tuple[str, int]]) -> None:
    assert await addresses_of([url], 5) == expected


@pytest.mark.parametrize(
    ("text", "open_", "closed"),
    [
        ("443", [443], [80, 442, 8443]),
        ("80, 443 ,1000-1002", [80, 1000, 1002], [999, 1003]),
        ("1-65535", [1, 65535], []),
    ],
)
def test_ports_are_read_from_the_setting(text: str, open_: list[int], closed: list[int]) -> None:
    guard = AddressGuard(ports=load_settings(_env_file=None, allow_ports=text).allowed_ports)
    assert all(why(guard, "8.8.8.8", port) is None for port in open_)
    assert all(why(guard, "8.8.8.8", port) == PORT_REFUSED for port in closed)


@pytest.mark.parametrize("text", ["", "http", "443,", "0", "65536", "10-5", "1-2-3", "-5", "1-"])
def test_setting_that_is_no_list_of_ports_is_refused(text: str) -> None:
    with pytest.raises(SettingsInvalid, match="HOMING_ALLOW_PORTS"):
        load_settings(_env_file=None, allow_ports=text)


def test_default_of_the_setting_is_the_default_of_the_guard() -> None:
    guard = AddressGuard(ports=Settings(_env_file=None).allowed_ports)
    for port in (1, 79, 80, 81, 443, 1023, 1024, 65535):
        assert why(guard, "8.8.8.8", port) == why(AddressGuard(), "8.8.8.8", port)


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("http://8.8.8.8/", PLAIN_HTTP_REFUSED),
        ("http://[2606:4700:4700::1111]:8080/", PLAIN_HTTP_REFUSED),
        ("https://8.8.8.8:22/", PORT_REFUSED),
        ("http://127.0.0.1/", NOT_CALLABLE),
        ("https://10.0.0.1:22/", NOT_CALLABLE),
    ],
)
async def test_transport_refuses_before_dialling_and_says_what_to_do(url: str, error: str) -> None:
    async with Transport(Settings(_env_file=None)) as transport:
        result = await transport.post(url, {}, b"")
    assert (result.outcome, result.failure_class) == (Outcome.DEFINITE, FailureClass.BLOCKED_ADDRESS)
    assert result.error == error


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/", "http://[::1]:{port}/", "https://127.0.0.2:{port}/"])
@pytest.mark.parametrize("known_by", ["settings", "argument", "metrics"])
async def test_transport_refuses_its_own_servers_in_an_allowed_network(url: str, known_by: str) -> None:
    server = "postgresql://user:password@127.0.0.1:45432/homing"
    values = {"settings": {"database_url": server}, "argument": {}, "metrics": {"metrics_port": 45430}}[known_by]
    settings = load_settings(_env_file=None, allow_networks=("127.0.0.0/8", "::1/128"), **values)
    async with Transport(settings, own_servers=[server] if known_by == "argument" else []) as transport:
        result = await transport.post(url.format(port=45432), {}, b"")
    assert (result.outcome, result.error) == (Outcome.DEFINITE, NOT_CALLABLE)
