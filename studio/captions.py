"""Captions of all pictures at a time: find and replace, the trigger word in front. Each change can be undone."""

from __future__ import annotations

import re
from collections.abc import Callable

import orjson
import streamlit as st

from fluxcore.atomic import write_atomic
from fluxcore.dataset import Picture, list_pictures, write_caption

from . import words
from .drafts import Draft
from .prompts import former_trigger, put_words, word

BEFORE = "captions-before.json"
"""In the draft's folder: the captions before the last change of several, to go back to. A reload loses no way back."""


def tools(draft: Draft, pictures: list[Picture], busy: bool) -> None:
    """The controls, and what they would change. `busy`: a model writes captions, and is to be left alone."""
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
            disabled=busy or not hits,
            on_click=_replace,
            args=(draft,),
        )
        bare = sum(not has_trigger(picture.caption, trigger) for picture in pictures) if trigger else 0
        former = former_trigger(draft, [picture.caption or "" for picture in pictures])
        st.button(
            put_words(trigger, former, "in front"),
            key="captions-trigger",
            icon=":material/first_page:",
            disabled=busy or not bare,
            help=f"In {words.plural(bare, 'caption')} that have it not yet."
            if trigger
            else "Give a trigger word first.",
            on_click=_change,
            args=(draft, lambda text: with_trigger(text, trigger, former)),
        )
    if changed := _changed(draft, pictures):
        st.button(
            f"Undo the change of {words.plural(len(changed), 'caption')}",
            key="captions-undo",
            icon=":material/undo:",
            type="tertiary",
            disabled=busy,
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
    return bool(word(trigger).search(caption or ""))


def with_trigger(caption: str | None, trigger: str, former: str) -> str:
    """`p3t, a cat on a sofa`, or in the place of the former word; as it is where the word stands in it."""
    if not caption:
        return trigger
    if has_trigger(caption, trigger):
        return caption
    if former and has_trigger(caption, former):
        return word(former).sub(lambda _: trigger, caption)
    return f"{trigger}, {caption}"


def _replace(draft: Draft) -> None:
    find, replacement = st.session_state.get("captions-find"), st.session_state.get("captions-replace")
    case = bool(st.session_state.get("captions-case"))
    _change(draft, lambda text: replaced(text, find, replacement, case))


def keep_before(draft: Draft, before: dict[str, str]) -> None:
    """Keep the captions as they are, by picture, ahead of a change of them. Raises OSError."""
    write_atomic(draft.folder.path / BEFORE, orjson.dumps(before))


def _before(draft: Draft) -> dict[str, str]:
    try:
        return {str(name): str(text) for name, text in orjson.loads((draft.folder.path / BEFORE).read_bytes()).items()}
    except (OSError, ValueError, AttributeError):
        return {}


def _changed(draft: Draft, pictures: list[Picture]) -> dict[str, str]:
    """The captions before, of the pictures that are there and have another one now."""
    now = {picture.path.name: picture.caption or "" for picture in pictures}
    return {name: text for name, text in _before(draft).items() if now.get(name, text) != text}


def _change(draft: Draft, change: Callable[[str], str]) -> None:
    captions = {picture.path.name: picture.caption or "" for picture in list_pictures(draft.folder.dataset)}
    before = {name: text for name, text in captions.items() if change(text) != text}

    def write() -> None:
        keep_before(draft, before)
        _write(draft, {name: change(text) for name, text in before.items()})

    if before and _kept(write):
        st.toast(f"{words.plural(len(before), 'caption')} changed", icon=":material/check:")


def _undo(draft: Draft) -> None:
    def write() -> None:
        _write(draft, _changed(draft, list_pictures(draft.folder.dataset)))
        keep_before(draft, {})

    _kept(write)


def _write(draft: Draft, captions: dict[str, str]) -> None:
    for name, text in captions.items():
        write_caption(draft.folder.dataset / name, text)


def _kept(write: Callable[[], None]) -> bool:
    """Do it; a toast says so where the captions can't be kept. Whether they were."""
    try:
        write()
    except OSError as error:
        text = f"Not every caption can be kept ({error.strerror}): make room"
        st.toast(text, icon=":material/error:", duration="long")
        return False
    return True
