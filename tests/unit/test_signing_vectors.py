"""docs/signing-vectors.json against what signs, what verifies, and the published libraries."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks.webhooks
import svix

from app.errors import InvalidInput
from app.signing import Scheme, SigningKey, parse_secret, sign
from app.verifier import Reason, Verifier

FILE = json.loads((Path(__file__).parents[2] / "docs" / "signing-vectors.json").read_text(encoding="utf-8"))
VECTORS: list[dict[str, Any]] = FILE["vectors"]
SIGNED = [v for v in VECTORS if "signed_with" in v]
LIBRARIES = [standardwebhooks.webhooks.Webhook, svix.Webhook]


def name_of(vector: dict[str, Any]) -> str:
    return re.sub(r"\W+", "-", vector["name"])


def body_of(vector: dict[str, Any]) -> bytes | None:
    if "body_base64" in vector:
        return b64decode(vector["body_base64"])
    return None if vector["body"] is None else vector["body"].encode()


def asked_of_libraries(vector: dict[str, Any]) -> bool:
    """They read the body as UTF-8 text, and are laxer about the form of headers."""
    refused_for_form = vector["expect"]["reason"].startswith(("malformed", "repeated"))
    return vector["scheme"] == "standard" and vector.get("body") is not None and not refused_for_form


def verifier_of(vector: dict[str, Any]) -> Verifier:
    return Verifier(vector["keys"], scheme=vector["scheme"], window_s=FILE["window_s"], clock=lambda: vector["now"])


@pytest.mark.parametrize("vector", VECTORS, ids=name_of)
def test_verifier_finds_what_the_vector_says(vector: dict[str, Any]) -> None:
    found = verifier_of(vector).verify(vector["headers"], body_of(vector))
    expected = vector["expect"]
    assert (found.ok, bool(found), found.reason) == (expected["ok"], expected["ok"], expected["reason"])
    assert found.event_id == expected.get("event_id", "")
    assert bool(found.detail) is not found.ok


@pytest.mark.parametrize("vector", SIGNED, ids=name_of)
def test_signing_makes_exactly_the_headers_of_the_vector(vector: dict[str, Any]) -> None:
    keys = [SigningKey(name, parse_secret(FILE["signing_keys"][name])) for name in vector["signed_with"]]
    headers = dict(vector["headers"])
    prefix = "" if vector["scheme"] == "standard" else "x-"
    event_id, timestamp = headers[f"{prefix}webhook-id"], int(headers[f"{prefix}webhook-timestamp"])
    assert sign(vector["scheme"], keys, event_id, timestamp, body_of(vector) or b"") == headers


@pytest.mark.parametrize("scheme", Scheme)
def test_vectors_show_every_reason_in_each_scheme(scheme: Scheme) -> None:
    shown = {v["expect"]["reason"] for v in VECTORS if v["scheme"] == scheme}
    # A body that is not bytes is a mistake of the receiver, not of a scheme: shown once.
    assert shown | {"unreadable"} == set(Reason)
    assert "unreadable" in {v["expect"]["reason"] for v in VECTORS}
    assert len({v["name"] for v in VECTORS}) == len(VECTORS)


@pytest.mark.parametrize("key", FILE["keys"], ids=lambda key: re.sub(r"\W+", "-", key["name"]))
def test_key_is_read_or_refused_as_the_vector_says(key: dict[str, Any]) -> None:
    if key["hex"] is None:
        with pytest.raises(InvalidInput):
            parse_secret(key["text"])
        with pytest.raises(ValueError, match="key") as raised:
            Verifier(key["text"])
        assert len(key["text"]) < 8 or key["text"][6:] not in str(raised.value)
    else:
        secret = parse_secret(key["text"])
        assert secret.hex() == key["hex"]
        headers = sign("standard", [SigningKey("k", secret)], "m", 1, b"")
        for given in (key["text"], secret, [secret], [key["text"]]):
            assert Verifier(given, clock=lambda: 1).verify(headers, b"")


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("vector", [v for v in VECTORS if asked_of_libraries(v)], ids=name_of)
def test_published_libraries_agree(library: type, vector: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Then(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.fromtimestamp(vector["now"], tz)

    monkeypatch.setattr(standardwebhooks.webhooks, "datetime", Then)
    accepted = False
    for key in vector["keys"]:
        try:
            _verify(library(key), vector["body"].encode(), dict(vector["headers"]))
            accepted = True
        except standardwebhooks.webhooks.WebhookVerificationError:
            continue
    assert accepted is vector["expect"]["ok"]


def _verify(webhook: Any, body: bytes, headers: dict[str, str]) -> None:
    if isinstance(webhook, standardwebhooks.webhooks.Webhook):
        webhook.verify(body, headers, json_parse=False)
    else:
        webhook.verify(body, headers)
