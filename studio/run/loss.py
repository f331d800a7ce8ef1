"""Loss: smoothed over raw, and the curves beside it."""

from __future__ import annotations

import streamlit as st

from .. import charts
from ..live import LiveRun


def show(run: LiveRun) -> None:
    """The tab."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        smoothing = st.slider(
            "Smoothing", 0.0, 0.99, charts.SMOOTHING, 0.01, key="loss-smoothing", width=240, persist_state="session"
        )
        log = st.toggle("Log scale", key="loss-log", persist_state="session")
        clip = st.toggle(
            "Hide outliers",
            key="loss-clip",
            help="The highest hundredth of the losses is drawn at the height of the next lower one.",
            persist_state="session",
        )
        also = st.pills(
            "Also",
            list(charts.CURVES),
            default=["lr", "grad_norm"],
            selection_mode="multi",
            format_func=lambda name: charts.CURVES[name][0],
            key="loss-also",
            persist_state="session",
        )
    charts.loss(run, f"loss-tab-{run.name}", smoothing=smoothing, log=log, clip=clip)
    if told := charts.marks(run.state):
        st.caption("On the axis: " + ", ".join(f"{text} at step {step:,}" for step, _, text in told) + ".")
    for column, place in zip(also, st.columns(2) * len(also), strict=False):
        with place:
            st.markdown(f"**{charts.CURVES[column][0]}**")
            charts.curve(run, column, f"{column}-{run.name}")
