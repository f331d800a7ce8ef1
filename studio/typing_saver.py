"""Large text fields and numbers commit when they are left; a reload in mid-sentence would lose them. A script in the
page (`typing_saver.js`) commits at a pause. Of the fields that are meant alone: the listener outlives the page that
drew it, and in a form or a dialog what is half typed is nobody's wish before it is left, by Escape too.

It also remembers what was typed into the draft's fields until the server says that it is kept. What is left after a
while, and in a new session at once – a server that was started anew, a reload –, is told to the server (`put_back.py`),
with the texts that the fields had lately under the same hands: such a one is never another tab's.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

STALE_SECONDS = 5.0
SEEN_SECONDS = 4.0
MOST_ECHOES = 16
"""A browser that draws rarely hears of that many edits at a time."""
_KEY, _SESSION, _KEPT, _SAID = "typing-saver-script", "typed.session", "typed.kept", "typed.said"
_STALE, _OWN = "typed.stale", "typed.own"
PutBack = Callable[[dict[str, Any], bool], None]
"""Called with what is not known to be kept, and whether the session is a new one: name of the field → {"base": what
stood there before, "text": what was typed, or None where it was said to be kept meanwhile}."""

_script = st.components.v2.component(
    "fluxgym_typing_saver", js=Path(__file__).with_name("typing_saver.js").read_text("utf-8")
)


@dataclass
class _Said:
    stood: dict[str, Any]
    words: Callable[[list[str]], str]
    icon: str
    judged: bool = False
    """Whether the browser has said since what is its own."""
    shown: float = 0.0

    def others(self) -> list[str]:
        """The fields whose value is another tab's, as far as is known."""
        return [name for name, value in self.stood.items() if not is_own(name, value)]


def save_while_typing(draft: str | None = None, put_back: PutBack | None = None) -> None:
    """At the end of a page: those fields keep what is typed after a short pause; and what was to be said is said.

    At the end, because the browser tells what is left as soon as it has this: by then it knows of every field what the
    draft says, and reports nothing older as an edit.

    `draft`: whose fields they are, "" where nothing of it was written yet.
    """

    def told() -> None:
        typed = st.session_state[_KEY].get("typed")
        if put_back and isinstance(typed, dict):
            take_own(typed.get("own"))
            left = typed.get("left")
            put_back(left if isinstance(left, dict) else {}, bool(typed.get("isNew")))

    _toast()
    session = st.session_state.setdefault(_SESSION, secrets.token_hex(4))
    with st.container(key="typing-saver"):
        _script(
            key=_KEY,
            data={
                "session": session,
                "draft": draft,
                "kept": dict(st.session_state.get(_KEPT, {})),
                "asks": any(not one.judged for one in st.session_state[_SAID]),
            },
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


def take_own(own: Any) -> None:
    """What the browser says that its fields had under the person's hands, texts by name of the field."""
    texts = own.items() if isinstance(own, dict) else ()
    st.session_state[_OWN] = {name: {str(one) for one in some} for name, some in texts if isinstance(some, list)}
    said: list[_Said] = st.session_state.setdefault(_SAID, [])
    said[:] = [one for one in said if one.others()]
    for one in said:
        one.judged = True


def is_own(name: str, value: Any) -> bool:
    """Whether a field had this value under the hands of who sits before this window, as far as the browser said."""
    texts: set[str] = st.session_state.get(_OWN, {}).get(name, set())
    return any(reads_as(text, value) or " ".join(text.split()) == value for text in texts)  # so a caption is kept


def say_of_another(stood: dict[str, Any], words: Callable[[list[str]], str], icon: str = ":material/warning:") -> None:
    """A toast of what another tab wrote: at the page's end, for an edit that comes before would take it away unseen.

    `stood`: the other's value by name of the field; `words` make a sentence of the names that are another's indeed. A
    session that the browser has left behind writes too, and that is one's own: the browser is asked first.
    """
    said: list[_Said] = st.session_state.setdefault(_SAID, [])
    if all((one.stood, one.words([*stood])) != (stood, words([*stood])) for one in said):
        said.append(_Said(stood, words, icon))


def _toast() -> None:
    now = time.monotonic()
    said: list[_Said] = st.session_state.setdefault(_SAID, [])
    said[:] = [one for one in said if not one.shown or now - one.shown < SEEN_SECONDS]
    for one in (one for one in said if one.judged):
        one.shown = one.shown or now
        # A rerun takes it away: it is said in that too.
        st.toast(one.words(one.others()), icon=one.icon, duration="long")


def reads_as(text: str, value: Any) -> bool:
    """Whether a field that shows `text` has this value."""
    try:
        return bool(type(value)(text) == value)
    except (TypeError, ValueError):
        return False
