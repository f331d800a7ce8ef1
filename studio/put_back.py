"""What was typed while the server was away: what another tab wrote meanwhile is told, and what is not shown is kept."""

from __future__ import annotations

from typing import Any

import streamlit as st

from fluxcore.config import RunConfig
from fluxcore.dataset import list_pictures

from . import dataset_view, form
from .drafts import Draft

_FOUND, _SAID = "typed.found", "typed.told"


def remember_found(draft: Draft) -> None:
    """Keep what this session found when it began: a browser may have been typing over something older."""
    if _FOUND not in st.session_state:
        captions = {picture.path.name: picture.caption or "" for picture in list_pictures(draft.folder.dataset)}
        st.session_state[_FOUND] = (dict(draft.values), captions)


def put_back(draft: Draft, typed: dict[str, Any]) -> None:
    """What an earlier session was not known to have kept. The browser puts it into the fields that it shows, and mostly
    it has come from there by now. Where it has not, for the field is folded away or Streamlit saw no change in it or
    took it for an older one, it is kept from here; the browser tells it until it is said to be kept."""
    values, captions = st.session_state[_FOUND]
    said: set[str] = st.session_state.setdefault(_SAID, set())
    fields = {form.key(name): name for name in RunConfig.model_fields if form.is_typed(name)}
    pictures = {dataset_view.caption_label(picture): picture for picture in list_pictures(draft.folder.dataset)}
    for key, entry in typed.items():
        if not isinstance(entry, dict) or not isinstance(text := entry.get("text"), str):
            continue
        own = [text, *(str(one) for one in (entry.get("base"), *(entry.get("past") or [])))]
        if name := fields.get(key):
            form.put_back(draft, name, text)
            if key not in said and not any(form.is_same(values[name], one) for one in own):
                form.say_overwritten(name, values[name])
        elif picture := pictures.get(key):
            found = captions.get(picture.path.name, "")
            dataset_view.put_back(draft, picture, text)
            if key not in said and found not in (" ".join(one.split()) for one in own):
                dataset_view.say_overwritten(picture, found)
        said.add(key)
