"""Questions in front of the page. One at a time; asked for from anywhere, drawn by the entry script.

A fragment that keeps itself up to date would take a dialog of its own away at its next tick.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from fluxcore.errors import UserError

from . import access
from .ask import sentence
from .live import live_runs

_WANTED, _NEW, _PAGE, _DONE = "dialog.wanted", "dialog.new", "dialog.page", "dialog.done"


def want(body: Callable[..., None], title: str, *args: Any, width: str = "small") -> None:
    """Open a dialog at the next run of the page: `body(*args)` draws what is in it. For a button's `on_click`."""
    st.session_state[_WANTED] = (body, title, args, width)
    st.session_state[_NEW] = True


def confirm(title: str, said: str, yes: str, what: Callable[[], object], done: str = "") -> None:
    """Ask before something that nothing can bring back: `title`, what is `said` of it, and a button `yes` that does it.

    For a button's `on_click`.
    """
    want(_question, title, said, yes, what, done)


def _question(said: str, yes: str, what: Callable[[], object], done: str) -> None:
    st.markdown(said)
    if st.button(yes, key="confirm-yes", type="primary", icon=":material/check:") and attempt(what, done):
        st.rerun()


def close() -> None:
    """Close it. Inside of a dialog `st.rerun()` has to follow."""
    st.session_state.pop(_WANTED, None)


def pass_on() -> None:
    """At the start of a fragment: where a dialog was asked for in it, the whole page runs and draws that."""
    if st.session_state.get(_NEW):
        st.rerun()


def begin(page: str) -> None:
    """At the start of the whole page: a dialog is not taken along to another one."""
    st.session_state.pop(_NEW, None)
    if st.session_state.get(_PAGE) != page:
        close()
    st.session_state[_PAGE] = page


def show() -> None:
    """At the end of the whole page: draw the dialog that is wanted, and say what the one before has done."""
    if done := st.session_state.pop(_DONE, None):
        st.toast(done, icon=":material/check:")
    if wanted := st.session_state.get(_WANTED):
        body, title, args, width = wanted
        st.dialog(title, width=width, on_dismiss=close)(body)(*args)


def tell(done: str) -> None:
    """Say it when the page is drawn anew: the rerun that comes now would take a toast away."""
    st.session_state[_DONE] = done


def attempt(what: Callable[[], object], done: str = "") -> bool:
    """Do it and close the dialog; or say in it why it can't be done, and stay."""
    if access.is_viewer():
        st.error(access.SENTENCE, icon=":material/visibility:")
        return False
    try:
        what()
    except (UserError, OSError) as error:
        st.error(sentence(error), icon=":material/error:")
        return False
    tell(done)
    live_runs().expire()
    close()
    return True
