"""Starts the receivers' process, tells it what to play, and reads what it wrote down."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.errors import HomingError
from workers.chaos.fleet import ROOT
from workers.chaos.ledger import Request


class ReceiverProcess:
    """One receiver process for one scenario; `stop` ends it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "received.jsonl"
        self.file.touch(mode=0o600)
        self._child = subprocess.Popen(  # noqa: S603
            [sys.executable, "-P", "-m", "workers.chaos.receiver", str(self.file)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={name: value for name, value in os.environ.items() if not name.upper().startswith("HOMING_")}
            | {"PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        self.port = int(self._hear()["port"])

    def script(self, path: str, play: str, **arguments: Any) -> None:
        """Let a path (`*`: all others) behave so from now on."""
        self._tell({"script": path, "play": play, **arguments})

    def well(self, path: str) -> None:
        """Let a path answer 200 from now on."""
        self.script(path, "status", code=200)

    def listen(self, name: str, **arguments: Any) -> int:
        """Open one more listener; its port."""
        return int(self._tell({"listen": name, **arguments})["port"])

    def requests(self) -> list[Request]:
        """Everything received so far, in order of arrival."""
        found: dict[int, dict[str, Any]] = {}
        for line in self.file.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):  # the last line may not be whole yet
                entry = json.loads(line)
                found.setdefault(entry["n"], {}).update(entry)
        return [
            Request(
                endpoint=e["endpoint"],
                webhook_id=e["webhook_id"],
                attempt=e["attempt"],
                at=e["at"],
                headers=e["headers"],
                digest=e["digest"],
                status=e.get("status"),
                connection=e["connection"],
                on_connection=e["on_connection"],
            )
            for e in found.values()
            if "endpoint" in e
        ]

    async def wait_for(self, count: int, limit_s: float = 20.0, *, path: str | None = None) -> bool:
        """Wait until at least so many requests have arrived (at a path)."""
        for _ in range(int(limit_s / 0.05)):
            if sum(path in (None, r.endpoint) for r in self.requests()) >= count:
                return True
            await asyncio.sleep(0.05)
        return False

    def stop(self) -> None:
        """End it and reap it."""
        self._child.kill()
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _tell(self, wanted: dict[str, Any]) -> dict[str, Any]:
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps(wanted).encode() + b"\n")
        self._child.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise HomingError("the receivers' process ended by itself; its last words are above")
        answer: dict[str, Any] = json.loads(line)
        return answer
