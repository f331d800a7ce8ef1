"""Charts, each with a fixed Vega spec: only its data changes, so the browser redraws nothing else."""

from __future__ import annotations

import math
from base64 import b64encode
from typing import Any

import numpy as np
import pyarrow as pa
import streamlit as st

from .live import SPARK_POINTS, LiveRun

LINE = "#7C6DF0"  # reads on white and on near black
COLORS = ("#7C6DF0", "#1F9D63", "#D9822B", "#3B82E0", "#DB4C56", "#8A8DA0")


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


def _time_spec(field: str, title: str, by: str | None, top: float | None = None) -> dict[str, Any]:
    scale: dict[str, Any] = {"zero": True} | ({"domainMax": top, "domainMin": 0} if top else {})
    y = {"type": "quantitative", "title": None, "scale": scale, "axis": {"tickCount": 4, "minExtent": 30}}
    gaps = "break-paths-filter-domains"
    band = {"type": "area", "opacity": 0.3, "color": LINE, "invalid": gaps}
    line = {"type": "line", "strokeWidth": 1.8, "color": LINE, "invalid": gaps}
    spec: dict[str, Any] = {
        "height": 130,
        "encoding": {
            "x": {"field": "ts", "type": "temporal", "title": None, "axis": {"grid": False, "labelOverlap": True}},
            "tooltip": [
                {"field": "ts", "type": "temporal", "title": "time", "format": "%H:%M:%S"},
                {"field": field, "type": "quantitative", "title": title, "format": ".1f"},
                {"field": f"{field}_low", "type": "quantitative", "title": "lowest", "format": ".1f"},
                {"field": f"{field}_high", "type": "quantitative", "title": "highest", "format": ".1f"},
            ],
        },
        "layer": [
            {"mark": band, "encoding": {"y": {"field": f"{field}_low", **y}, "y2": {"field": f"{field}_high"}}},
            {"mark": line, "encoding": {"y": {"field": field, **y}}},
        ],
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
    if known == 1:  # no line goes through one point
        st.markdown(f"**{next(value for value in rows[column].to_pylist() if value is not None):.1f}** so far")
    elif known:
        zoned = rows.set_column(0, "ts", rows["ts"].cast(pa.timestamp("us", "UTC")))
        kept = [name for name in ("ts", "gpu", column, f"{column}_low", f"{column}_high") if name in rows.column_names]
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
        f"<polyline points='{path}' fill='none' stroke='{LINE}' stroke-width='1.8' "
        "vector-effect='non-scaling-stroke' stroke-linejoin='round'/></svg>"
    )
    return "data:image/svg+xml;base64," + b64encode(picture.encode()).decode()


def answer(
    mark: str, x: tuple[str, str, str], y: tuple[str, str], color: tuple[str, str] | None, whole: bool
) -> dict[str, Any]:
    """The spec for a statement's answer: fields, their titles, what kind `x` is of, whether it is `whole` numbers."""
    spec: dict[str, Any] = {
        "height": 380,
        "mark": {"type": mark, "color": LINE} | ({"strokeWidth": 2} if mark == "line" else {"filled": True}),
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
