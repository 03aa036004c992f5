"""Generated requests against the API as it is really run: every operation, valid and invalid, with checks of every answer."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.api_keys import Scope, create_key
from app.db import make_unpooled_engine
from tests.api.serving import served

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
#: A longer run, and with other requests each time: HOMING_TEST_SCHEMATHESIS_S=600.
SECONDS = int(os.environ.get("HOMING_TEST_SCHEMATHESIS_S", "40"))


def make_key(database_url: str, tenant_id: str | None, scopes: list[Scope]) -> str:
    async def make() -> str:
        engine = make_unpooled_engine(database_url, name="test")
        async with engine.begin() as connection:
            made = await create_key(connection, tenant_id=tenant_id, scopes=scopes, actor="test")
        await engine.dispose()
        return str(made["key"])

    return asyncio.run(make())


@pytest.mark.timeout(SECONDS + 120)
@pytest.mark.parametrize(
    ("tenant_id", "scopes", "share"),
    [("default", list(Scope), 1.0), (None, [Scope.ADMIN], 0.25)],
    ids=["tenant with every scope", "operator"],
)
def test_no_request_gets_an_answer_that_is_not_described(
    tmp_path: Path, database_url: str, redis_url: str, tenant_id: str | None, scopes: list[Scope], share: float
) -> None:
    key = make_key(database_url, tenant_id, scopes)
    with served(tmp_path, database_url, redis_url) as (url, _):
        done = subprocess.run(
            [
                *(
                    sys.executable,
                    "-m",
                    "schemathesis.cli",
                    "--config-file",
                    str(CONFIGURATION),
                    "run",
                    f"{url}/openapi.json",
                ),
                *("--header", f"Authorization: Bearer {key}", "--max-time", str(max(10, int(SECONDS * share)))),
                *("--max-examples", "5", "--continue-on-failure", "--warnings", "off", "--no-color"),
                *(() if "HOMING_TEST_SCHEMATHESIS_S" in os.environ else ("--seed", "1")),
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )
    log = (tmp_path / "api.log").read_text(encoding="utf-8")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:] + log[-4000:]
    assert "api.defect" not in log
    counted = re.search(r"(\d+) generated", done.stdout)
    assert counted is not None
    assert int(counted[1]) > 100
