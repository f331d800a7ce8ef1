"""Curves for charts, thinned inside the database so that no spike is lost: of each stretch its lowest and highest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    from .engine import History

STEP_CURVES = ("loss", "lr", "grad_norm", "step_seconds", "images_per_second", "memory_gib")


def step_curve(history: History, run: str, column: str = "loss", *, points: int = 1000) -> pa.Table:
    """At most `points` points of one of STEP_CURVES over a run's steps: columns `step`, `value` and `mean`.

    The range of steps is cut into `points // 2` stretches; each gives its lowest and its highest finite value and, with
    both, the mean of its finite values. A run of fewer points comes whole. Steps that a resume redid count once.
    """
    if column not in STEP_CURVES:
        raise ValueError(f"{column!r} is not one of {', '.join(STEP_CURVES)}")
    state = history.state(run)
    # The view looks for steps that a later attempt redid: not needed where there was only one.
    source = "store.all_steps" if state and len(state.attempts) < 2 else "steps"
    found = f"FROM {source} WHERE run = $run AND isfinite({column})"
    # The range first, in a statement of its own: with constants the grouping takes half the time.
    [span] = history.query(f"SELECT min(step) AS low, max(step) AS high, count(*) AS rows {found}", {"run": run})
    low, width = span["low"] or 0, (span["high"] or 0) - (span["low"] or 0) + 1
    stretches = max(2, points) // 2
    stretch = f"step - {low}" if span["rows"] <= points else f"(step - {low}) * {stretches} // {width}"
    return history.table(
        f"""WITH stretches AS (
            SELECT arg_min(step, {column}) AS low_at, min({column}) AS low_value,
                arg_max(step, {column}) AS high_at, max({column}) AS high_value, avg({column}) AS mean
            {found} GROUP BY {stretch})
        SELECT low_at AS step, low_value AS value, mean FROM stretches
        UNION SELECT high_at, high_value, mean FROM stretches ORDER BY step""",
        {"run": run},
    )
