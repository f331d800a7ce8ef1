"""Captions of all pictures at a time: find and replace, the trigger word in front. Each change can be undone."""

from __future__ import annotations

import re
from collections.abc import Callable

import streamlit as st

from fluxcore.dataset import Picture, list_pictures, write_caption

from . import words
from .drafts import Draft

BEFORE = "captions.before"
"""In the session: the captions before the last change of several, to go back to."""


def tools(draft: Draft, pictures: list[Picture]) -> None:
    """The controls, and what they would change."""
    trigger = str(draft.values["concept_sentence"]).strip()
    find = st.text_input("Find", key="captions-find", placeholder="a photo of", live=True)
    replacement = st.text_input("Replace with", key="captions-replace", placeholder="nothing: it is taken out")
    case = st.checkbox("Match upper and lower case", key="captions-case")
    hits = sum(
        replaced(picture.caption or "", find, replacement, case) != (picture.caption or "") for picture in pictures
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.button(
            f"Replace in {words.plural(hits, 'caption')}" if find else "Replace",
            key="captions-do-replace",
            icon=":material/find_replace:",
            disabled=not hits,
            on_click=_replace,
            args=(draft,),
        )
        bare = sum(not has_trigger(picture.caption, trigger) for picture in pictures) if trigger else 0
        st.button(
            f"Put “{words.escape(trigger)}” in front" if trigger else "Put the trigger word in front",
            key="captions-trigger",
            icon=":material/first_page:",
            disabled=not bare,
            help=f"In {words.plural(bare, 'caption')} that have it not yet."
            if trigger
            else "Give a trigger word first.",
            on_click=_change,
            args=(draft, lambda text: text if has_trigger(text, trigger) else with_trigger(text, trigger)),
        )
    if (before := st.session_state.get(BEFORE)) and before[0] == draft.id:
        st.button(
            f"Undo the change of {words.plural(len(before[1]), 'caption')}",
            key="captions-undo",
            icon=":material/undo:",
            type="tertiary",
            on_click=_undo,
            args=(draft,),
        )


def replaced(caption: str, find: str | None, replacement: str | None, case: bool) -> str:
    """`caption` with every `find` replaced, as plain text."""
    if not find:
        return caption
    pattern = re.compile(re.escape(find), 0 if case else re.IGNORECASE)
    return pattern.sub(lambda _: replacement or "", caption)


def has_trigger(caption: str | None, trigger: str) -> bool:
    """Whether the trigger word stands somewhere in a caption, as a word."""
    return bool(re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", caption or "", re.IGNORECASE))


def with_trigger(caption: str | None, trigger: str) -> str:
    """`p3t, a cat on a sofa`."""
    return f"{trigger}, {caption}" if caption else trigger


def _replace(draft: Draft) -> None:
    find, replacement = st.session_state.get("captions-find"), st.session_state.get("captions-replace")
    case = bool(st.session_state.get("captions-case"))
    _change(draft, lambda text: replaced(text, find, replacement, case))


def _change(draft: Draft, change: Callable[[str], str]) -> None:
    before: dict[str, str] = {}
    try:
        for picture in list_pictures(draft.folder.dataset):
            old = picture.caption or ""
            if (new := change(old)) != old:
                write_caption(picture.path, new)
                before[picture.path.name] = old
    except OSError as error:
        st.toast(f"Not every caption can be kept ({error.strerror})", icon=":material/error:", duration="long")
    if before:
        st.session_state[BEFORE] = (draft.id, before)
        st.toast(f"{words.plural(len(before), 'caption')} changed", icon=":material/check:")


def _undo(draft: Draft) -> None:
    _, before = st.session_state.pop(BEFORE)
    try:
        for name, text in before.items():
            if (draft.folder.dataset / name).exists():
                write_caption(draft.folder.dataset / name, text)
    except OSError as error:
        st.toast(f"The captions can't be kept ({error.strerror})", icon=":material/error:", duration="long")
