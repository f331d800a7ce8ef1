"""Run: one run, live. `/run?name=my-cat&tab=loss`; without a name the newest one. Only the open tab computes."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from studio import dialogs, nav, pulse, words
from studio.live import LiveRun, live_runs
from studio.run import checkpoints, config, events, header, log, loss, monitor, overview, publish, samples

TABS: dict[str, tuple[str, str, Callable[[LiveRun], None], float]] = {
    "overview": ("Overview", "dashboard", overview.show, 3.0),
    "samples": ("Samples", "imagesmode", samples.show, 2.0),
    "loss": ("Loss", "show_chart", loss.show, 2.0),
    "monitor": ("Monitor", "monitor_heart", monitor.show, 2.0),
    "log": ("Log", "article", log.show, 1.0),
    "checkpoints": ("Checkpoints", "save", checkpoints.show, 2.0),
    "config": ("Config", "tune", config.show, 0.0),
    "events": ("Events", "list_alt", events.show, 2.0),
}
"""By the word in the address: title, icon, what draws it, seconds between two looks while the run lives (0: none)."""
LABELS = {slug: f":material/{icon}: {title}" for slug, (title, icon, _, _) in TABS.items()}
IDLE_SECONDS = 10.0
"""Between two looks at what neither moves (see `pulse`) nor stands in the log: a process that is gone."""


def head(name: str, fast: bool) -> None:
    """What stands on top; where the run begins or ends to live, the page takes another pace."""
    run = live_runs().get(name)
    if run is None or run.is_busy != fast:
        st.rerun()
    header.show(run)


def tab(slug: str, name: str) -> None:
    """What is in the open tab."""
    dialogs.pass_on()
    run = live_runs().get(name)
    if run is None:
        st.rerun()
    TABS[slug][2](run)


def show(run: LiveRun) -> None:
    """The page of a run. The address says which tab is open."""
    key = f"run-tabs-{run.name}"
    open_slug = str(st.query_params.get("tab", "overview"))
    st.session_state[key] = LABELS.get(open_slug, LABELS["overview"])

    def turned() -> None:
        slug = next(slug for slug, label in LABELS.items() if label == st.session_state[key])
        st.query_params["tab"] = slug

    live = run.is_busy
    pulse.drawn(run)
    st.fragment(head, run_every=IDLE_SECONDS, key="run-head")(run.name, live)
    publish.show(run)
    for slug, place in zip(TABS, st.tabs(list(LABELS.values()), key=key, on_change=turned), strict=True):
        if place.open:
            pace = TABS[slug][3]
            with place:
                st.fragment(tab, run_every=(pace if live else IDLE_SECONDS) if pace else None, key="run-tab")(
                    slug, run.name
                )


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
runs = [run for run in live_runs().all() if not run.row.get("archived")]
found = live_runs().get(asked) if asked else (runs[0] if runs else None)
if found is None:
    nothing(asked)
else:
    if not asked:
        st.query_params["name"] = found.name
    show(found)
