"""Loss: smoothed over raw, the best checkpoint, and the curves beside it, over steps or over time."""

from __future__ import annotations

import streamlit as st

from fluxcore.runs import best_weights

from .. import step_charts, words
from ..files import run_url
from ..live import LiveRun


def show(run: LiveRun) -> None:
    """The tab."""
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="loss-tools"):
        smoothing = st.slider(
            "Smoothing",
            0.0,
            0.99,
            step_charts.SMOOTHING,
            0.01,
            key="loss-smoothing",
            width=220,
            persist_state="session",
        )
        axis = st.segmented_control(
            "Over", list(step_charts.AXES), default="Step", required=True, key="loss-axis", persist_state="session"
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
            list(step_charts.CURVES),
            default=["lr", "grad_norm"],
            selection_mode="multi",
            format_func=lambda name: step_charts.CURVES[name][0],
            key="loss-also",
            wrap=True,
            persist_state="session",
        )
    over = step_charts.AXES[axis or "Step"]
    best(run)
    step_charts.loss(run, f"loss-tab-{run.name}", smoothing=smoothing, log=log, clip=clip, axis=over)
    if told := step_charts.marks(run.state):
        st.caption("On the axis: " + ", ".join(f"{mark.text} at step {mark.step:,}" for mark in told) + ".")
    for column, place in zip(also, st.columns(2) * len(also), strict=False):
        with place:
            st.markdown(f"**{step_charts.CURVES[column][0]}**")
            step_charts.curve(run, column, f"{column}-{run.name}", over)


def best(run: LiveRun) -> None:
    """Which LoRA file is the best so far, and the file itself; or how a run finds out."""
    found = best_weights(run.folder, run.state)
    if found is None:
        if not run.state.measured and run.state.step:
            st.caption(
                "The loss on the held-out pictures has not been measured yet."
                if run.state.config.get("validation_split")
                else "Which checkpoint is the best? A run that holds some pictures out measures it: on the page Train, "
                "*Share of pictures held out*."
            )
        return
    with st.container(border=True, horizontal=True, vertical_alignment="center", key="best"):
        epoch = f", epoch {found.epoch}" if found.epoch else ""
        lowest = min(run.state.measured, key=lambda one: one.loss, default=None)
        other = ""
        if lowest and found.validation_loss is not None and lowest.loss < found.validation_loss:
            other = f" The lowest was {words.loss(lowest.loss)} at step {lowest.step:,}, where nothing was saved."
        st.markdown(
            f":violet-badge[:material/star: best] **Step {found.step:,}**{epoch}: held-out loss "
            f"**{words.loss(found.validation_loss)}**.{other}",
            width="stretch",
        )
        st.link_button(
            "Download the best", run_url(run.folder, found.path), key="best-download", icon=":material/download:"
        )
