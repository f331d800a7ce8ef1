"""Runs: every run with its newest picture, its loss and how far it came. Find, sort, choose several, compare."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from typing import Any

import streamlit as st

from fluxcore.runs import default_outputs
from fluxcore.runs.supervision import observed_state
from studio import banner, bulk, charts, dialogs, look, nav, words
from studio.live import LiveRun, live_runs
from studio.run import manage, samples

PER_PAGE = 20
GROUPS: dict[str, set[str] | None] = {
    "All": None,
    "Running": {"queued", "starting", "running", "stopping"},
    "Completed": {"completed"},
    "Ended early": {"stopped", "stalled", "failed", "lost"},
    "Drafts": {"draft"},
    "Archived": None,
}
SORTS: dict[str, tuple[Callable[[dict[str, Any]], Any], bool]] = {
    "Newest first": (lambda row: row["started"] or row["created"] or datetime.min, True),
    "Name": (lambda row: str(row["title"] or row["run"]).lower(), False),
    "Lowest loss": (lambda row: math.inf if row["best_loss"] is None else row["best_loss"], False),
    "Most steps": (lambda row: row["step"] or 0, True),
    "Longest": (lambda row: row["seconds"] or 0.0, True),
}
"""What is sorted by, out of a run's row, and whether the highest comes first."""


def show(runs: list[LiveRun]) -> None:
    """The list, narrowed, sorted and paged."""
    with st.container(horizontal=True, vertical_alignment="center"):
        wanted = st.text_input(
            "Search",
            key="runs-search",
            placeholder="Search names, words, models, notes",
            type="search",
            live=True,
            label_visibility="collapsed",
            width=300,
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
        tags = manage.all_tags()
        chosen = (
            st.multiselect("Tags", tags, key="runs-tags", placeholder="Tags", label_visibility="collapsed", width=180)
            if tags
            else []
        )
        sort = st.selectbox("Sort", list(SORTS), key="runs-sort", label_visibility="collapsed", width=160)
    found = [run for run in runs if in_group(run, group or "All") and matches(run, wanted or "", chosen)]
    listed = [run.name for run in found]
    if not found:
        st.caption("No run matches that.")
    by, highest = SORTS[sort or "Newest first"]
    if sort != "Newest first":  # that is the order they come in, those that live ahead
        found.sort(key=lambda run: by(run.row) if run.row else by(_EMPTY), reverse=highest)
    pages = math.ceil(len(found) / PER_PAGE)
    page = st.pagination(pages, key="runs-page") if pages > 1 else 1
    for run in found[(page - 1) * PER_PAGE : page * PER_PAGE]:
        card(run)
    bulk.bar(listed)  # below: above it would push away what one is about to choose next


_EMPTY: dict[str, Any] = dict.fromkeys(("started", "created", "title", "best_loss", "step", "seconds")) | {"run": ""}


def in_group(run: LiveRun, group: str) -> bool:
    """Whether a run belongs to what was chosen; the archived ones are seen there alone."""
    if bool(run.row.get("archived")) != (group == "Archived"):
        return False
    states = GROUPS[group]
    return not states or run.row.get("state") in states


def matches(run: LiveRun, wanted: str, tags: list[str]) -> bool:
    """Whether a run has that word and all of those tags."""
    row = run.row
    if not set(tags) <= set(row.get("tags") or []):
        return False
    said = (run.name, *(row.get(name) for name in ("title", "trigger", "base_model", "note")), *(row.get("tags") or []))
    return wanted.lower() in "\n".join(str(text or "") for text in said).lower()


def card(run: LiveRun) -> None:
    """One run in a row that becomes a card on a phone."""
    state = run.state
    shown = observed_state(state, default_outputs())
    with st.container(border=True, key=f"card-{run.name}", horizontal=True, vertical_alignment="center"):
        bulk.choice(run.name)
        st.html(look.thumbnail(samples.last_picture(run)), width="content")
        with st.container(width="stretch", gap="xsmall"):
            tags = " ".join(f":violet-badge[{words.escape(tag)}]" for tag in state.tags)
            st.markdown(f"{look.badge(shown)} **{words.escape(run.title)}** {tags}")
            if run.trouble:
                st.caption(f":red[:material/error: {words.escape(run.trouble)}]")
            elif state.is_live and state.total_steps:
                st.progress(banner.progress(state), text=words.escape(banner.progress_words(state)))
            elif state.refusal and not state.is_busy:
                st.caption(words.escape(f"It could not be started: {state.refusal}."))
            elif state.state in ("stalled", "failed", "stopped"):
                st.caption(words.escape(banner.why(run)))
            if state.note:
                st.caption(f":material/sticky_note_2: {words.escape(state.note[:140])}")
            st.html(look.facts(numbers(run)))
        st.html(look.spark("" if state.is_coming else charts.spark(run), f"Loss of {run.name}"), width="content")
        banner.open_link(run.name, key=f"card-open-{run.name}")


def numbers(run: LiveRun) -> list[tuple[str, str]]:
    """What is known of a run in short."""
    state, seconds = run.state, run.row.get("seconds")
    about = [
        ("base", str(state.config.get("base_model", ""))),
        ("trigger", str(state.config.get("concept_sentence", ""))),
    ]
    if state.is_coming:  # what is known of steps and losses is of the attempt before
        return [*about, ("created", words.clock(state.created))]
    return [
        ("steps", f"{state.step:,} / {state.total_steps:,}" if state.total_steps else ""),
        ("loss", words.loss(state.loss) if state.loss is not None else ""),
        ("lowest", words.loss(state.best_loss) if state.best_loss is not None else ""),
        ("started", words.clock(state.started) if state.started else ""),
        ("took" if state.ended else "so far", words.duration(seconds) if seconds is not None else ""),
        *about,
        ("created", words.clock(state.created) if not state.started else ""),
    ]


def listing() -> None:
    """The live part."""
    dialogs.pass_on()
    runs = live_runs().all()
    if runs:
        show(runs)
        return
    st.markdown("There are no runs yet. A run needs a name, a trigger word and some pictures.")
    st.page_link(nav.page("train"), label="Train your first LoRA", icon=":material/model_training:")


st.title("Runs", anchor=False)
manage.offer_undo()
live = any(run.is_busy for run in live_runs().all())
st.fragment(listing, run_every=2.0 if live else 10.0, key="runs-list")()
