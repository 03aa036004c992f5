"""docs/receivers.md says what the code does, and shows the samples that are tested."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path

import pytest

from app.delivery_headers import build_headers
from app.signing import Scheme, SigningKey, sign
from app.verifier import PostgresMemory, Reason

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "receivers.md").read_text(encoding="utf-8")
BLOCKS = [match[1] for match in re.finditer(r"^```\w*\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)]


@pytest.mark.parametrize("name", ["fastapi_receiver.py", "flask_receiver.py", "express_receiver.js"])
def test_sample_is_shown_exactly_as_it_is_tested(name: str) -> None:
    assert (ROOT / "tests" / "receivers" / name).read_text(encoding="utf-8") in BLOCKS


def test_table_of_ids_is_the_one_of_the_verifier() -> None:
    (shown,) = [block for block in BLOCKS if block.startswith("CREATE TABLE")]
    assert textwrap.indent(shown, "    ") in inspect.cleandoc(str(PostgresMemory.__doc__)) + "\n"


def test_every_reason_is_explained() -> None:
    assert {reason for reason in Reason if f"`{reason}`" not in TEXT} == set()


@pytest.mark.parametrize("scheme", Scheme)
def test_every_header_is_explained(scheme: Scheme) -> None:
    signature = sign(scheme, [SigningKey("k", b"k" * 32)], "m", 1, b"")
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = build_headers({}, signature, request_id="r", traceparent=trace, attempt=1)
    assert len(headers) >= 9
    assert {name for name in headers if f"`{name}`" not in TEXT} == set()


def test_files_that_are_linked_are_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", TEXT) if "://" not in link]
    assert links
    assert all((ROOT / "docs" / link).exists() for link in links)
