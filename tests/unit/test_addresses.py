from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.addresses import AddressGuard, BlockedAddressError, Network, embedded_ipv4

GUARD = AddressGuard()

# First, last and an inner address of each range that must never be called.
DENIED_V4 = [
    *("0.0.0.0", "0.0.0.1", "0.255.255.255", "10.0.0.0", "10.1.2.3", "10.255.255.255"),
    *("100.64.0.0", "100.100.100.200", "100.127.255.255", "127.0.0.0", "127.0.0.1", "127.255.255.255"),
    *("168.63.129.16", "169.254.0.0", "169.254.169.254", "169.254.170.2", "169.254.255.255"),
    *("172.16.0.0", "172.17.0.1", "172.31.255.255", "192.0.0.0", "192.0.0.9", "192.0.0.192", "192.0.0.255"),
    *("192.0.2.0", "192.0.2.255", "192.88.99.0", "192.88.99.255", "192.168.0.0", "192.168.1.1", "192.168.255.255"),
    *("198.18.0.0", "198.19.255.255", "198.51.100.0", "198.51.100.255", "203.0.113.0", "203.0.113.255"),
    *("224.0.0.0", "224.0.0.251", "239.255.255.255", "240.0.0.0", "255.255.255.254", "255.255.255.255"),
]
PUBLIC_V4 = [
    *("1.0.0.0", "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0"),
    *("126.255.255.255", "128.0.0.0", "168.63.129.15", "168.63.129.17", "169.253.255.255", "169.255.0.0"),
    *("172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0", "192.0.3.0", "192.88.98.255", "192.88.100.0"),
    *("192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "198.51.99.255", "198.51.101.0"),
    *("203.0.112.255", "203.0.114.0", "223.255.255.255"),
]
DENIED_V6 = [
    *("::", "::1", "::2", "::127.0.0.1", "::8.8.8.8", "::ffff:ffff", "::1:0:0", "::ffff:0:127.0.0.1"),
    *("64:ff9b::", "64:ff9b::8.8.8.8", "64:ff9b::7f00:1", "64:ff9b:1::", "64:ff9b:1::7f00:1", "64:ff9b:1:ffff::"),
    *("100::", "100::ffff", "100:0:0:1::", "200::1", "400::", "1fff::"),
    *("2001::", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:2::1", "2001:10::1", "2001:20::1"),
    *("2001:1ff:ffff::", "2001:db8::", "2001:db8:ffff::1", "2002::", "2002:7f00:1::", "2002:0808:0808::1"),
    *("3fff::", "3fff:fff::", "4000::", "5f00::", "5f00:ffff::", "8000::1", "e000::"),
    *("fc00::", "fd00::1", "fd00:ec2::254", "fdff::", "fe00::", "fe80::", "fe80::1", "febf::", "fec0::", "feff::"),
    *("ff00::", "ff02::1", "ff0e::1", "ffff::"),
]
PUBLIC_V6 = [
    *("2000::", "2001:200::", "2001:4860:4860::8888", "2003::", "2606:4700:4700::1111", "2400:cb00::1"),
    *("2a00:1450:4001::200e", "2001:db7:ffff::", "2001:db9::", "2001:ffff::", "3ffe::", "3fff:1000::"),
]
EMBEDDINGS = {
    "mapped": "::ffff:{ip}",
    "compatible": "::{ip}",
    "translated": "::ffff:0:{ip}",
    "nat64": "64:ff9b::{ip}",
    "nat64-local": "64:ff9b:1::{ip}",
    "isatap": "2606:4700::5efe:{ip}",
    "isatap-universal": "2606:4700::200:5efe:{ip}",
}


def sixtofour(ip: str) -> IPv6Address:
    return IPv6Address(0x2002 << 112 | int(IPv4Address(ip)) << 80 | 1)


def teredo(server: str, client: str) -> IPv6Address:
    return IPv6Address(0x20010000 << 96 | int(IPv4Address(server)) << 64 | int(IPv4Address(client)) ^ 0xFFFFFFFF)


@pytest.mark.parametrize("ip", DENIED_V4 + DENIED_V6)
def test_special_address_is_refused(ip: str) -> None:
    assert GUARD.verdict(ip)


@pytest.mark.parametrize("ip", PUBLIC_V4 + PUBLIC_V6)
def test_public_address_may_be_called(ip: str) -> None:
    assert GUARD.verdict(ip) is None


@pytest.mark.parametrize("shape", EMBEDDINGS.values(), ids=EMBEDDINGS.keys())
@pytest.mark.parametrize("ip", DENIED_V4)
def test_special_ipv4_is_refused_in_every_embedding(shape: str, ip: str) -> None:
    assert GUARD.verdict(shape.format(ip=ip))


@pytest.mark.parametrize("ip", DENIED_V4)
def test_special_ipv4_is_refused_in_a_tunnel(ip: str) -> None:
    everything = AddressGuard([ip_network("2000::/3")])  # even where the tunnel's own prefix was opened
    for address in (sixtofour(ip), teredo("8.8.8.8", ip), teredo(ip, "8.8.8.8")):
        assert GUARD.verdict(address)
        assert everything.verdict(address)


def test_mapped_ipv4_is_refused_unless_its_network_is_allowed() -> None:
    assert GUARD.verdict("::ffff:8.8.8.8") == "IPv4-mapped (RFC 4291)"
    assert AddressGuard([ip_network("8.8.8.0/24")]).verdict("::ffff:8.8.8.8") is None


@pytest.mark.parametrize("zone", ["%eth0", "%1"])
def test_zone_changes_nothing(zone: str) -> None:
    assert GUARD.verdict("fe80::1" + zone)
    assert GUARD.verdict("::ffff:127.0.0.1" + zone)
    assert GUARD.verdict("2606:4700:4700::1111" + zone) is None
    assert AddressGuard([ip_network("fe80::/10")]).verdict("fe80::1" + zone) is None


@pytest.mark.parametrize("text", ["", "localhost", "127.1", "0x7f.1", "2130706433", "1.2.3.4.5", "::g", "1.2.3.4/8"])
def test_what_is_not_an_address_is_refused(text: str) -> None:
    assert GUARD.verdict(text)


@pytest.mark.parametrize(
    ("networks", "ip", "open_"),
    [
        (["127.0.0.0/8"], "127.0.0.1", True),
        (["127.0.0.0/8"], "::ffff:127.0.0.1", True),
        (["127.0.0.0/8"], "::1", False),
        (["127.0.0.0/8"], "10.0.0.1", False),
        (["127.0.0.0/8"], "::ffff:10.0.0.1", False),
        (["127.0.0.0/8"], "64:ff9b::127.0.0.1", False),
        (["127.0.0.0/8"], "::127.0.0.1", False),
        (["::1/128"], "::1", True),
        (["::1/128"], "127.0.0.1", False),
        (["::ffff:0:0/96"], "::ffff:127.0.0.1", False),
        (["64:ff9b::/96"], "64:ff9b::8.8.8.8", True),
        (["64:ff9b::/96"], "64:ff9b::10.0.0.1", False),
        (["64:ff9b::/96", "10.0.0.0/8"], "64:ff9b::10.0.0.1", True),
        (["64:ff9b:1::/48"], "64:ff9b:1::8.8.8.8", True),
        (["64:ff9b:1::/48"], "64:ff9b:1::10.0.0.1", False),
        (["64:ff9b:1::/48"], "64:ff9b:1:a00:0:100::", False),  # 10.0.0.1 in the layout of a /48 prefix
        (["fd00::/8"], "fd12::1", True),
        (["fd00::/8"], "fd12::5efe:10.0.0.1", False),
        (["10.0.0.0/8"], "10.255.255.255", True),
        (["10.0.0.0/8"], "11.0.0.0", True),
        (["0.0.0.0/0", "::/0"], "169.254.169.254", True),
    ],
)
def test_allowed_networks_open_exactly_themselves(networks: list[str], ip: str, open_: bool) -> None:
    allowed: list[Network] = [ip_network(network) for network in networks]
    assert (AddressGuard(allowed).verdict(ip) is None) is open_


@given(st.ip_addresses(v=4))
def test_what_the_standard_library_holds_special_is_refused(ip: IPv4Address) -> None:
    if not ip.is_global or ip.is_multicast or ip.is_reserved or ip.is_unspecified:
        assert GUARD.verdict(ip)


@given(st.ip_addresses(v=6))
def test_what_the_standard_library_holds_special_is_refused_in_ipv6(ip: IPv6Address) -> None:
    if ip.ipv4_mapped is None and (not ip.is_global or ip.is_multicast or ip.is_reserved or ip.is_site_local):
        assert GUARD.verdict(ip)


@given(ip=st.ip_addresses(v=4), shape=st.sampled_from(list(EMBEDDINGS.values())))
def test_embedding_never_opens_what_is_closed(ip: IPv4Address, shape: str) -> None:
    if GUARD.verdict(ip):
        assert GUARD.verdict(shape.format(ip=ip))


@given(ip=st.ip_addresses(v=4))
def test_text_and_address_get_the_same_verdict(ip: IPv4Address) -> None:
    assert GUARD.verdict(str(ip)) == GUARD.verdict(ip)
    assert GUARD.verdict(f"::ffff:{ip}") == (GUARD.verdict(ip) or "IPv4-mapped (RFC 4291)")


def test_embedded_addresses_are_found() -> None:
    assert embedded_ipv4(IPv6Address("64:ff9b:1:7f00:0:100::")) == [IPv4Address("127.0.0.1")]
    assert embedded_ipv4(IPv6Address("2606:4700::1")) == []
    assert embedded_ipv4(IPv6Address("::1")) == []


def test_refusal_carries_no_address() -> None:
    assert not any(character.isdigit() for character in BlockedAddressError().strerror)
