"""Our egress guard against the rules of three other senders, restated as data: it refuses whatever one of them refuses."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.addresses import AddressGuard

GUARD = AddressGuard()

# Svix server, `is_allowed`; IPv4-mapped addresses are judged as IPv4.
SVIX = (
    *("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "169.254.0.0/16", "255.255.255.255/32"),
    *("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "100.64.0.0/10", "192.0.0.0/24", "240.0.0.0/4"),
    *("198.18.0.0/15", "0.0.0.0/8", "ff00::/8", "::1/128", "fe80::/10", "fc00::/7", "::/128", "2001:db8::/32"),
)
# Smokescreen: not global unicast as Go has it, private, carrier-grade NAT, addresses that carry an IPv4 address.
SMOKESCREEN = (
    *("0.0.0.0/32", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32", "::/128", "::1/128"),
    *("fe80::/10", "ff00::/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7", "100.64.0.0/10"),
    *("64:ff9b::/96", "2002::/16", "2001::/32"),
)
# Hook0, `is_forbidden_ip`. Its exceptions (NAT64 of a public address, a few anycast blocks of 2001::/23) are ours to refuse.
HOOK0 = (
    *("0.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
    *("192.0.0.0/24", "192.88.99.0/24", "192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "198.18.0.0/15"),
    *("240.0.0.0/4", "224.0.0.0/4", "255.255.255.255/32", "::/8", "2002::/16", "100::/64", "2001::/23", "5f00::/16"),
    *("2001:db8::/32", "3fff::/20", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
)
UNION = sorted({ip_network(text) for text in (*SVIX, *SMOKESCREEN, *HOOK0)}, key=str)
V4 = [network for network in UNION if network.version == 4]
V6 = [network for network in UNION if isinstance(network, IPv6Network)]

# First addresses of blocks that the regional registries have given out, all of them in use.
PUBLIC_V4 = [
    *(
        "1.0.0.0",
        "2.16.0.0",
        "3.0.0.0",
        "4.0.0.0",
        "5.8.0.0",
        "8.0.0.0",
        "9.0.0.0",
        "12.0.0.0",
        "13.32.0.0",
        "15.0.0.0",
    ),
    *("17.0.0.0", "18.0.0.0", "20.0.0.0", "23.0.0.0", "31.0.0.0", "34.0.0.0", "35.0.0.0", "41.0.0.0", "44.192.0.0"),
    *("52.0.0.0", "54.0.0.0", "63.0.0.0", "66.0.0.0", "72.0.0.0", "80.0.0.0", "91.0.0.0", "99.0.0.0", "101.0.0.0"),
    *("104.16.0.0", "123.0.0.0", "128.0.0.0", "130.0.0.0", "140.82.0.0", "151.101.0.0", "157.0.0.0", "162.158.0.0"),
    *("168.62.0.0", "170.0.0.0", "172.64.0.0", "173.0.0.0", "185.0.0.0", "190.0.0.0", "193.0.0.0", "195.0.0.0"),
    *("199.0.0.0", "200.0.0.0", "202.0.0.0", "204.0.0.0", "213.0.0.0", "216.0.0.0", "217.0.0.0", "223.0.0.0"),
]
PUBLIC_V6 = [
    *("2001:200::", "2001:4860::", "2003::", "2400::", "2404:6800::", "2600::", "2606:4700::", "2607:f8b0::", "2610::"),
    *("2620::", "2800::", "2803::", "2a00::", "2a01::", "2a03:2880::", "2a10::", "2c00::", "2c0f:fb50::"),
]


def refused_by_others(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None and refused_by_others(address.ipv4_mapped):
        return True
    return any(address.version == network.version and address in network for network in UNION)


@pytest.mark.parametrize("network", UNION, ids=str)
def test_whole_network_that_others_refuse_is_refused(network: object) -> None:
    assert network in UNION
    first, last = network[0], network[-1]  # type: ignore[index]
    middle = type(first)((int(first) + int(last)) // 2)
    assert all(GUARD.verdict(address) for address in (first, middle, last))


@settings(max_examples=2000, deadline=None)
@given(st.one_of(st.ip_addresses(v=4), st.sampled_from(V4).flatmap(lambda network: st.ip_addresses(network=network))))
def test_no_ipv4_address_passes_here_and_not_elsewhere(address: IPv4Address) -> None:
    if refused_by_others(address):
        assert GUARD.verdict(address)


@settings(max_examples=2000, deadline=None)
@given(
    st.one_of(
        st.ip_addresses(v=6),
        st.sampled_from(V6).flatmap(lambda network: st.ip_addresses(network=network)),
        st.ip_addresses(v=4).map(lambda address: IPv6Address(f"::ffff:{address}")),
        st.ip_addresses(v=4).map(lambda address: IPv6Address(f"64:ff9b::{address}")),
    )
)
def test_no_ipv6_address_passes_here_and_not_elsewhere(address: IPv6Address) -> None:
    if refused_by_others(address):
        assert GUARD.verdict(address)


def test_a_thousand_public_addresses_pass() -> None:
    # 16 of each block, spread over its lower half-million (IPv4) or its lowest 96 bits (IPv6).
    addresses = [IPv4Address(int(IPv4Address(first)) + 1 + n * 32749) for first in PUBLIC_V4 for n in range(16)]
    addresses_v6 = [
        IPv6Address(int(IPv6Address(first)) + 1 + n * 0x0F3A_91C7_55AA_0000_1234_5678)
        for first in PUBLIC_V6
        for n in range(16)
    ]
    known = ["8.8.8.8", "1.1.1.1", "9.9.9.9", "2606:4700:4700::1111", "2001:4860:4860::8888", "2620:fe::fe"]
    everything = {*addresses, *addresses_v6, *map(ip_address, known)}
    assert len(everything) >= 1000
    assert [str(address) for address in everything if GUARD.verdict(address) is not None] == []
