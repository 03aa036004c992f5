from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from datetime import UTC, datetime

import pytest
import standardwebhooks
import svix
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidInput
from app.signing import Scheme, SigningKey, new_secret, parse_secret, sign

# The example of the Standard Webhooks libraries and of Svix's documentation.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
VECTOR_ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
VECTOR_TIMESTAMP = 1614265330
VECTOR_BODY = b'{"test": 2432232314}'
VECTOR_SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="

KEY = SigningKey("k2", parse_secret(SECRET))
OLD_SECRET = "whsec_" + b64encode(b"o" * 32).decode()
OLD = SigningKey("k1", parse_secret(OLD_SECRET))


def now() -> int:
    return int(datetime.now(UTC).timestamp())


def test_published_vector_is_reproduced() -> None:
    headers = sign("standard", [KEY], VECTOR_ID, VECTOR_TIMESTAMP, VECTOR_BODY)
    theirs = svix.Webhook(SECRET).sign(VECTOR_ID, datetime.fromtimestamp(VECTOR_TIMESTAMP, UTC), VECTOR_BODY.decode())
    assert headers == {
        "webhook-id": VECTOR_ID,
        "webhook-timestamp": str(VECTOR_TIMESTAMP),
        "webhook-signature": theirs,
    }
    assert theirs == VECTOR_SIGNATURE


@pytest.mark.parametrize("library", [standardwebhooks.Webhook, svix.Webhook])
def test_published_libraries_accept_what_we_sign(library: type) -> None:
    headers = sign(Scheme.STANDARD, [KEY], "msg_1", now(), VECTOR_BODY)
    library(SECRET).verify(VECTOR_BODY, headers)  # raises when it refuses


@pytest.mark.parametrize("library", [standardwebhooks.Webhook, svix.Webhook])
@pytest.mark.parametrize("change", ["id", "timestamp", "body", "signature", "secret"])
def test_published_libraries_refuse_what_was_changed(library: type, change: str) -> None:
    headers = sign("standard", [KEY], "msg_1", now(), VECTOR_BODY)
    body, secret = VECTOR_BODY, SECRET
    if change == "id":
        headers["webhook-id"] = "msg_2"
    elif change == "timestamp":
        headers["webhook-timestamp"] = str(int(headers["webhook-timestamp"]) + 1)
    elif change == "body":
        body = body.replace(b"2", b"3", 1)
    elif change == "signature":
        first = headers["webhook-signature"][3]
        headers["webhook-signature"] = "v1," + ("B" if first == "A" else "A") + headers["webhook-signature"][4:]
    else:
        secret = OLD_SECRET
    with pytest.raises((standardwebhooks.WebhookVerificationError, svix.webhooks.WebhookVerificationError)):
        library(secret).verify(body, headers)


@pytest.mark.parametrize("library", [standardwebhooks.Webhook, svix.Webhook])
@pytest.mark.parametrize("secret", [SECRET, OLD_SECRET])
def test_receiver_with_either_secret_accepts_during_rotation(library: type, secret: str) -> None:
    headers = sign("standard", [KEY, OLD], "msg_1", now(), VECTOR_BODY)
    assert len(headers["webhook-signature"].split(" ")) == 2
    library(secret).verify(VECTOR_BODY, headers)  # raises when it refuses


def test_hex_scheme_signs_timestamp_and_body() -> None:
    headers = sign("hex", [KEY], "msg_1", 1700000000, b"body")
    expected = hmac.new(KEY.secret, b"1700000000.body", hashlib.sha256).hexdigest()
    assert headers == {
        "x-webhook-id": "msg_1",
        "x-webhook-timestamp": "1700000000",
        "x-webhook-key-id": "k2",
        "x-webhook-signature": f"v1={expected}",
    }


def test_hex_scheme_lists_keys_and_signatures_in_the_same_order_newest_first() -> None:
    headers = sign("hex", [KEY, OLD], "msg_1", 1700000000, b"body")
    each = [sign("hex", [key], "msg_1", 1700000000, b"body")["x-webhook-signature"] for key in (KEY, OLD)]
    assert headers["x-webhook-key-id"] == "k2,k1"
    assert headers["x-webhook-signature"] == ",".join(each)


@given(body=st.binary(max_size=200), change=st.binary(min_size=1, max_size=200))
def test_different_bodies_have_different_signatures(body: bytes, change: bytes) -> None:
    for scheme in Scheme:
        assert sign(scheme, [KEY], "m", 1, body) != sign(scheme, [KEY], "m", 1, body + change)


@pytest.mark.parametrize("webhook_id", ["", "a.b", "a b", "a,b", "a\n", "é", "a" * 256])
def test_id_that_could_be_confused_is_refused(webhook_id: str) -> None:
    with pytest.raises(InvalidInput):
        sign("standard", [KEY], webhook_id, 1, b"")
    with pytest.raises(InvalidInput):
        SigningKey(webhook_id, KEY.secret)


@pytest.mark.parametrize("timestamp", [-1, 1.5, True, "1"])
def test_timestamp_that_is_not_whole_seconds_is_refused(timestamp: int) -> None:
    with pytest.raises(InvalidInput):
        sign("standard", [KEY], "m", timestamp, b"")


def test_no_key_and_unknown_scheme_are_refused() -> None:
    with pytest.raises(InvalidInput):
        sign("standard", [], "m", 1, b"")
    with pytest.raises(InvalidInput):
        sign("md5", [KEY], "m", 1, b"")


def test_repr_hides_the_secret() -> None:
    assert "secret" not in repr(KEY)
    assert repr(KEY.secret) not in repr(KEY)


def test_new_secrets_are_different_and_readable() -> None:
    secrets = {new_secret() for _ in range(100)}
    assert len(secrets) == 100
    assert all(len(parse_secret(secret)) == 32 for secret in secrets)


@given(st.binary(min_size=24, max_size=64))
def test_any_secret_of_allowed_length_survives_its_text_form(secret: bytes) -> None:
    assert parse_secret("whsec_" + b64encode(secret).decode()) == secret


CANARY = "Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5Y2FuYXJ5"


@pytest.mark.parametrize(
    "text",
    [
        CANARY,
        "whsec-" + CANARY,
        "whsec_" + CANARY[:-1],
        "whsec_" + CANARY + "\n",
        "whsec_" + CANARY[:-2] + "-_",
        "whsec_" + CANARY[:-4] + "YWF=",  # the same bytes as "YWE=": not canonical
        "whsec_" + CANARY + CANARY * 3,
        "whsec_Y2FuYXJ5",
        "whsec_",
        "whsec_" + CANARY + "é",
    ],
)
def test_bad_secret_is_refused_without_being_repeated(text: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_secret(text)
    assert "Y2FuYXJ5" not in str(raised.value)
    assert raised.value.__cause__ is None
