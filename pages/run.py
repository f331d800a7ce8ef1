"""Run: one run, live. `/run?name=my-cat`; without a name the newest one."""

from __future__ import annotations

import streamlit as st

from studio import charts, nav, run_view, words
from studio.files import run_url
from studio.live import LiveRun, live_runs

TABS = {
    "Overview": "dashboard",
    "Samples": "imagesmode",
    "Monitor": "monitor_heart",
    "Log": "article",
    "Checkpoints": "save",
    "Config": "tune",
}


def view(name: str, fast: bool) -> None:
    """The live part: only the open tab is drawn."""
    run = live_runs().get(name)
    if run is None or run.state.is_busy != fast:
        st.rerun()
    run_view.header(run)
    tabs = st.tabs(
        [f":material/{icon}: {title}" for title, icon in TABS.items()], key=f"run-tabs-{name}", on_change="rerun"
    )
    for tab, title in zip(tabs, TABS, strict=True):
        if tab.open:
            with tab:
                show_tab(title, run)


def show_tab(title: str, run: LiveRun) -> None:
    """One tab's content."""
    if title == "Overview":
        left, right = st.columns([1, 1.15], gap="medium")
        with left:
            st.markdown("**Newest samples**")
            run_view.samples(run)
        with right:
            st.markdown("**Loss**, smoothed over raw")
            charts.loss(run, f"loss-{run.name}")
        run_view.machine(run.state)
    elif title == "Samples":
        run_view.sample_grid(run)
    elif title == "Monitor":
        run_view.monitor(run)
    elif title == "Log":
        run_view.log(run.folder.train_log, run_url(run.folder, "train.log"), "The trainer has written nothing yet.")
    elif title == "Checkpoints":
        run_view.checkpoints(run)
    elif title == "Config":
        run_view.config(run.state)


def nothing(name: str) -> None:
    """There is no such run: say so, and where to go."""
    if name:
        st.warning(
            f"There is no run **{words.escape(name)}** here. It may have been deleted, or the link has a typing error.",
            icon=":material/search_off:",
        )
        st.page_link(nav.page("runs"), label="All runs", icon=":material/list:")
    else:
        st.markdown("There are no runs yet.")
        st.page_link(nav.page("train"), label="Train your first LoRA", icon=":material/model_training:")


asked = st.query_params.get("name", "")
runs = live_runs().all()
found = live_runs().get(asked) if asked else (runs[0] if runs else None)
if found is None:
    nothing(asked)
else:
    if not asked:
        st.query_params["name"] = found.name
    live = found.state.is_busy
    st.fragment(view, run_every=1.0 if live else 10.0, key="run-view")(found.name, live)
