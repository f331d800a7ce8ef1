"""Runs: every run with its state and how far it came, the newest first."""

from __future__ import annotations

import math

import streamlit as st

from fluxcore.runs import default_outputs, seconds_between
from fluxcore.runs.supervision import observed_state
from studio import banner, look, nav, words
from studio.live import LiveRun, live_runs

PER_PAGE = 20
GROUPS = {
    "All": None,
    "Running": {"queued", "starting", "running", "stopping"},
    "Completed": {"completed"},
    "Ended early": {"stopped", "stalled", "failed", "lost"},
    "Drafts": {"draft"},
}


def show(runs: list[LiveRun]) -> None:
    """The list, filtered and paged."""
    with st.container(horizontal=True, vertical_alignment="center"):
        wanted = st.text_input(
            "Search",
            key="runs-search",
            placeholder="Search by name, trigger word or base model",
            type="search",
            live=True,
            label_visibility="collapsed",
            width=320,
        )
        group = st.segmented_control(
            "State",
            list(GROUPS),
            default="All",
            required=True,
            key="runs-group",
            label_visibility="collapsed",
            wrap=True,
        )
    states = GROUPS[group or "All"]
    found = [run for run in runs if (not states or run.state.state in states) and matches(run, wanted or "")]
    if not found:
        st.caption("No run is like that.")
        return
    pages = math.ceil(len(found) / PER_PAGE)
    page = st.pagination(pages, key="runs-page") if pages > 1 else 1
    for run in found[(page - 1) * PER_PAGE : page * PER_PAGE]:
        card(run)


def matches(run: LiveRun, wanted: str) -> bool:
    """Whether a run has that word."""
    config = run.state.config
    text = f"{run.name} {run.state.title} {config.get('concept_sentence')} {config.get('base_model')}"
    return wanted.lower() in text.lower()


def card(run: LiveRun) -> None:
    """One run in a row that becomes a card on a phone."""
    state = run.state
    shown = observed_state(state, default_outputs())
    with st.container(border=True, key=f"card-{run.name}", horizontal=True, vertical_alignment="center"):
        with st.container(width="stretch", gap="xsmall"):
            st.markdown(f"{look.badge(shown)} **{words.escape(state.title or run.name)}**")
            if run.trouble:
                st.caption(f":red[:material/error: {words.escape(run.trouble)}]")
            elif state.is_live and state.total_steps:
                st.progress(banner.progress(state), text=banner.progress_words(state))
            elif state.state in ("stalled", "failed", "stopped"):
                st.caption(words.escape(banner.why(run)))
            st.html(look.facts(numbers(run)))
        banner.open_link(run.name, key=f"card-open-{run.name}")


def numbers(run: LiveRun) -> list[tuple[str, str]]:
    """What is known of a run in short."""
    state = run.state
    took = seconds_between(state.started, state.ended or state.updated) if state.started else None
    about = [
        ("base", str(state.config.get("base_model", ""))),
        ("trigger", str(state.config.get("concept_sentence", ""))),
    ]
    if state.is_coming:  # what is known of steps and losses is of the attempt before
        return [*about, ("created", words.clock(state.created))]
    return [
        ("steps", f"{state.step:,} / {state.total_steps:,}" if state.total_steps else ""),
        ("loss", words.loss(state.loss) if state.loss is not None else ""),
        ("best", words.loss(state.best_loss) if state.best_loss is not None else ""),
        ("started", words.clock(state.started) if state.started else ""),
        ("took" if state.ended else "so far", words.duration(took) if took is not None else ""),
        *about,
        ("created", words.clock(state.created) if not state.started else ""),
    ]


def listing() -> None:
    """The live part."""
    runs = live_runs().all()
    if runs:
        show(runs)
        return
    st.markdown("There are no runs yet. A run needs a name, a trigger word and some pictures.")
    st.page_link(nav.page("train"), label="Train your first LoRA", icon=":material/model_training:")


st.title("Runs", anchor=False)
live = any(run.state.is_busy for run in live_runs().all())
st.fragment(listing, run_every=2.0 if live else 10.0, key="runs-list")()
