"""What commands print: JSON or a table on stdout, talk on stderr. Text that others wrote cannot steer the terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

Row = Mapping[str, Any]


def say(text: str) -> None:
    """A remark to the person, on stderr."""
    print(_harmless(text), file=sys.stderr)


def give(value: Row | Sequence[Row], *, as_json: bool, columns: Sequence[str] | None = None, none: str = "") -> None:
    """Print a command's result on stdout.

    Args:
        value: one mapping, or a list of them.
        as_json: one JSON object or array, with every field: UUIDs as text, times as ISO 8601 in UTC, decimals as text.
        columns: the fields that a table for people shows, in order; all by default.
        none: said, on stderr, in place of an empty table.
    """
    if as_json:
        # Indented for people; compact for programs.
        print(json.dumps(value, default=_plain, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))
    elif isinstance(value, Mapping):
        _give_fields(value)
    elif value:
        _give_table(value, columns)
    elif none:
        say(none)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, UUID | Decimal):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    raise TypeError(f"{type(value).__name__} has no JSON form here")


def _give_fields(value: Row) -> None:
    """One line per field; lists of rows follow as tables."""
    from rich.table import Table
    from rich.text import Text

    listed = {name: rows for name, rows in value.items() if _is_rows(rows)}
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, field in value.items():
        if name not in listed:
            grid.add_row(Text(name.replace("_", " "), style="bold"), Text(_cell(field)))
    console = _console()
    console.print(grid)
    for name, rows in listed.items():
        console.print()
        console.print(Text(name.replace("_", " "), style="bold"))
        _give_table(rows, None)


def _give_table(rows: Sequence[Row], columns: Sequence[str] | None) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    names = list(columns or rows[0])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in names:
        # Ids are there to be copied: whatever else must shrink, they do not.
        is_id = name == "id" or name.endswith("_id")
        table.add_column(name.replace("_", " "), no_wrap=is_id, overflow="ignore" if is_id else "fold")
    for row in rows:
        table.add_row(*(Text(_cell(row.get(name))) for name in names))
    _console().print(table)


def _console() -> Any:
    """A console on stdout. Where nobody looks at it, as wide as the text is, so that nothing is wrapped or cut."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, width=None if sys.stdout.isatty() else 100_000)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_cell(v)}" for k, v in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(_cell(v) for v in value) or "-"
    return _harmless(str(value))


def _harmless(text: str) -> str:
    """`text` with control characters written out, line ends and tabs excepted."""
    return "".join(c if c in "\n\t" or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)
