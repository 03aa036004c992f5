"""workers imports app and never the other way round; what is called pure imports nothing that does I/O."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted([*ROOT.glob("app/**/*.py"), *ROOT.glob("workers/**/*.py")])
NO_IO = {"asyncio", "httpx", "logging", "os", "pathlib", "psycopg", "redis", "requests", "subprocess", "urllib.request"}
NO_DATABASE = {"psycopg", "redis", "sqlalchemy"}
#: Module -> what it may not import itself. `outcome` knows the exception types of sockets and aiohttp, and uses neither.
PURE = {
    "app/backoff.py": NO_IO | {"random", "time"},
    "app/delivery_headers.py": NO_IO,
    "app/outcome.py": NO_IO | NO_DATABASE,
    "app/redaction.py": NO_IO,
    "app/signing.py": NO_IO | {"time"},
    "app/states.py": NO_IO,
    "app/subscription.py": NO_IO,
    "app/verdict.py": NO_IO | {"random", "time"},
}
VAGUE = {"utils", "util", "common", "helpers", "helper", "manager", "managers", "service", "services", "base", "misc"}
LINES_MAX = 350


def imported(path: Path) -> set[str]:
    """Dotted names of what a module imports, and of everything above them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports by a relative name"
            names.update([node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)])
    return {".".join(parts[:n]) for name in names for parts in [name.split(".")] for n in range(1, len(parts) + 1)}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_modules_to_look_at() -> None:
    assert {"app/states.py", "workers/poller.py"} <= {name_of(path) for path in MODULES}
    assert all((ROOT / name).exists() for name in PURE)


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p).startswith("app/")], ids=name_of)
def test_app_knows_neither_workers_nor_dramatiq_nor_a_terminal(path: Path) -> None:
    assert not imported(path) & {"workers", "dramatiq", "typer", "rich", "tests"}


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p).startswith("workers/")], ids=name_of)
def test_workers_never_import_tests(path: Path) -> None:
    assert "tests" not in imported(path)


@pytest.mark.parametrize("name", PURE)
def test_pure_module_does_no_io(name: str) -> None:
    assert not imported(ROOT / name) & PURE[name]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_has_a_telling_name_and_is_short(path: Path) -> None:
    assert path.stem not in VAGUE
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES_MAX
