"""Hosts that must never be reached, as data: every spelling of loopback, special addresses, answers of name servers."""

from __future__ import annotations

from itertools import permutations

from tests.faults.nameserver import Alias, Round

# Read as loopback, or as "this host", by at least one C library, browser or HTTP client.
LOOPBACK_IPV4 = [
    *("127.0.0.1", "127.0.0.2", "127.1.2.3", "127.255.255.254", "127.000.000.001"),
    *("2130706433", "2130706434", "02130706433", "4294967295"),  # decimal
    *("0x7f000001", "0X7F000001", "0x000000007f000001", "0x7f.0x0.0x0.0x1", "0x7f.0.0.1", "0x7f.0.1", "0x7f.1"),  # hex
    *("0177.0.0.1", "0177.0.0.01", "0000177.0.0.1", "0177.1", "017700000001", "0177.0000.0000.0001"),  # octal
    *("127.1", "127.0.1", "127.65535", "127.0.65535"),  # short
    *("0x7f.0.0.01", "127.0x0.0.1", "0177.0x0.1", "0x7f.000.1", "127.0.0x1", "0177.0.0x0.1"),  # mixed
    *("0", "00", "0x0", "0.0", "0.0.0", "0.0.0.0", "0.0.0.1", "00000000"),  # this host
    *("127.0.0.1.", "127.1.", "2130706433.", "0.", "0.0.0.0."),  # trailing dot
    *(
        "１２７.０.０.１",
        "１２７.0.0.1",
        "127．0．0．1",
        "127。0。0。1",
        "127｡0｡0｡1",
        "２１３０７０６４３３",
        "０",
    ),  # full width
    *("①②⑦.⓪.⓪.①", "①②⑦.0.0.1", "¹²⁷.⁰.⁰.¹", "₁₂₇.₀.₀.₁", "𝟏𝟐𝟕.𝟎.𝟎.𝟏", "𝟭𝟮𝟳.𝟬.𝟬.𝟭"),  # folded by NFKC
]
LOOPBACK_IPV6 = [
    *("::1", "0:0:0:0:0:0:0:1", "0000:0000:0000:0000:0000:0000:0000:0001", "::0001", "0::1", "::", "0::0"),
    *("::ffff:127.0.0.1", "::ffff:7f00:1", "::FFFF:7F00:0001", "0:0:0:0:0:ffff:127.0.0.1", "::ffff:0.0.0.0"),  # mapped
    *("::127.0.0.1", "::7f00:1", "0:0:0:0:0:0:127.0.0.1", "::0.0.0.1"),  # compatible
    *("::ffff:0:127.0.0.1", "::ffff:0:7f00:1"),  # translated, RFC 2765
    *("64:ff9b::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b::0.0.0.0"),  # NAT64
    *("64:ff9b:1::127.0.0.1", "64:ff9b:1:7f00:0:100::", "64:ff9b:1:ffff::7f00:1"),  # NAT64, local
    *("2002:7f00:1::", "2002:7f00:0001::1", "2002:0:0::"),  # 6to4
    *("2001:0:7f00:1::", "2001:0:808:808:0:0:80ff:fffe", "2001:0:808:808:8000:f227:80ff:fffe"),  # Teredo
    *("fe80::5efe:127.0.0.1", "2606:4700::5efe:7f00:1", "2606:4700::200:5efe:127.0.0.1", "fd00::5efe:7f00:1"),  # ISATAP
    *("::1%lo", "::1%1", "::ffff:127.0.0.1%lo", "fe80::1%lo", "fe80::1%1", "fe80::1%25lo"),  # scoped
]
SPECIAL = [
    *("10.0.0.1", "10.255.255.255", "172.16.0.1", "172.17.0.1", "172.31.255.254", "192.168.0.1", "192.168.255.255"),
    *("169.254.169.254", "169.254.170.2", "169.254.0.1", "168.63.129.16", "100.100.100.200", "192.0.0.192"),  # metadata
    *(
        "2852039166",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "169.254.43518",
        "169.16689662",
        "１６９.２５４.１６９.２５４",
    ),
    *("100.64.0.1", "100.127.255.254", "192.0.0.1", "192.88.99.1", "198.18.0.1", "198.19.255.254"),
    *("192.0.2.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"),
    *("[fc00::1]", "[fd00::1]", "[fd00:ec2::254]", "[fe80::1]", "[fe80::a9fe:a9fe]", "[febf::1]", "[fec0::1]"),
    *("[ff02::1]", "[ff0e::1]", "[2001:db8::1]", "[3fff::1]", "[5f00::1]", "[100::1]", "[2001::1]", "[2001:10::1]"),
    *("[2001:20::1]", "[2001:2::1]", "[4000::1]", "[200::1]", "[::2]", "[8000::1]"),
    *("[::ffff:169.254.169.254]", "[::ffff:10.0.0.1]", "[::ffff:a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]"),
    *("[64:ff9b::10.0.0.1]", "[64:ff9b:1::a9fe:a9fe]", "[2002:a9fe:a9fe::]", "[2002:c0a8:101::1]"),
    *("[::169.254.169.254]", "[2606:4700::5efe:10.0.0.1]", "[2001:0:0a00:0001::]"),
]
# Never an address: what a parser makes of these differs, and the name must not come to be dialled by accident.
NOT_A_HOST = [
    *("%31%32%37.0.0.1", "127.0.0.1%2f", "127.0.0.1%00", "127.0.0.1%23", "127%2e0%2e0%2e1", "127.0.0.1%20"),
    *("127.0.0.1..", ".127.0.0.1", "127..0.0.1", "127.0.0.256", "6425673729", "0x17f000001", "0x7f.1.", "127.0.0.1.5"),
    *("١٢٧.٠.٠.١", "[::1", "[127.0.0.1]", "[::ffff:127.1]", "[::1]extra", "[v1.127.0.0.1]"),
]
# A user name that looks like the host, another host behind it, and what splits parsers.
SPLIT_PARSERS = [
    *(
        "http://1.1.1.1@127.0.0.1:{port}/",
        "http://1.1.1.1:80@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}@1.1.1.1.invalid/",
    ),
    *("http://127.0.0.1:{port}#@1.1.1.1/", "http://127.0.0.1:{port}\\@1.1.1.1/", "http://1.1.1.1\\@127.0.0.1:{port}/"),
    *("http:127.0.0.1:{port}/", "http:/127.0.0.1:{port}/", "http:///127.0.0.1:{port}/", "//127.0.0.1:{port}/"),
    *(
        "HTTP://127.0.0.1:{port}/",
        "http://127.0.0.1:0{port}/",
        "http:\\\\127.0.0.1:{port}\\",
        "http://127.0.0.1\t:{port}/",
    ),
    *("file:///etc/passwd", "gopher://127.0.0.1:{port}/", "ftp://127.0.0.1:{port}/", "unix://127.0.0.1:{port}/"),
    *("ws://127.0.0.1:{port}/", "http+unix://127.0.0.1:{port}/", "data:text/plain,x", "javascript:0", "", "http://"),
]

PUBLIC = ("8.8.8.8", "1.1.1.1", "2606:4700:4700::1111")
_BAD_ANSWERS = [
    *("127.0.0.1", "127.0.0.2", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("168.63.129.16", "192.0.0.192", "198.18.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "::ffff:127.0.0.1"),
    *("::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1", "2002:7f00:1::", "2001:0:7f00:1::", "fe80::1", "fd00::1"),
    *("fec0::1", "ff02::1", "2606:4700::5efe:7f00:1", "fd00:ec2::254", "::ffff:0:7f00:1"),
]


def _answers() -> dict[str, Round]:
    answers: dict[str, Round] = {f"bad{n}.example": [address] for n, address in enumerate(_BAD_ANSWERS)}
    mixtures: list[tuple[str, ...]] = []
    for bad in ("127.0.0.1", "::1", "::ffff:127.0.0.1", "169.254.169.254"):
        mixtures += permutations((PUBLIC[0], bad))
    for bad in ("127.0.0.1", "fd00::1"):
        mixtures += permutations((*PUBLIC[:2], bad))
    mixtures += permutations((PUBLIC[0], PUBLIC[2], "::1"))
    mixtures.append((*(f"8.8.{n}.8" for n in range(99)), "127.0.0.1"))
    answers |= {f"mixed{n}.example": list(mixture) for n, mixture in enumerate(mixtures)}
    answers["alias.example"] = Alias(("localhost",), ("127.0.0.1", "::1"))
    answers["long.alias.example"] = Alias(tuple(f"hop{n}.example" for n in range(10)), ("127.0.0.1",))
    answers["xn--e1afmkfd.example"] = ["127.0.0.1"]
    answers["metadata.google.internal"] = ["169.254.169.254"]
    answers["127.0.0.1.nip.example"] = ["127.0.0.1"]
    return answers


ANSWERS = _answers()
"""What the name server says for each name."""

LITERALS = [*LOOPBACK_IPV4, *(f"[{address}]" for address in LOOPBACK_IPV6), *SPECIAL]
NAMES = [*ANSWERS, "пример.example", "BAD0.EXAMPLE", "bad0.example."]
