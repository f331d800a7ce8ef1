"""What a person hears of without looking: a word when a run changes its state, and its progress in the page's title."""

from __future__ import annotations

import streamlit as st

from . import banner, look, nav, words
from .live import LiveRun, live_runs

TOLD = frozenset({"running", "completed", "failed", "stalled", "stopped"})
"""Of the others a person hears by the button that brought them about."""
_SEEN, _TITLE, _PAGE = "notice.seen", "notice.title", "notice.page"
APP = "FluxGym"


def tell(runs: list[LiveRun]) -> None:
    """A toast for each run that is in another state, or another attempt, than when this session looked last."""
    now = {run.name: (run.row.get("state"), run.row.get("attempts")) for run in runs}
    before = st.session_state.get(_SEEN)
    st.session_state[_SEEN] = now
    if before is None:
        return
    for run in runs:
        if run.name in before and now[run.name] != before[run.name] and now[run.name][0] in TOLD:
            icon, text = look.STATES[run.state.state][1], sentence(run)
            st.toast(text, icon=f":material/{icon}:", duration="short" if run.is_live else "long")


def sentence(run: LiveRun) -> str:
    """What became of a run, in a sentence."""
    state = run.state
    name = f"**{words.escape(run.title)}**"
    if state.state == "running":
        attempt = state.attempt
        return f"{name} trains" + (f" on from step {attempt.resume_step:,}" if attempt and attempt.resume_step else "")
    if state.state == "completed":
        return f"{name} is finished: {words.plural(state.step, 'step')}"
    return f"{name}: {words.escape(banner.why(run))}"


def title(page: str, name: str = "") -> str:
    """The title of a page: how far the run `name` is that it shows, or the first one that lives."""
    runs = live_runs().all()
    run = live_runs().get(name) if name else next((one for one in runs if one.is_live), None)
    if run is None:
        return f"{nav.TITLES[page][0]} · {APP}" if page in nav.TITLES else APP
    state, shown = run.state, run.title
    if not run.is_live:
        return f"{shown}: {state.state} · {APP}"
    far = f"{banner.progress(state):.0%}".replace("%", " %") if state.total_steps or state.phase_total else state.state
    return f"{far} {shown} · {APP}"


def shown() -> str:
    """The title that the browser has."""
    return str(st.session_state.get(_TITLE, APP))


def begin(page: str) -> None:
    """At the start of the whole page: its title."""
    st.session_state[_PAGE] = page
    _entitle()


def keep(runs: list[LiveRun]) -> None:
    """In what keeps itself up to date: toasts, and the title."""
    tell(runs)
    _entitle()


def _entitle() -> None:
    """Send the title to the browser where it is another one than it has."""
    page = st.session_state.get(_PAGE, "")
    wanted = title(page, str(st.query_params.get("name", "")) if page == "run" else "")
    if wanted != st.session_state.get(_TITLE):
        st.session_state[_TITLE] = wanted
        st.set_page_config(page_title=wanted)
