"""Figures beside their targets, and a line of progress meanwhile."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from benchmarks import machine

MOST_SHOWN = 12


@dataclass
class Figure:
    """One row. `good`: whether it is within its target; None where there is none. `timed`: other load can spoil it."""

    what: str
    figure: str
    target: str = ""
    good: bool | None = None
    timed: bool = False


def rate(what: str, count: int, of: int, target: str) -> Figure:
    """`count` of `of`, all of them wanted."""
    return Figure(what, f"{count} of {of}", target, count == of)


def none(what: str, found: list[str] | int) -> Figure:
    """A count that must be 0."""
    count = found if isinstance(found, int) else len(found)
    return Figure(what, str(count), "0", count == 0)


def percentile(values: list[float], share: float) -> float:
    """The smallest value that `share` (0 to 1) of `values` do not exceed; nan where there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))] if ordered else float("nan")


def at_most(what: str, values: list[float], share: float, limit: float, unit: str = "s") -> Figure:
    """A percentile with its limit."""
    found = percentile(values, share)
    figure = f"{found:.3g} {unit} ({len(values)} measured)"
    return Figure(f"{what}, p{share * 100:g}", figure, f"{limit:g} {unit}", found <= limit, timed=True)


def show(title: str, figures: list[Figure], problems: list[str] | None = None) -> int:
    """Print the table, and what went wrong; the exit code: 1 where a target was missed."""
    table = Table(title=f"{title}\n{machine()}")
    for column in ("what", "figure", "target", ""):
        table.add_column(column)
    for row in figures:
        table.add_row(row.what, row.figure, row.target, {True: "yes", False: "NO", None: ""}[row.good])
    Console().print(table)
    for problem in (problems or [])[:MOST_SHOWN]:
        print(f"  {problem}")
    if problems and len(problems) > MOST_SHOWN:
        print(f"  and {len(problems) - MOST_SHOWN} more")
    return 1 if problems or any(row.good is False for row in figures) else 0


class Progress:
    """A line on standard error now and then: how far, and for how long."""

    def __init__(self, what: str, total: int, every: float = 15.0) -> None:
        self.what, self.total, self.every = what, total, every
        self.started = self.said = time.monotonic()
        self.last = 0

    def at(self, done: int, more: str = "") -> None:
        """Say it, where the last time is long enough ago."""
        now = time.monotonic()
        if now - self.said >= self.every or done == self.total != self.last:
            self.said, self.last = now, done
            print(
                f"{self.what}: {done} of {self.total}, {now - self.started:.0f} s {more}", file=sys.stderr, flush=True
            )
