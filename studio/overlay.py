"""Several runs over each other: their losses, by step or by the time since each began. Fixed Vega specs."""

from __future__ import annotations

import math
from collections import Counter
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import streamlit as st

from fluxcore.log import parse_ts

from . import look, words
from .charts import COLORS, smooth
from .live import LiveRun, live_runs
from .step_charts import HELD_LOSS, LOSS, times_of

POINTS = 600
MEASURES = {"Loss": LOSS, "Held-out loss": HELD_LOSS}


@lru_cache
def _spec(axis: str, measure: str) -> dict[str, Any]:
    by_step = axis == "step"
    x: dict[str, Any] = {
        "field": "at",
        "type": "quantitative",
        "title": "step" if by_step else "minutes since its first step",
        "axis": {"format": "~s" if by_step else "~g", "grid": False, **({"tickMinStep": 1} if by_step else {})},
        "scale": {"zero": False, "nice": False},
    }
    loss = measure == LOSS
    line = {"type": "line", "strokeWidth": 2}
    return {
        "height": 360,
        "mark": line | ({"interpolate": "monotone"} if loss else {"point": {"size": 40, "filled": True}}),
        "encoding": {
            "x": x,
            "y": {
                "field": "loss",
                "type": "quantitative",
                "title": "loss, smoothed" if loss else measure,
                "scale": {"zero": False},
            },
            "color": {
                "field": "run",
                "type": "nominal",
                "title": None,
                "scale": {"range": list(COLORS)},
                "legend": None,
                "sort": None,
            },
            "tooltip": [
                {"field": "run"},
                {"field": "at", "type": "quantitative", "format": "," if by_step else ".1f", "title": x["title"]},
                {"field": "loss", "type": "quantitative", "format": ".4f"},
            ],
        },
    }


def curve(run: LiveRun, smoothing: float, axis: str, measure: str) -> tuple[np.ndarray, np.ndarray]:
    """What is drawn of one run: where (steps, or minutes since its first step was finished), and the losses."""
    if measure == HELD_LOSS:
        held = [one for one in run.state.measured if math.isfinite(one.loss)]
        steps = np.array([one.step for one in held], float)
        losses = np.array([one.loss for one in held], float)
        times = np.array([parse_ts(one.ts).timestamp() for one in held])
    else:
        points = run.curve("loss", POINTS)
        steps = points["step"].to_numpy().astype(float)
        losses = smooth(steps, points["mean"].to_numpy(), smoothing) if len(steps) else np.empty(0)
        times = times_of(run, steps) if axis == "time" else steps
    if axis == "step" or not len(steps):
        return steps, losses
    return (times - times_of(run, np.zeros(1))[0]) / 60, losses


def told_apart(runs: list[LiveRun]) -> dict[str, str]:
    """What each run is called where several stand beside each other, by its name: two of all may have one title."""
    titles = Counter(run.title for run in live_runs().all())
    return {run.name: run.title if titles[run.title] == 1 else f"{run.title} ({run.name})" for run in runs}


def show(runs: list[LiveRun], smoothing: float, key: str, *, axis: str = "step", measure: str = LOSS) -> None:
    """The chart; those that have none are named."""
    parts, without, called = [], [], told_apart(runs)
    for run in runs:
        at, losses = curve(run, smoothing, axis, measure)
        if len(at):
            parts.append(pa.table({"at": at, "loss": losses, "run": [called[run.name]] * len(at)}))
        else:
            without.append(called[run.name])
    if not parts:
        st.caption(f"None of these runs has a {measure} yet.")
        return
    names = [name for name in called.values() if name not in without]
    st.html(look.legend(list(zip(names, COLORS, strict=False))))
    st.vega_lite_chart(
        pa.concat_tables(parts), _spec(axis, measure), key=key, width="stretch", alt=f"{measure} of {', '.join(names)}"
    )
    if without:
        st.caption(f"No {measure} yet: {', '.join(map(words.escape, without))}.")
