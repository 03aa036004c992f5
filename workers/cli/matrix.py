"""The same trial on several named installations, with a Markdown report that holds no secret."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

from workers.cli.access import Access, read_settings


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a trial proves."""

    name: str
    ok: bool
    found: str


@dataclass(frozen=True, slots=True)
class Target:
    """One installation. Its URLs hold passwords: they are in no text that this object makes."""

    name: str
    database_url: str = field(repr=False)
    redis_url: str | None = field(default=None, repr=False)
    secret_keys_file: Path | None = None
    """Its sealing keys, when they are not this process's own."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a trial came to on one target."""

    target: str
    steps: list[Step]
    seconds: float

    @property
    def ok(self) -> bool:
        """Every step went as it should, and there was one."""
        return bool(self.steps) and all(step.ok for step in self.steps)


def parse_targets(texts: Sequence[str]) -> list[Target]:
    """Targets from `NAME=DATABASE_URL`, `NAME=DATABASE_URL|REDIS_URL[|KEYS_FILE]` or `NAME=@ENVIRONMENT_VARIABLE`.

    Raises:
        InvalidInput: one cannot be read; the message repeats names only.
    """
    from app.errors import InvalidInput

    targets: list[Target] = []
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or not all(c.isalnum() or c in "-_." for c in name):
            raise InvalidInput("--matrix: write NAME=DATABASE_URL|REDIS_URL, or NAME=@ENVIRONMENT_VARIABLE")
        if value.startswith("@"):
            variable = value[1:]
            if variable not in os.environ:
                raise InvalidInput(f"--matrix: target {name}: the environment variable {variable} is not set")
            value = os.environ[variable]
        database_url, redis_url, keys_file = (*value.split("|"), "", "")[:3]
        if not database_url.startswith(("postgresql://", "postgres://")):
            raise InvalidInput(f"--matrix: target {name}: its first part must be a postgresql:// URL")
        if redis_url and not redis_url.startswith(("redis://", "rediss://")):
            raise InvalidInput(f"--matrix: target {name}: its second part must be a redis:// URL")
        if name in (target.name for target in targets):
            raise InvalidInput(f"--matrix: target {name} is there twice")
        targets.append(Target(name, database_url, redis_url or None, Path(keys_file) if keys_file else None))
    return targets


def access_of(target: Target) -> Access:
    """Access to a target, with this process's settings otherwise."""
    from pydantic import SecretStr

    settings = read_settings()
    changes: dict[str, object] = {"database_url": SecretStr(target.database_url)}
    if target.redis_url is not None:
        changes["redis_url"] = SecretStr(target.redis_url)
    if target.secret_keys_file is not None:
        changes |= {"secret_keys_file": target.secret_keys_file, "secret_keys": None}
    return Access(settings.model_copy(update=changes), target.database_url, target.redis_url)


def run_on(name: str, trial: Callable[[], list[Step]]) -> Result:
    """Run a trial; an error that an operator would be told is a step that failed."""
    from workers.cli.failures import explain

    began = monotonic()
    try:
        steps = trial()
    except Exception as error:
        failure = explain(error)
        if failure is None:
            raise
        steps = [Step("could be run", False, failure.message)]
    return Result(name, steps, round(monotonic() - began, 1))


def exit_code(results: Sequence[Result]) -> int:
    """0: all good. 1: none. 6: some."""
    good = sum(result.ok for result in results)
    return 0 if good == len(results) else 6 if good else 1


def write_report(file: Path, title: str, results: Sequence[Result]) -> None:
    """Write the report as Markdown."""
    good = sum(result.ok for result in results)
    lines = [
        f"# {title}",
        "",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {good} of {len(results)} targets good.",
        "",
        "| target | result | steps | seconds |",
        "| --- | --- | --- | --- |",
    ]
    for result in results:
        passed = sum(step.ok for step in result.steps)
        verdict = "good" if result.ok else "**failed**"
        lines.append(f"| {result.target} | {verdict} | {passed} of {len(result.steps)} | {result.seconds:g} |")
    for result in results:
        lines += ["", f"## {result.target}", "", "| step | result | found |", "| --- | --- | --- |"]
        lines += [
            f"| {_cell(step.name)} | {'good' if step.ok else '**failed**'} | {_cell(step.found)} |"
            for step in result.steps
        ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
