"""Starts the samples of docs/receivers.md as real processes, as a stranger would: the sample and a copy of the verifier."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from time import time
from typing import Any
from uuid import uuid4

import httpx
import pytest

from app.signing import SigningKey, new_secret, parse_secret, sign

HERE = Path(__file__).parent
VERIFIER = HERE.parents[1] / "app" / "verifier.py"
START_S = 60
NO_NETWORK = (
    "ENOTFOUND",
    "EAI_AGAIN",
    "ECONNREFUSED",
    "ECONNRESET",
    "ENETUNREACH",
    "TIMEDOUT",
    "E403",
    "E404",
    "ETARGET",
)

NEW, OLD, STRANGE = (SigningKey(name, parse_secret(new_secret())) for name in ("new", "old", "strange"))


def text_of(key: SigningKey) -> str:
    return "whsec_" + b64encode(key.secret).decode("ascii")


@dataclass
class Sample:
    """A running receiver; `effects` are the invoices that its work has seen, in order."""

    url: str
    effects: Callable[[], list[str]]
    #: A context in which the work fails.
    broken_work: Any
    #: A context at the end of which the work goes on; gives a wait for two copies to be held up, where both are.
    slow_work: Any
    output: list[str] = field(default_factory=list)

    def post(self, headers: Mapping[str, str] | list[tuple[str, str]], body: bytes) -> httpx.Response:
        pairs = list(headers.items()) if isinstance(headers, Mapping) else headers
        pairs = [("content-type", "application/json"), *pairs]
        return httpx.post(self.url, headers=pairs, content=body, trust_env=False, timeout=60)

    def deliver(self, invoice: str, *keys: SigningKey, event_id: str | None = None) -> int:
        """A genuine delivery of now; the status that it got."""
        body = f'{{"invoice": "{invoice}"}}'.encode()
        return self.post(signed(body, *keys, event_id=event_id), body).status_code


def signed(body: bytes, *keys: SigningKey, event_id: str | None = None, age_s: int = 0) -> dict[str, str]:
    return sign("standard", keys or [NEW], event_id or str(uuid4()), int(time()) - age_s, body)


@contextmanager
def started(command: list[str], folder: Path, environment: Mapping[str, str]) -> Iterator[tuple[str, list[str]]]:
    """Run a receiver until the block ends; its address, taken from what it prints, and what it has printed."""
    output: list[str] = []
    ready = Event()
    secrets = f"{text_of(NEW)} {text_of(OLD)}"
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"WEBHOOK_SECRETS": secrets, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )

    def read() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            output.append(line)
            if "http://127.0.0.1:" in line:
                ready.set()
        ready.set()  # it ended

    reader = Thread(target=read)
    reader.start()
    try:
        assert ready.wait(START_S), output
        port = re.search(r"http://127\.0\.0\.1:(\d+)", "".join(output))
        assert port, "".join(output)
        yield f"http://127.0.0.1:{port[1]}/hook", output
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        reader.join()
        assert process.stdout is not None
        process.stdout.close()


def python_folder(folder: Path, sample: str) -> Path:
    shutil.copy(HERE / sample, folder / sample)
    shutil.copy(VERIFIER, folder / "homing_verifier.py")
    return folder


def python(*arguments: str) -> list[str]:
    return [sys.executable, "-m", *arguments]


def node_folder(folder: Path) -> Path:
    """The Express sample with what its lock file pins by hash; skips where there is no Node or no way to its packages."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed: the Express sample is not tested here")
    if int(subprocess.check_output([node, "--version"], text=True)[1:].split(".")[0]) < 18:
        pytest.skip("the Express sample needs Node 18 or later")
    for name in ("package.json", "package-lock.json", ".npmrc", "express_receiver.js"):
        shutil.copy(HERE / name, folder / name)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline", "--fetch-retries=1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=150)
    if done.returncode and any(code in done.stderr for code in NO_NETWORK):
        pytest.skip("npm cannot reach its registry: the Express sample is not tested here")
    assert done.returncode == 0, done.stderr
    return folder
