"""Breaks a copy of the project, one line at a time, and sees that the tests notice: `python -m tests.sabotage.run`.

Prints a table and exits with 1 if a breakage survives. A breakage whose text is not found exactly once, or whose tests do
not pass on the unbroken copy, ends the run with 2: a table that says "red" must mean that the breakage was noticed.
Words after the command choose the breakages whose names contain one of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic

from tests.sabotage.breakages import BREAKAGES, Breakage

ROOT = Path(__file__).parents[2]
COPIED = ("app", "migrations", "tests", "workers", "pyproject.toml")
#: Seconds after which a run of tests counts as hanging, which is red too.
LIMIT_S = 90
#: Of pytest: all passed, some failed.
PASSED, FAILED = 0, 1


def main(words: list[str]) -> int:
    chosen = [b for b in BREAKAGES if not words or any(word in b.name for word in words)]
    if not chosen:
        print(f"no breakage is named like {' or '.join(words)}", file=sys.stderr)
        return 2
    began = monotonic()
    with tempfile.TemporaryDirectory(prefix="homing-sabotage-") as folder:
        copy = Path(folder)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, copy / name)
        if wrong := [b for b in chosen if (copy / b.file).read_text("utf-8").count(b.old) != 1]:
            for b in wrong:
                print(f"{b.name}: its text is not in {b.file} exactly once; write it anew", file=sys.stderr)
            return 2
        unbroken = tuple(sorted({b.tests[0] for b in chosen}))
        if (code := _run(copy, unbroken, limit_s=5 * LIMIT_S, output=sys.stderr.fileno())) != PASSED:
            print(f"pytest exits with {code} although nothing is broken", file=sys.stderr)
            return 2
        survivors = sum(not _notice(copy, b) for b in chosen)
    print(f"\n{len(chosen)} breakages, {survivors} survived, {monotonic() - began:.0f} s")
    return 1 if survivors else 0


def _notice(copy: Path, breakage: Breakage) -> bool:
    file = copy / breakage.file
    whole = file.read_text("utf-8")
    file.write_text(whole.replace(breakage.old, breakage.new), "utf-8")
    try:
        code = _run(copy, breakage.tests)
    finally:
        file.write_text(whole, "utf-8")
    noticed = code in (FAILED, None)
    verdict = "red" if noticed else "SURVIVED" if code == PASSED else f"SURVIVED (pytest exits with {code})"
    tests = " ".join(breakage.tests).removeprefix("tests/")
    print(f"{breakage.name:60}  {verdict:8}  {tests}", flush=True)
    return noticed


def _run(copy: Path, tests: tuple[str, ...], limit_s: float = LIMIT_S, output: int = subprocess.DEVNULL) -> int | None:
    """Exit code of pytest; None when it did not end in time."""
    # A process group of its own, so that nothing which a hanging test has started outlives it.
    child = subprocess.Popen(
        [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        process_group=0,
    )
    try:
        return child.wait(limit_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if child.poll() is None:
            os.killpg(child.pid, 15)
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, 9)
                child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
