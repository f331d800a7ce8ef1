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
    return history.table(
        f"""WITH found AS (SELECT step, {column} AS value FROM {source} WHERE run = $run AND isfinite({column})),
        range AS (SELECT min(step) AS low, max(step) - min(step) + 1 AS width, count(*) AS rows FROM found),
        stretches AS (
            SELECT arg_min(step, value) AS low_at, min(value) AS low_value,
                arg_max(step, value) AS high_at, max(value) AS high_value, avg(value) AS mean
            FROM found, range
            GROUP BY CASE WHEN rows <= $points THEN step - low ELSE (step - low) * ($points // 2) // width END)
        SELECT low_at AS step, low_value AS value, mean FROM stretches
        UNION SELECT high_at, high_value, mean FROM stretches ORDER BY step""",
        {"run": run, "points": max(2, points)},
    )
