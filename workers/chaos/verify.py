"""A receiver's check of a signature, in few lines of its own: what the documentation says, not what the code does."""

from __future__ import annotations

import base64
import hashlib
import hmac

from workers.chaos.ledger import Endpoint, Request


def body_digest(body: str) -> str:
    """What the receiver notes of a body."""
    return hashlib.sha256(body.encode()).hexdigest()


def signature_problem(request: Request, endpoint: Endpoint, body: str, age_s: float) -> str | None:
    """What is wrong with a request's signature; None when it verifies and its timestamp is within `age_s`."""
    prefix = "" if endpoint.scheme == "standard" else "x-"
    try:
        stamp = request.headers[f"{prefix}webhook-timestamp"]
        given = request.headers[f"{prefix}webhook-signature"]
    except KeyError as missing:
        return f"no header {missing}"
    key = base64.b64decode(endpoint.secret.removeprefix("whsec_"))
    if endpoint.scheme == "standard":
        right = _standard(key, request.webhook_id, stamp, body)
        signatures = given.split(" ")
    else:
        content = f"{stamp}.{body}".encode()
        right, signatures = "v1=" + hmac.new(key, content, hashlib.sha256).hexdigest(), given.split(",")
    if not any(hmac.compare_digest(right, signature) for signature in signatures):
        return "its signature does not verify"
    if abs(request.at - int(stamp)) > age_s + 1:  # whole seconds: up to one is lost in writing it
        return f"its timestamp is {request.at - int(stamp):.1f} s from the database's time"
    return None


def _standard(key: bytes, webhook_id: str, stamp: str, body: str) -> str:
    content = f"{webhook_id}.{stamp}.{body}".encode()
    return "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
