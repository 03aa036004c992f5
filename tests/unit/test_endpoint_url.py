from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from app.endpoint_url import validate_endpoint_url
from app.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://hooks.example/a/b?c=d&e", "https://hooks.example/a/b?c=d&e"),
        ("HTTPS://Hooks.Example:443/A", "https://hooks.example/A"),
        ("http://hooks.example:80", "http://hooks.example/"),
        ("http://hooks.example?a=b", "http://hooks.example/?a=b"),
        ("http://hooks.example:8080/", "http://hooks.example:8080/"),
        ("https://bücher.example/ä", "https://xn--bcher-kva.example/%C3%A4"),
        ("https://hooks.example/a%2Fb%20c", "https://hooks.example/a%2Fb%20c"),
        ("http://203.0.113.7/x", "http://203.0.113.7/x"),
        ("http://[2001:DB8::1]:8080/x", "http://[2001:db8::1]:8080/x"),
        ("http://localhost:3000/hook", "http://localhost:3000/hook"),
        ("http://my_service:3000/hook", "http://my_service:3000/hook"),
        ("https://hooks.example./", "https://hooks.example./"),
        ("https://hooks.example/a@b", "https://hooks.example/a@b"),
        ("https://3com.example/", "https://3com.example/"),
    ],
)
def test_usable_url_is_normalised(text: str, expected: str) -> None:
    assert validate_endpoint_url(text) == expected
    assert validate_endpoint_url(expected) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "begin with"),
        ("hooks.example/a", "begin with"),
        ("//hooks.example/CANARY", "begin with"),
        ("ftp://hooks.example/CANARY", "begin with"),
        ("file:///CANARY", "begin with"),
        ("javascript:CANARY", "begin with"),
        ("https://user:CANARY@hooks.example/", "user name"),
        ("https://CANARY@hooks.example/", "user name"),
        ("https://@hooks.example/CANARY", "user name"),
        ("https://hooks.example/#CANARY", "fragment"),
        ("https://hooks.example/#", "fragment"),
        ("https://hooks.example/ CANARY", "whitespace"),
        (" https://hooks.example/CANARY", "whitespace"),
        ("https://hooks.example/CANARY\n", "whitespace"),
        ("https://hooks.example/\x00CANARY", "control"),
        ("https://hooks.example\u2028/CANARY", "control"),
        ("https://hooks.example\\@CANARY/", "backslash"),
        ("https://", "host"),
        ("https:///CANARY", "host"),
        ("https://:443/CANARY", "host"),
        ("https://hooks.example:0/CANARY", "port"),
        ("https://hooks.example:65536/CANARY", "port"),
        ("https://hooks.example:x/CANARY", "URL"),
        ("https://[::1/CANARY", "URL"),
        ("https://[fe80::1%25eth0]/CANARY", "host|URL"),
        ("https://127.1/CANARY", "number"),
        ("https://2130706433/CANARY", "number"),
        ("https://0x7f000001/CANARY", "number"),
        ("https://0x7f.1/CANARY", "number"),
        ("https://0177.0.0.1/CANARY", "number|URL"),
        ("https://127.0.0.1./CANARY", "number"),
        ("https://1.2.3.4.5/CANARY", "number"),
        ("https://a..b/CANARY", "host|URL"),
        ("https://-/CANARY", "host|URL"),
        ("https://a,b/CANARY", "host|URL"),
        ("https://" + "a" * 64 + ".example/CANARY", "host|URL"),
        ("https://" + "a." * 130 + "example/CANARY", "host|URL"),
        ("https://hooks.example/" + "a" * 2048, "longer"),
        ("https://hooks.example/" + "ä" * 1000, "longer"),
    ],
)
def test_unusable_url_is_refused_with_its_problem_and_without_its_text(text: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem) as raised:
        validate_endpoint_url(text)
    assert "CANARY" not in str(raised.value)


def test_what_is_not_text_is_refused() -> None:
    with pytest.raises(InvalidInput):
        validate_endpoint_url(None)  # type: ignore[arg-type]


@given(st.from_regex(r"https?://[a-zA-Z0-9.:@\[\]\\_%éß①-]{0,20}(?:[/?][ -~]{0,20})?", fullmatch=True))
def test_every_accepted_url_means_the_same_to_the_client(text: str) -> None:
    try:
        normal = validate_endpoint_url(text)
    except InvalidInput:
        return
    url = URL(normal, encoded=True)
    assert url.raw_host
    assert url.raw_user is None
    assert url.raw_password is None
    assert validate_endpoint_url(normal) == normal
    assert normal.isascii()
