"""Curves for charts, thinned so that no spike is lost: of each stretch its lowest and highest.

The database makes some thousand narrow stretches of a run's steps, which are kept. After a refresh only the steps from
the first new one on are looked at again, and a chart is thinned out of the stretches: a live run of a million steps is
drawn as fast as a short one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from .engine import History

STEP_CURVES = ("loss", "lr", "grad_norm", "step_seconds", "images_per_second", "memory_gib", "time")
"""Columns of `steps`, and `time`: when a step was finished, in epoch seconds."""
_STRETCHES = 8192
"""A curve has between half and twice as many, where there are so many steps."""
_KEPT = 32
"""Curves in memory; each takes half a megabyte."""


@dataclass
class _Curve:
    """One curve, by stretches of 2 ** `shift` steps; `stretches` is sorted and holds those with a finite value."""

    shift: int
    stretches: pa.Table
    new_from: int | None = None
    """The lowest step that came since."""


class Curves:
    """The curves that were asked for last. Not safe between threads: its History holds the lock."""

    def __init__(self) -> None:
        self._curves: dict[tuple[str, str], _Curve] = {}

    def grew(self, run: str, lowest: int) -> None:
        """Steps were added to a run, `lowest` the lowest of them."""
        for (of, _), curve in self._curves.items():
            if of == run:
                curve.new_from = lowest if curve.new_from is None else min(curve.new_from, lowest)

    def forget(self, runs: set[str]) -> None:
        """Those runs are gone, or are read anew."""
        self._curves = {key: curve for key, curve in self._curves.items() if key[0] not in runs}

    def clear(self) -> None:
        """Forget all."""
        self._curves.clear()

    def stretches(
        self, connection: duckdb.DuckDBPyConnection, run: str, column: str, *, last: int, resumed: bool
    ) -> pa.Table:
        """A run's curve by stretches, up to date. `last` is about its highest step; `resumed`, whether it has steps
        that a later attempt redid."""
        curve = self._curves.pop((run, column), None)
        if curve is None or last >> curve.shift >= 2 * _STRETCHES or (curve.new_from or 0) < 0:
            shift = (max(last, 0) // _STRETCHES).bit_length()
            curve = _Curve(shift, _stretches(connection, run, column, shift, resumed))
        elif curve.new_from is not None:
            first = curve.new_from >> curve.shift
            kept = curve.stretches.slice(0, int(np.searchsorted(curve.stretches["stretch"].to_numpy(), first)))
            new = _stretches(connection, run, column, curve.shift, resumed, first << curve.shift)
            curve = _Curve(curve.shift, pa.concat_tables([kept, new]).combine_chunks())
        self._curves[run, column] = curve
        if len(self._curves) > _KEPT:
            self._curves.pop(next(iter(self._curves)))
        return curve.stretches


def _stretches(
    connection: duckdb.DuckDBPyConnection, run: str, column: str, shift: int, resumed: bool, start: int | None = None
) -> pa.Table:
    # The view looks for steps that a later attempt redid: not needed where there was only one attempt.
    source = "steps" if resumed else "store.all_steps"
    value = "epoch(ts)" if column == "time" else column
    since = "" if start is None else f" AND step >= {start}"
    return _fetch(
        connection,
        f"""SELECT step >> {shift} AS stretch, arg_min(step, {value}) AS low_at, min({value}) AS low,
            arg_max(step, {value}) AS high_at, max({value}) AS high, sum({value}) AS total, count(*) AS steps
        FROM {source} WHERE run = $run{since} AND step IS NOT NULL AND isfinite({value}) GROUP BY 1 ORDER BY 1""",
        {"run": run},
    )


def _fetch(connection: duckdb.DuckDBPyConnection, sql: str, parameters: dict[str, str]) -> pa.Table:
    """Rows of numbers, none of them null, as a table: for some thousand of them the way by numpy is the shortest."""
    return pa.table(connection.execute(sql, parameters).fetchnumpy())


def step_curve(history: History, run: str, column: str = "loss", *, points: int = 1000) -> pa.Table:
    """At most `points` points of one of STEP_CURVES over a run's steps: columns `step`, `value` and `mean`.

    The range of steps is cut into up to `points // 2` stretches; each gives its lowest and its highest finite value
    and, with both, the mean of its finite values. A run of fewer points comes whole. Steps that a resume redid count
    once. Raises ValueError for another column.
    """
    if column not in STEP_CURVES:
        raise ValueError(f"{column!r} is not one of {', '.join(STEP_CURVES)}")
    row = history.rows.get(run, {})
    with history.ready(steps_only=True) as connection:
        last, resumed = int(row.get("step") or 0), int(row.get("attempts") or 0) > 1
        stretches = history.curves.stretches(connection, run, column, last=last, resumed=resumed)
    return _thinned(stretches, points)


def _thinned(stretches: pa.Table, points: int) -> pa.Table:
    """`step_curve` out of stretches. With numpy: planning a statement takes longer than grouping some thousand rows."""
    kept = {name: stretches[name].to_numpy() for name in stretches.column_names}
    group = kept["stretch"]
    if not len(group):
        return pa.table({"step": group, "value": kept["low"], "mean": kept["low"]})
    if kept["steps"].sum() > points:
        group = (group - group[0]) * (max(2, points) // 2) // (group[-1] - group[0] + 1)
    starts = np.flatnonzero(np.concatenate([[True], group[1:] != group[:-1]]))
    low_at, low = _extreme(np.minimum, kept["low"], kept["low_at"], starts)
    high_at, high = _extreme(np.maximum, kept["high"], kept["high_at"], starts)
    mean = np.add.reduceat(kept["total"], starts) / np.add.reduceat(kept["steps"], starts)
    step, value = np.concatenate([low_at, high_at]), np.concatenate([low, high])
    # Where lowest and highest are the same step, it is one point.
    once = np.concatenate([np.ones(len(starts), bool), low_at != high_at])
    order = np.argsort(step[once], kind="stable")
    columns = {"step": step, "value": value, "mean": np.concatenate([mean, mean])}
    return pa.table({name: column[once][order] for name, column in columns.items()})


def _extreme(reduce: np.ufunc, values: Any, steps: Any, starts: Any) -> tuple[Any, Any]:
    """Of each group of rows the first step with its extreme value, and that value; `starts`: the groups' first rows."""
    found = reduce.reduceat(values, starts)
    groups = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(values)))
    rows = np.flatnonzero(values == found[groups])
    _, first = np.unique(groups[rows], return_index=True)
    return steps[rows[first]], found
