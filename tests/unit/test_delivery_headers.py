from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import __version__
from app.delivery_headers import build_headers, check_event_headers
from app.errors import InvalidInput

SIGNATURE = {"webhook-id": "m_1", "webhook-timestamp": "1", "webhook-signature": "v1,x"}
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def test_good_headers_are_kept_with_lower_case_names() -> None:
    given_ = {"X-Source": "billing", "Authorization": "Bearer x", "x-empty": "", "tracestate": "a=1", "x-tab": " a\tb "}
    assert check_event_headers(given_) == {
        "x-source": "billing",
        "authorization": "Bearer x",
        "x-empty": "",
        "tracestate": "a=1",
        "x-tab": "a\tb",
    }
    assert check_event_headers(None) == check_event_headers({}) == {}


@pytest.mark.parametrize(
    "name",
    [
        *("Host", "content-length", "Transfer-Encoding", "connection", "Keep-Alive", "TE", "trailer", "Expect"),
        *("upgrade", "Cookie", "set-cookie", "proxy-authorization", "Proxy-X", "webhook-id", "Webhook-Anything"),
        *("x-webhook-signature", "X-Webhook-Anything", "traceparent", "X-Request-Id", "user-agent"),
        *("accept-encoding", "content-type", "content-encoding"),
    ],
)
def test_framing_and_our_own_headers_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match=name.lower()):
        check_event_headers({name: "CANARY"})


@pytest.mark.parametrize("name", ["", " ", "a b", "a:", "a\n", "é", "a\x00", "(x)", 'a"', 1, None])
def test_name_that_is_not_a_token_is_refused(name: object) -> None:
    with pytest.raises(InvalidInput, match="name"):
        check_event_headers({name: "x"})


@pytest.mark.parametrize("value", ["CANARY\r\nx: y", "CANARY\n", "CANARY\x00", "CANARY\x7f", "CANARYé", 7, None, ["a"]])
def test_value_that_a_header_cannot_carry_is_refused_without_being_repeated(value: object) -> None:
    with pytest.raises(InvalidInput, match="x-a") as raised:
        check_event_headers({"x-a": value})
    assert "CANARY" not in str(raised.value)


@pytest.mark.parametrize("headers", [[], "a: b", 7, [["a", "b"]], True])
def test_what_is_not_an_object_is_refused(headers: object) -> None:
    with pytest.raises(InvalidInput, match="object"):
        check_event_headers(headers)


def test_too_many_or_too_long_headers_are_refused() -> None:
    assert len(check_event_headers({f"x-{n}": "v" for n in range(20)})) == 20
    with pytest.raises(InvalidInput, match="20"):
        check_event_headers({f"x-{n}": "v" for n in range(21)})
    assert check_event_headers({"x-a": "v" * 4093})
    with pytest.raises(InvalidInput, match="4096"):
        check_event_headers({"x-a": "v" * 4094})


def test_same_name_in_two_spellings_is_refused() -> None:
    with pytest.raises(InvalidInput, match="twice"):
        check_event_headers({"X-A": "1", "x-a": "2"})


def test_attempt_carries_everything_that_is_promised() -> None:
    headers = build_headers({"x-a": "b"}, SIGNATURE, request_id="req-7", traceparent=TRACEPARENT, attempt=3)
    assert headers == SIGNATURE | {
        "x-a": "b",
        "content-type": "application/json",
        "accept-encoding": "identity",
        "user-agent": f"Homing/{__version__}",
        "webhook-attempt": "3",
        "x-request-id": "req-7",
        "traceparent": TRACEPARENT,
    }


def test_event_headers_never_override_ours() -> None:
    theirs = {"webhook-id": "forged", "user-agent": "forged", "traceparent": "forged", "host": "forged", "x-a": "kept"}
    headers = build_headers(theirs, SIGNATURE, request_id="r", traceparent=None, attempt=1)
    assert "forged" not in headers.values()
    assert headers["x-a"] == "kept"


@pytest.mark.parametrize("traceparent", [None, "", "junk", TRACEPARENT + "\r\nx: y", TRACEPARENT.upper()])
def test_unusable_traceparent_is_left_out(traceparent: str | None) -> None:
    assert "traceparent" not in build_headers(None, {}, request_id="r", traceparent=traceparent, attempt=1)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_request_id_can_be_sent(request_id: str) -> None:
    sent = build_headers(None, {}, request_id=request_id, traceparent=None, attempt=1)["x-request-id"]
    assert all("!" <= character <= "~" for character in sent)


@given(st.dictionaries(st.text(max_size=20), st.text(max_size=40), max_size=5))
def test_what_passes_the_check_passes_it_again_unchanged(headers: dict[str, str]) -> None:
    try:
        checked = check_event_headers(headers)
    except InvalidInput:
        return
    assert check_event_headers(checked) == checked
