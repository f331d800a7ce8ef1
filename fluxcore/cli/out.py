"""What the command line writes: results to standard output, all else to standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import orjson

from fluxcore.log.event import keep_non_finite


def note(text: str) -> None:
    """One line for a person, on standard error."""
    print(f"fluxgym: {' '.join(text.split())}", file=sys.stderr, flush=True)


def say(text: str = "") -> None:
    """A line of the result."""
    print(text, flush=True)


def to_json(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as one array of objects: times in ISO form (UTC), numbers that are not finite as "nan", "inf", "-inf"."""
    lines = [
        orjson.dumps(keep_non_finite(row), default=str, option=orjson.OPT_UTC_Z | orjson.OPT_NAIVE_UTC) for row in rows
    ]
    return "[\n" + ",\n".join("  " + line.decode() for line in lines) + "\n]" if lines else "[]"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Iterable[str] = ()) -> None:
    """Print a table; its columns fold only where a terminal is too narrow."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    numeric = set(right)
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        drawn.add_column(column, justify="right" if column in numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell(value)) for value in row))
    console = Console(soft_wrap=False)
    if not console.is_terminal:  # a file or a pipe has no width: nothing is folded
        console = Console(width=max(80, console.measure(drawn, options=console.options.update(width=10_000)).maximum))
    console.print(drawn)


def cell(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e6 else f"{value:.0f}"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, dict | list):
        return orjson.dumps(keep_non_finite(value), default=str).decode()
    return str(value)
