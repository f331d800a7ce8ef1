"""Choosing several runs in the list, and what can be done to all of them at once."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from fluxcore.errors import UserError
from fluxcore.runs import default_outputs, request_resume, request_stop, resume_choice
from fluxcore.runs.about import set_archived, set_tags

from . import ask, dialogs, nav, words
from .live import LiveRun, live_runs
from .run import manage

CHOSEN = "runs.chosen"
MOST_COMPARED = 6


def chosen() -> list[str]:
    """The names of the chosen runs, in the order in which they were chosen."""
    names: list[str] = st.session_state.setdefault(CHOSEN, [])
    return names


def choice(name: str) -> None:
    """The box before a run."""
    key = f"choose-{name}"
    st.session_state[key] = name in chosen()
    st.checkbox(f"Choose {name}", key=key, label_visibility="collapsed", on_change=_turn, args=(name, key))


def bar(listed: list[str]) -> None:
    """What can be done to the chosen ones; those that the list does not show are none of them any more."""
    names = [name for name in chosen() if name in listed]
    st.session_state[CHOSEN] = names
    if not names:
        return
    with st.container(border=True, horizontal=True, vertical_alignment="center", key="bulk"):
        st.markdown(f"**{len(names)}** of {len(listed)} chosen", width="stretch")
        if st.button(
            "Compare",
            key="bulk-compare",
            icon=":material/compare_arrows:",
            type="primary",
            disabled=not 2 <= len(names) <= MOST_COMPARED,
            help=f"Two to {MOST_COMPARED} runs beside each other",
        ):
            st.switch_page(nav.page("compare"), query_params={"runs": ",".join(names)})
        st.button("Tag", key="bulk-tag", icon=":material/sell:", on_click=dialogs.want, args=(_tag, "Tag them", names))
        runs = [run for name in names if (run := live_runs().get(name))]
        if any(run.is_live for run in runs):
            st.button("Stop", key="bulk-stop", icon=":material/stop:", on_click=_stop, args=(names,))
        if any(_can_resume(run) for run in runs):
            st.button("Resume", key="bulk-resume", icon=":material/play_arrow:", on_click=_resume, args=(names,))
        away = all(run.row.get("archived") for run in runs)
        st.button(
            "Back into the list" if away else "Archive",
            key="bulk-archive",
            icon=":material/unarchive:" if away else ":material/archive:",
            on_click=_archive,
            args=(names, not away),
        )
        st.button(
            "Delete",
            key="bulk-delete",
            icon=":material/delete:",
            on_click=dialogs.want,
            args=(manage.delete, f"Delete {words.plural(len(names), 'run')}?", names),
        )
        if len(names) < len(listed):
            st.button("All", key="bulk-all", icon=":material/done_all:", type="tertiary", on_click=_all, args=(listed,))
        st.button("None", key="bulk-none", icon=":material/close:", type="tertiary", help="Choose none", on_click=_none)


def _turn(name: str, key: str) -> None:
    names = chosen()
    if st.session_state[key] and name not in names:
        names.append(name)
    elif not st.session_state[key] and name in names:
        names.remove(name)


def _all(listed: list[str]) -> None:
    st.session_state[CHOSEN] = list(listed)


def _none() -> None:
    st.session_state[CHOSEN] = []


def _tag(names: list[str]) -> None:
    with st.form("bulk-tag-form", border=False):
        given = st.multiselect(
            "Tags", manage.all_tags(), key="bulk-tags", accept_new_options=True, placeholder="Choose or type some"
        )
        put, take = st.columns(2)
        added = put.form_submit_button("Add to all", type="primary", icon=":material/add:", width="stretch")
        taken = take.form_submit_button("Take from all", icon=":material/remove:", width="stretch")

    def change() -> None:
        for name in names:
            run = live_runs().get(name)
            before = run.state.tags if run else []
            after = [*before, *given] if added else [tag for tag in before if tag not in given]
            if after != before:
                set_tags(default_outputs(), name, "app", after)

    if given and (added or taken) and dialogs.attempt(change):
        st.rerun()


def _stop(names: list[str]) -> None:
    _each([name for name in names if (run := live_runs().get(name)) and run.is_live], _stop_one, "asked to stop")


def _stop_one(name: str) -> None:
    request_stop(default_outputs(), name, "app")


def _can_resume(run: LiveRun) -> bool:
    ended = run.state.attempts and not run.is_busy and run.state.state != "completed"
    return bool(ended and resume_choice(run.folder, run.state))


def _resume(names: list[str]) -> None:
    found = [name for name in names if (run := live_runs().get(name)) and _can_resume(run)]
    _each(found, lambda name: request_resume(default_outputs(), name, "app"), "go on, in turn")
    ask.wake_runner()


def _archive(names: list[str], archived: bool) -> None:
    def put(name: str) -> None:
        set_archived(default_outputs(), name, "app", archived)

    _each(names, put, "put away" if archived else "back in the list")


def _each(names: list[str], what: Callable[[str], object], done: str) -> None:
    """Do it to each; one that can't be done does not keep it from the others."""
    problems, count = [], 0
    for name in names:
        try:
            what(name)
            count += 1
        except (UserError, OSError) as error:
            problems.append(ask.sentence(error))
    live_runs().expire()
    if count:
        st.toast(f"{words.plural(count, 'run')} {done}", icon=":material/check:")
    for problem in problems[:3]:
        st.toast(problem, icon=":material/error:", duration="long")
