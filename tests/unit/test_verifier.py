"""The verifier against whatever may arrive, and the memory of one process."""

from __future__ import annotations

import ast
import sys
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import app.verifier
from app.signing import Scheme, SigningKey, new_secret, parse_secret, sign
from app.verifier import KEEP_S, PostgresMemory, ProcessMemory, Reason, RedisMemory, Turn, Verification, Verifier

NOW = 1_700_000_000
SECRET = b"k" * 32
KEY = SigningKey("k1", SECRET)
ids = st.text("abcXYZ019_:-", min_size=1, max_size=40)
secrets = st.binary(min_size=24, max_size=64)
schemes = st.sampled_from(list(Scheme))


def verifier(scheme: str = "standard", *keys: bytes) -> Verifier:
    return Verifier(keys or [SECRET], scheme=scheme, clock=lambda: NOW)


def test_file_can_be_copied_because_it_imports_the_standard_library_only() -> None:
    tree = ast.parse(Path(app.verifier.__file__).read_text(encoding="utf-8"))
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


# Whatever arrives


class Raising:
    def items(self) -> Iterator[Any]:
        raise RuntimeError("no")


class RaisingText(str):
    def isascii(self) -> bool:
        raise RuntimeError("no")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.just(RaisingText("1")),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
names = st.sampled_from(
    [f"{prefix}webhook-{part}" for prefix in ("", "x-") for part in ("id", "timestamp", "signature")]
) | st.sampled_from(["Webhook-Id", b"WEBHOOK-ID", b"webhook-timestamp", "webhook-signature", None, 7])
values = anything | st.sampled_from(
    ["m", str(NOW), b"m", str(NOW).encode(), "v1," + "A" * 43 + "=", "v1=" + "0" * 64, "v1,", ["m"], ["m", "m"]]
)
header_sets = (
    st.dictionaries(names, values) | st.lists(st.tuples(names, values), max_size=8) | anything | st.just(Raising())
)


@given(headers=header_sets, body=anything | st.just(memoryview(b"abcd")[::2]), scheme=schemes)
def test_verify_never_raises_and_accepts_nothing_unsigned(headers: Any, body: Any, scheme: Scheme) -> None:
    found = verifier(scheme).verify(headers, body)
    assert isinstance(found, Verification)
    assert not found
    assert found.detail
    assert (found.event_id, found.timestamp) == ("", 0)


@given(
    event_id=anything,
    timestamp=anything | st.just(str(NOW)),
    signature=anything | st.text("v1,= A0", max_size=400),
    scheme=schemes,
)
def test_each_header_may_hold_anything(event_id: Any, timestamp: Any, signature: Any, scheme: Scheme) -> None:
    headers = sign(scheme, [KEY], "m", NOW, b"")
    names = [name for name in headers if not name.endswith("key-id")]
    for name, value in zip(names, (event_id, timestamp, signature), strict=True):
        changed = headers | {name: value}
        found = verifier(scheme).verify(changed, b"")
        same = value == headers[name] or value in ([headers[name]], headers[name].encode())
        unsigned = scheme is Scheme.HEX and name == "x-webhook-id"
        assert unsigned or same or not found


def test_gigantic_headers_are_refused_quickly() -> None:
    headers = sign("standard", [KEY], "m", NOW, b"")
    many = [("x", "y")] * 20_000 + list(headers.items())
    assert verifier().verify(many, b"").reason is Reason.MISSING_HEADER
    for name in headers:
        assert not verifier().verify(headers | {name: "1" * 5_000_000}, b"")
    flood = " ".join(["v1," + "A" * 43 + "="] * 100_000)
    assert verifier().verify(headers | {"webhook-signature": flood}, b"").reason is Reason.MALFORMED_SIGNATURE


@pytest.mark.parametrize("scheme", Scheme)
def test_headers_are_found_in_every_shape_that_frameworks_have(scheme: Scheme) -> None:
    headers = sign(scheme, [KEY], "m", NOW, b"x")
    pairs = list(headers.items())
    shapes: list[object] = [headers, pairs, tuple(pairs), iter(pairs)]
    shapes.append([(name.encode(), value.encode()) for name, value in pairs])
    shapes.append({name.title(): value for name, value in pairs})
    shapes.append({name.upper(): [value] for name, value in pairs})
    assert [verifier(scheme).verify(shape, b"x").reason for shape in shapes] == ["ok"] * len(shapes)
    for body in (bytearray(b"x"), memoryview(b"x")):
        assert verifier(scheme).verify(headers, body)
    assert verifier(scheme).verify(headers, "x").reason is Reason.UNREADABLE


# What is signed


@given(
    scheme=schemes,
    keys=st.lists(secrets, min_size=1, max_size=3, unique=True),
    event_id=ids,
    age_s=st.integers(-300, 300),
    body=st.binary(max_size=300),
    data=st.data(),
)
def test_what_is_signed_is_accepted_by_a_receiver_with_any_of_the_keys(
    scheme: Scheme, keys: list[bytes], event_id: str, age_s: int, body: bytes, data: st.DataObject
) -> None:
    signing = [SigningKey(f"k{n}", key) for n, key in enumerate(keys)]
    headers = sign(scheme, signing, event_id, NOW - age_s, body)
    known = data.draw(st.sampled_from(keys))
    unrelated = data.draw(st.lists(secrets, max_size=2))
    found = verifier(scheme, *unrelated, known).verify(headers, body)
    assert found == Verification(Reason.OK, "", event_id, NOW - age_s)


def flips(data: bytes) -> Iterator[bytes]:
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


@given(scheme=schemes, event_id=ids, age_s=st.integers(-300, 300), body=st.binary(max_size=40))
@settings(max_examples=30, deadline=None)  # each example is a thousand requests
def test_no_bit_of_what_is_signed_can_be_changed(scheme: Scheme, event_id: str, age_s: int, body: bytes) -> None:
    headers: dict[str, Any] = dict(sign(scheme, [KEY], event_id, NOW - age_s, body))
    receiver = verifier(scheme)
    assert receiver.verify(headers, body)
    assert not [changed for changed in flips(body) if receiver.verify(headers, changed)]
    for name, value in headers.items():
        if name in ("x-webhook-key-id", "x-webhook-id"):
            continue  # not signed with scheme hex, as the docstring says
        accepted = [changed for changed in flips(value.encode()) if receiver.verify(headers | {name: changed}, body)]
        assert not accepted


@given(scheme=schemes, key=secrets, other=secrets, body=st.binary(max_size=50))
def test_another_key_is_refused(scheme: Scheme, key: bytes, other: bytes, body: bytes) -> None:
    headers = sign(scheme, [SigningKey("k", key)], "m", NOW, body)
    # HMAC fills short keys up with zeros (RFC 2104 section 2), so these are one key.
    same = key.ljust(64, b"\0") == other.ljust(64, b"\0")
    assert bool(verifier(scheme, other).verify(headers, body)) is same


# The owner's mistakes


@pytest.mark.parametrize(
    "keys",
    [None, [], (), "", b"", 5, [None], [5], "secret", ["whsec_"], [b"short"], [b"x" * 65], ["whsec_é"], [[SECRET]]],
    ids=repr,
)
def test_what_is_no_key_is_refused_when_the_verifier_is_made(keys: Any) -> None:
    with pytest.raises(ValueError, match="key"):
        Verifier(keys)


def test_refused_key_is_not_repeated() -> None:
    canary = b64encode(b"canary" * 20).decode()
    with pytest.raises(ValueError, match="24 to 64") as raised:
        Verifier(["whsec_" + canary])
    assert "Y2FuYXJ5" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert "Y2FuYXJ5" not in repr(Verifier("whsec_" + b64encode(b"canary" * 4).decode()))


def test_text_keys_are_what_homing_gives_out() -> None:
    secret = new_secret()
    headers = sign("standard", [SigningKey("k", parse_secret(secret))], "m", NOW, b"")
    assert Verifier(secret, clock=lambda: NOW).verify(headers, b"")


def test_other_settings_that_make_no_sense_are_refused() -> None:
    for fields in ({"scheme": "md5"}, {"window_s": -1}, {"window_s": float("nan")}):
        with pytest.raises(ValueError, match="must be"):
            Verifier(SECRET, **fields)  # type: ignore[arg-type]
    for fields in ({"keep_s": 0}, {"claim_s": -1}, {"max_ids": 0}):
        with pytest.raises(ValueError, match="must be"):
            ProcessMemory(**fields)  # type: ignore[arg-type]
    client = Answering(True)
    for namespace in ("", "a:b", "é", None, "a" * 101, "a\n"):
        with pytest.raises(ValueError, match="namespace"):
            RedisMemory(client, namespace)  # type: ignore[arg-type]
    for fields in ({"keep_s": 0}, {"claim_s": 1.5}, {"keep_s": True}):
        with pytest.raises(ValueError, match="must be"):
            RedisMemory(client, "n", **fields)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`set`"):
        RedisMemory(None, "n")
    with pytest.raises(ValueError, match="`cursor`"):
        PostgresMemory(None, "n")


# The memory of one process


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_id_is_a_duplicate_for_24_hours_after_its_work_was_done() -> None:
    clock = Clock()
    memory = ProcessMemory(clock=clock)
    assert memory.begin("a") is Turn.FIRST
    memory.done("a")
    clock.now = KEEP_S - 1.0
    assert (memory.begin("a"), memory.begin("b")) == (Turn.DONE, Turn.FIRST)
    clock.now = float(KEEP_S)
    assert memory.begin("a") is Turn.FIRST


def test_work_that_failed_or_never_ended_may_be_done_again() -> None:
    clock = Clock()
    memory = ProcessMemory(claim_s=60, clock=clock)
    assert memory.begin("failed") is memory.begin("crashed") is Turn.FIRST
    assert memory.begin("failed") is Turn.BUSY
    memory.release("failed")
    assert memory.begin("failed") is Turn.FIRST
    clock.now = 59.9
    assert memory.begin("crashed") is Turn.BUSY
    clock.now = 60
    assert memory.begin("crashed") is Turn.FIRST


def test_memory_of_a_process_is_bounded_and_forgets_the_oldest_first() -> None:
    memory = ProcessMemory(max_ids=3)
    for name in "abcd":
        assert memory.begin(name) is Turn.FIRST
        memory.done(name)
    assert [memory.begin(name) for name in "bcda"] == [Turn.DONE] * 3 + [Turn.FIRST]
    assert [memory.begin(name) for name in "ef"] == [Turn.FIRST] * 2
    assert memory.begin("g") is Turn.BUSY  # rather than forget an id whose work is under way


def test_of_many_copies_at_once_one_is_first() -> None:
    memory = ProcessMemory()
    with ThreadPoolExecutor(16) as pool:
        turns = list(pool.map(lambda n: memory.begin(str(n % 10)), range(400)))
    assert turns.count(Turn.FIRST) == 10
    assert turns.count(Turn.BUSY) == 390


# What a Redis client may answer


class Answering:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def set(self, name: str, value: str, /, **options: Any) -> Any:
        return self.answer


@pytest.mark.parametrize("answer", [True, "OK", b"OK"])
def test_every_way_of_saying_yes_is_understood(answer: Any) -> None:
    assert RedisMemory(Answering(answer), "n").begin("a") is Turn.DONE


@pytest.mark.parametrize("answer", [None, False])
def test_every_way_of_saying_no_is_understood(answer: Any) -> None:
    assert RedisMemory(Answering(answer), "n").begin("a") is Turn.BUSY


@pytest.mark.parametrize("answer", [object(), "QUEUED", iter(())], ids=["pipeline", "queued", "awaitable"])
def test_answer_that_is_none_yet_is_an_error_and_not_a_duplicate(answer: Any) -> None:
    with pytest.raises(TypeError, match="synchronous"):
        RedisMemory(Answering(answer), "n").begin("a")
