"""What the command line writes: results to standard output, all else to standard error."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Literal

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


_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SHORT = 20
"""Cells up to so many characters are not folded where longer ones can be: a number in two halves is misread."""
_LEAST = 8
"""So many characters a column that is folded has at least."""


def table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Iterable[str] = (), records: bool = False
) -> None:
    """Print a table; its columns fold only where a terminal is too narrow.

    With `records` more columns than a terminal has room for are shown a row after the other, a value a line.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    numeric, cells = set(right), [[cell(value) for value in row] for row in rows]
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    lengths = [max([len(column), *(len(row[i]) for row in cells)]) for i, column in enumerate(columns)]
    console = Console(soft_wrap=False)
    whole = [length <= _SHORT and length < max(lengths) for length in lengths]
    least = sum(3 + (length if kept else _LEAST) for length, kept in zip(lengths, whole, strict=True))
    if least > console.width:
        whole = [False] * len(lengths)  # else rich would cut them off
    for column, kept in zip(columns, whole, strict=True):
        justify: Literal["left", "right"] = "right" if column in numeric else "left"
        drawn.add_column(column, justify=justify, overflow="fold", no_wrap=kept)
    for row in cells:
        drawn.add_row(*map(Text, row))
    if records and console.is_terminal and sum(min(length, _SHORT) + 3 for length in lengths) > console.width:
        wide = max(map(len, columns))
        for number, row in enumerate(cells):
            if number:
                console.print()
            for column, value in zip(columns, row, strict=True):
                line = Text(f"{column:<{wide}}  " + " ".join(value.split()))
                line.stylize("bold", 0, len(column))
                console.print(line, no_wrap=True, overflow="ellipsis")
        return
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
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", str(value))
