"""Charts, each with a fixed Vega spec: only its data changes, so the browser redraws nothing else."""

from __future__ import annotations

import math
from base64 import b64encode
from typing import Any

import numpy as np
import pyarrow as pa
import streamlit as st

from fluxcore.runs import RunState

from .live import SPARK_POINTS, LiveRun

_LINE = "#7C6DF0"  # reads on white and on near black
COLORS = ("#7C6DF0", "#1F9D63", "#D9822B", "#3B82E0", "#DB4C56", "#8A8DA0")
_MARKS = {"attempt": "#8A8DA0", "stalled": "#D9822B", "failed": "#DB4C56"}
SMOOTHING = 0.9
OUTLIERS = 99.0
"""Percent of the losses that are drawn where they are; those above are drawn at that height."""
_STEP: dict[str, Any] = {
    "field": "step",
    "type": "quantitative",
    "title": "step",
    "axis": {"tickMinStep": 1, "format": "~s", "grid": False},
    "scale": {"zero": False, "nice": False},
}


def _steps_spec(title: str, height: int, *, log: bool = False, smoothed: bool = True, form: str = ".4~f") -> dict:
    """Lines over steps, with the marks of attempts and stalls on the axis. Rows have either `value` or `mark`."""
    scale = {"type": "log"} if log else {"zero": False}
    y = {"type": "quantitative", "title": None, "scale": scale, "axis": {"format": "~g", "minExtent": 42}}
    lines: list[dict[str, Any]] = [
        {
            "transform": [{"filter": "datum.mark == null"}],
            "mark": {"type": "line", "strokeWidth": 1, "opacity": 0.35 if smoothed else 1, "color": _LINE},
            "encoding": {"y": {"field": "value", **y}},
        }
    ]
    if smoothed:
        lines.append(
            {
                "transform": [{"filter": "datum.mark == null"}],
                "mark": {"type": "line", "strokeWidth": 2.5, "color": _LINE, "interpolate": "monotone"},
                "encoding": {"y": {"field": "smoothed", **y}},
            }
        )
    shown = [{"field": "step", "type": "quantitative", "format": ","}]
    shown += [
        {"field": field, "type": "quantitative", "format": form, "title": name}
        for field, name in [("value", title)] + ([("smoothed", "smoothed")] if smoothed else [])
    ]
    colors = {"domain": list(_MARKS), "range": list(_MARKS.values())}
    marks = {"filter": "datum.mark != null"}
    return {
        "height": height,
        "encoding": {"x": _STEP},
        "layer": [
            *lines,
            {
                "transform": [marks],
                "mark": {"type": "rule", "strokeDash": [4, 3], "strokeWidth": 1.2},
                "encoding": {"color": {"field": "kind", "type": "nominal", "scale": colors, "legend": None}},
            },
            {
                "transform": [marks],
                "mark": {"type": "text", "align": "left", "baseline": "top", "dx": 4, "fontSize": 11},
                "encoding": {
                    "y": {"value": 2},
                    "text": {"field": "mark"},
                    "color": {"field": "kind", "type": "nominal", "scale": colors, "legend": None},
                },
            },
            {
                "transform": [{"filter": "datum.mark == null"}],
                "mark": {"type": "rule", "opacity": 0.25},
                "params": [
                    {
                        "name": "hover",
                        "select": {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"},
                    }
                ],
                "encoding": {
                    "opacity": {"condition": {"param": "hover", "empty": False, "value": 0.35}, "value": 0},
                    "tooltip": shown,
                },
            },
        ],
    }


LOSS_SPECS = {
    (log, small): _steps_spec("loss", 300 if small else 360, log=log)
    for log in (False, True)
    for small in (False, True)
}
CURVES = {
    "lr": ("Learning rate", ".3~g"),
    "grad_norm": ("Gradient norm", ".4~g"),
    "step_seconds": ("Seconds a step", ".3~f"),
    "memory_gib": ("Memory of the training (GiB)", ".2~f"),
}
_CURVE_SPECS = {name: _steps_spec(title, 150, smoothed=False, form=form) for name, (title, form) in CURVES.items()}


def smooth(steps: np.ndarray, values: np.ndarray, weight: float) -> np.ndarray:
    """An exponential mean over uneven steps, without bias towards its start; `weight` 0 to below 1, 0 = as it is.

    What is not finite leaves the mean as it was. A point's share follows the steps since the one before, measured in
    thousandths of the whole range, so that a long and a short run are smoothed alike to the eye.
    """
    if weight <= 0 or len(steps) < 2:
        return values
    unit = max(1.0, float(steps[-1] - steps[0]) / 1000)
    kept = weight ** (np.diff(steps, prepend=steps[0] - unit) / unit)
    total = share = 0.0
    means = np.empty(len(values))
    for i, (keep, value) in enumerate(zip(kept.tolist(), values.tolist(), strict=True)):
        if math.isfinite(value):
            total, share = keep * total + (1 - keep) * value, keep * share + (1 - keep)
        means[i] = total / share if share else math.nan
    return means


def marks(state: RunState) -> list[tuple[int, str, str]]:
    """(step, kind, words) of each attempt after the first and of each stall and failure."""
    found = []
    for attempt in state.attempts:
        if attempt.number > 1:
            found.append((attempt.resume_step or 0, "attempt", f"attempt {attempt.number}"))
        if attempt.outcome in ("run.stalled", "run.failed"):
            kind = attempt.outcome.removeprefix("run.")
            found.append((attempt.last_step or attempt.resume_step or 0, kind, kind))
    return found[-24:]


def _rows(points: pa.Table, state: RunState, smoothing: float | None) -> pa.Table:
    """The data of a chart over steps: the curve's points, then the marks, within the drawn steps."""
    steps, values = points["step"].to_numpy(), points["value"].to_numpy()
    columns = {"step": steps, "value": values}
    if smoothing is not None:
        columns["smoothed"] = smooth(steps, points["mean"].to_numpy(), smoothing)
    told = [mark for mark in marks(state) if steps[0] <= mark[0] <= steps[-1]]
    count, extra = len(steps), len(told)
    table = {
        name: pa.array(np.concatenate([column, np.full(extra, math.nan)]), pa.float64(), from_pandas=True)
        for name, column in columns.items()
        if name != "step"
    }
    return pa.table(
        {
            "step": pa.array(np.concatenate([steps, [step for step, _, _ in told]]), pa.float64()),
            **table,
            "kind": pa.array([None] * count + [kind for _, kind, _ in told], pa.string()),
            "mark": pa.array([None] * count + [text for _, _, text in told], pa.string()),
        }
    )


def loss(
    run: LiveRun, key: str, *, smoothing: float = SMOOTHING, log: bool = False, clip: bool = False, small: bool = False
) -> None:
    """The loss by step, smoothed over raw."""
    points = run.curve("loss")
    if len(points) < 2:
        st.caption("The loss is drawn from the second step on.")
        return
    above = 0
    values = points["value"].to_numpy()
    if clip:
        limit = float(np.percentile(values, OUTLIERS))
        above = int((values > limit).sum())
        points = points.set_column(1, "value", pa.array(np.minimum(values, limit)))
        points = points.set_column(2, "mean", pa.array(np.minimum(points["mean"].to_numpy(), limit)))
    if log:
        points = points.filter(pa.array(points["value"].to_numpy() > 0))
    rows = _rows(points, run.state, smoothing)
    last = rows["smoothed"][len(points) - 1].as_py()
    st.vega_lite_chart(
        rows,
        LOSS_SPECS[log, small],
        key=key,
        width="stretch",
        alt=f"Loss over {len(points)} points to step {points['step'][-1].as_py():,.0f}"
        + (f", smoothed now {last:.3g}" if last is not None else ""),
    )
    if above:
        st.caption(f"{above} of the {len(points)} drawn points are higher; they are drawn at {limit:.3g}.")


def curve(run: LiveRun, column: str, key: str) -> None:
    """Another of a run's curves over its steps; nothing where it was never told."""
    points = run.curve(column)
    title = CURVES[column][0]
    if len(points) < 2:
        st.caption(f"{title}: the trainer has not told it.")
        return
    st.vega_lite_chart(
        _rows(points, run.state, None),
        _CURVE_SPECS[column],
        key=key,
        width="stretch",
        alt=f"{title} over {len(points)} points",
    )


OVERLAY_SPEC: dict[str, Any] = {
    "height": 360,
    "mark": {"type": "line", "strokeWidth": 2, "interpolate": "monotone"},
    "encoding": {
        "x": _STEP,
        "y": {"field": "loss", "type": "quantitative", "title": "loss, smoothed", "scale": {"zero": False}},
        "color": {
            "field": "run",
            "type": "nominal",
            "title": None,
            "scale": {"range": list(COLORS)},
            "legend": {"orient": "top", "labelLimit": 260, "columns": 3},
            "sort": None,
        },
        "tooltip": [
            {"field": "run"},
            {"field": "step", "type": "quantitative", "format": ","},
            {"field": "loss", "type": "quantitative", "format": ".4f"},
        ],
    },
}


def overlay(runs: list[LiveRun], smoothing: float, key: str) -> None:
    """The smoothed losses of several runs over each other."""
    parts = []
    for run in runs:
        points = run.curve("loss", 600)
        steps = points["step"].to_numpy()
        if len(steps):
            means = smooth(steps, points["mean"].to_numpy(), smoothing)
            parts.append(pa.table({"step": steps.astype(float), "loss": means, "run": [run.name] * len(steps)}))
    if not parts:
        st.caption("None of these runs has a loss yet.")
        return
    names = ", ".join(run.name for run in runs)
    st.vega_lite_chart(pa.concat_tables(parts), OVERLAY_SPEC, key=key, width="stretch", alt=f"Losses of {names}")


def _time_spec(field: str, title: str, by: str | None, top: float | None = None) -> dict[str, Any]:
    scale: dict[str, Any] = {"zero": True} | ({"domainMax": top, "domainMin": 0} if top else {})
    spec: dict[str, Any] = {
        "height": 130,
        "mark": {"type": "line", "strokeWidth": 1.8, "color": _LINE, "invalid": "break-paths-filter-domains"},
        "encoding": {
            "x": {"field": "ts", "type": "temporal", "title": None, "axis": {"grid": False, "labelOverlap": True}},
            "y": {
                "field": field,
                "type": "quantitative",
                "title": None,
                "scale": scale,
                "axis": {"tickCount": 4, "minExtent": 30},
            },
            "tooltip": [
                {"field": "ts", "type": "temporal", "title": "time", "format": "%H:%M:%S"},
                {"field": field, "type": "quantitative", "title": title, "format": ".1f"},
            ],
        },
    }
    if by:
        spec["encoding"]["color"] = {
            "field": by,
            "type": "nominal",
            "title": "GPU",
            "scale": {"range": list(COLORS)},
            "legend": None,
        }
    return spec


MACHINE = {
    "utilization_percent": ("GPU busy, %", "gpu", 100.0),
    "memory_used_gib": ("GPU memory, GiB", "gpu", None),
    "power_watts": ("GPU power, W", "gpu", None),
    "temperature_c": ("GPU temperature, °C", "gpu", None),
    "cpu_percent": ("CPU of the training, %", None, None),
    "rss_gib": ("Memory of the training, GiB", None, None),
    "memory_available_gib": ("Memory free, GiB", None, None),
    "disk_free_gib": ("Disk free, GiB", None, None),
}
_MACHINE_SPECS = {name: _time_spec(name, *about) for name, about in MACHINE.items()}


def machine(rows: pa.Table, column: str, key: str) -> None:
    """One curve of GPU or host over time; `rows` as `fluxcore.history.machine` gives them."""
    title = MACHINE[column][0]
    known = len(rows) - rows[column].null_count
    if known:
        zoned = rows.set_column(0, "ts", rows["ts"].cast(pa.timestamp("us", "UTC")))
        kept = [name for name in ("ts", "gpu", column) if name in zoned.column_names]
        st.vega_lite_chart(
            zoned.select(kept), _MACHINE_SPECS[column], key=key, width="stretch", alt=f"{title}, {known} points"
        )
    else:
        st.caption(f"{title}: not known.")


def spark(run: LiveRun) -> str:
    """The loss as a small picture's address, for a list; "" where there are less than two steps."""
    return str(run.kept("spark", lambda: _spark(run)))


def _spark(run: LiveRun) -> str:
    points = run.curve("loss", SPARK_POINTS)
    steps = points["step"].to_numpy()
    if len(steps) < 2:
        return ""
    values = smooth(steps, points["mean"].to_numpy(), 0.6)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    across = (steps - steps[0]) / max(1, steps[-1] - steps[0]) * 116 + 2
    down = 30 - (values - low) / ((high - low) or 1.0) * 26
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across.tolist(), down.tolist(), strict=True) if y == y)
    picture = (
        "<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 120 34' preserveAspectRatio='none'>"
        f"<polyline points='{path}' fill='none' stroke='{_LINE}' stroke-width='1.8' "
        "vector-effect='non-scaling-stroke' stroke-linejoin='round'/></svg>"
    )
    return "data:image/svg+xml;base64," + b64encode(picture.encode()).decode()


def answer(
    mark: str, x: tuple[str, str, str], y: tuple[str, str], color: tuple[str, str] | None, whole: bool
) -> dict[str, Any]:
    """The spec for a statement's answer: fields, their titles, what kind `x` is of, whether it is `whole` numbers."""
    spec: dict[str, Any] = {
        "height": 380,
        "mark": {"type": mark, "color": _LINE} | ({"strokeWidth": 2} if mark == "line" else {"filled": True}),
        "encoding": {
            "x": {"field": x[0], "title": x[1], "type": x[2], "axis": {"grid": False}},
            "y": {"field": y[0], "title": y[1], "type": "quantitative", "scale": {"zero": mark == "bar"}},
            "tooltip": [
                {"field": x[0], "title": x[1], "type": x[2]},
                {"field": y[0], "title": y[1], "type": "quantitative"},
            ],
        },
    }
    if x[2] == "nominal":
        spec["encoding"]["x"]["sort"] = None
    elif x[2] == "quantitative":
        spec["encoding"]["x"]["scale"] = {"zero": False, "nice": False}
        if whole:
            spec["encoding"]["x"]["axis"]["tickMinStep"] = 1
    if color:
        scale = {"range": list(COLORS)}
        spec["encoding"]["color"] = {"field": color[0], "title": color[1], "type": "nominal", "scale": scale}
        spec["encoding"]["tooltip"].append({"field": color[0], "title": color[1], "type": "nominal"})
    return spec
