"""What was typed and not known to be kept, as while the server was away, is kept; what another tab wrote is told."""

from __future__ import annotations

from typing import Any

import streamlit as st

from fluxcore.config import RunConfig
from fluxcore.dataset import list_pictures

from . import dataset_view, form, typing_saver
from .drafts import Draft

_FOUND, _SAID = "typed.found", "typed.told"


def remember_found(draft: Draft) -> None:
    """Keep the captions that this session found when it began: a browser may have been typing over something older."""
    if _FOUND not in st.session_state:
        pictures = list_pictures(draft.folder.dataset)
        st.session_state[_FOUND] = {picture.path.name: picture.caption or "" for picture in pictures}


def put_back(draft: Draft, left: dict[str, Any], is_new: bool) -> None:
    """Keep what the browser has typed and was not told to be kept (see `typing_saver.PutBack`). Mostly it has come from
    the fields by now. Where it has not, for the field is folded away, or Streamlit saw no change in it or took it for
    an older one, it is kept from here. What can't be kept is said to be, so that the browser forgets it."""
    if not left or draft.gone:  # another tab made a run of it
        return
    said: set[str] = st.session_state.setdefault(_SAID, set())
    fields = {form.key(name): name for name in RunConfig.model_fields if form.is_typed(name)}
    pictures = {dataset_view.caption_label(picture): picture for picture in list_pictures(draft.folder.dataset)}
    history = draft.history() if is_new else []
    for key, entry in left.items():
        if not isinstance(entry, dict):
            continue
        text = entry.get("text")
        tells = is_new and key not in said  # later on an edit itself finds what another tab has written
        said.add(key)
        if name := fields.get(key):
            others = _others(history, name, str(entry.get("base"))) if tells else []
            if isinstance(text, str):
                form.put_back(draft, name, text)
            if others:
                form.say_overwritten(name, others[0])
        elif picture := pictures.get(key):
            if isinstance(text, str):
                dataset_view.put_back(draft, picture, text)
            found = st.session_state[_FOUND].get(picture.path.name, "")
            if tells and not typing_saver.is_own(key, found):
                dataset_view.say_overwritten(picture, found)
        else:
            typing_saver.is_kept(key, text)


def _others(history: list[dict[str, Any]], name: str, base: str) -> list[Any]:
    """What other tabs set a field to since it showed `base`, the newest first. A session of this window that the
    browser never heard of may have written over it already: all that was kept counts."""
    others: list[Any] = []
    for value in (values[name] for values in reversed(history) if name in values):
        if typing_saver.reads_as(base, value):
            break
        if not typing_saver.is_own(form.key(name), value):
            others.append(value)
    return others
