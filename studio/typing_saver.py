"""Large text fields and numbers commit when they are left; a reload in mid-sentence would lose them. A script in the
page (`typing_saver.js`) commits at a pause. Of the fields that are meant alone: the listener outlives the page that
drew it, and in a form or a dialog what is half typed is nobody's wish yet.

It also remembers what was typed into the draft's fields until the server says that it is kept. A new session – a server
that was started anew, a reload – is told of what is left, with what stood in the field before (`put_back.py`).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st

STALE_SECONDS = 5.0
SEEN_SECONDS = 4.0
MOST_ECHOES = 16
"""A browser that draws rarely hears of that many edits at a time."""
_KEY, _SESSION, _KEPT, _SAID = "typing-saver-script", "typed.session", "typed.kept", "typed.said"
_STALE = "typed.stale"

_script = st.components.v2.component(
    "fluxgym_typing_saver", js=Path(__file__).with_name("typing_saver.js").read_text("utf-8")
)


def save_while_typing(draft: str | None = None, put_back: Callable[[dict[str, Any]], None] | None = None) -> None:
    """At the end of a page: those fields keep what is typed after a short pause; and what was to be said is said.

    At the end, because the browser tells what is left as soon as it has this: by then it knows of every field what the
    draft says, and reports nothing older as an edit.

    `draft`: whose fields they are, "" where nothing of it was written yet. `put_back` is called with what an earlier
    session was not known to have kept: name of the field → {"base": what stood there, "past": what did meanwhile,
    "text": what was typed, "shown": whether the browser shows the field}.
    """

    def told() -> None:
        left = st.session_state[_KEY].get("typed")
        if put_back and isinstance(left, dict):
            put_back(left)

    said: dict[str, float] = st.session_state.setdefault(_SAID, {})
    for text, shown in list(said.items()):
        if shown and time.monotonic() - shown > SEEN_SECONDS:
            del said[text]
            continue
        st.toast(text, icon=":material/warning:", duration="long")  # a rerun takes it away: it is said in that too
        said[text] = shown or time.monotonic()
    session = st.session_state.setdefault(_SESSION, secrets.token_hex(4))
    with st.container(key="typing-saver"):
        _script(
            key=_KEY,
            data={"session": session, "draft": draft, "kept": dict(st.session_state.get(_KEPT, {}))},
            on_typed_change=told,
        )


def is_kept(name: str, value: Any) -> None:
    """What the browser sent for a field is on the disk: it need not remember it any more."""
    echoes: dict[str, Any] = st.session_state.setdefault(_KEPT, {})
    echoes.pop(name, None)
    echoes[name] = value
    while len(echoes) > MOST_ECHOES:
        del echoes[next(iter(echoes))]


def was_put_back(widget: str, stood: Any) -> None:
    """A widget's value was put back over what `stood` there: a message that the browser had under way may still say
    that, and is no edit."""
    st.session_state.setdefault(_STALE, {})[widget] = (stood, time.monotonic() + STALE_SECONDS)


def is_stale(widget: str) -> bool:
    """Whether what the browser says of a widget, the first time after it was put back, is of before that."""
    stood, until = st.session_state.get(_STALE, {}).pop(widget, (None, 0.0))
    return time.monotonic() < until and bool(st.session_state[widget] == stood)


def say_at_the_end(text: str) -> None:
    """A toast when the page has been drawn: an edit that comes before would take it away unseen."""
    st.session_state.setdefault(_SAID, {})[text] = 0.0
