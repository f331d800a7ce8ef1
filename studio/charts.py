"""Charts, each with a fixed Vega spec: only its data changes, so the browser redraws nothing else."""

from __future__ import annotations

from typing import Any

import streamlit as st

from .live import LiveRun

_LINE = "#7C6DF0"  # reads on white and on near black
LOSS_SPEC: dict[str, Any] = {
    "height": 300,
    "encoding": {
        "x": {
            "field": "step",
            "type": "quantitative",
            "title": "step",
            "axis": {"tickMinStep": 1, "format": "~s", "grid": False},
            "scale": {"zero": False, "nice": False},
        },
    },
    "layer": [
        {
            "mark": {"type": "line", "strokeWidth": 1, "opacity": 0.35, "color": _LINE, "clip": True},
            "encoding": {"y": {"field": "loss", "type": "quantitative", "title": "loss", "scale": {"zero": False}}},
        },
        {
            "mark": {"type": "line", "strokeWidth": 2.5, "color": _LINE, "interpolate": "monotone"},
            "encoding": {"y": {"field": "smoothed", "type": "quantitative", "title": "loss"}},
        },
        {
            "mark": {"type": "rule", "opacity": 0.25},
            "params": [
                {
                    "name": "hover",
                    "select": {"type": "point", "on": "pointerover", "nearest": True, "clear": "pointerout"},
                }
            ],
            "encoding": {
                "opacity": {"condition": {"param": "hover", "empty": False, "value": 0.35}, "value": 0},
                "tooltip": [
                    {"field": "step", "type": "quantitative", "format": ","},
                    {"field": "loss", "type": "quantitative", "format": ".4f"},
                    {"field": "smoothed", "type": "quantitative", "format": ".4f"},
                ],
            },
        },
    ],
}


def loss(run: LiveRun, key: str) -> None:
    """The loss by step, smoothed over raw."""
    points = run.points()
    if len(points["step"]) < 2:
        st.caption("The loss is drawn from the second step on.")
        return
    import pandas as pd

    last = next((value for value in reversed(points["smoothed"]) if value is not None), None)
    st.vega_lite_chart(
        pd.DataFrame(points),
        LOSS_SPEC,
        key=key,
        width="stretch",
        alt=f"Loss over {len(points['step'])} points to step {points['step'][-1]:.0f}"
        + (f", smoothed now {last:.3g}" if last is not None else ""),
    )
