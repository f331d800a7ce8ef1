"""The drafts that this session had before the one that it has, the newest last: each can be had back."""

from __future__ import annotations

import streamlit as st

from fluxcore.dataset import list_pictures
from fluxcore.runs import default_outputs

from .drafts import Draft

_BEFORE = "draft.before"


def leave(draft: Draft | None) -> None:
    """Another draft takes the place of this one. A form just emptied is not kept: it would come back by itself when the
    next one has become a run."""
    if draft is None or not draft.exists:
        return
    draft.refresh()  # another tab may have begun something in it
    if draft.touched or list_pictures(draft.folder.dataset):
        st.session_state[_BEFORE] = [*_kept(draft.id), draft.id]
    else:
        draft.discard()


def last(now: Draft) -> str | None:
    """The id of the one to go back to from this one, if there is any."""
    kept = _kept(now.id)
    return kept[-1] if kept else None


def go_back(now: Draft | None, draft_id: str) -> None:
    """That one is had again; what was there instead waits behind the others, so that going on leads to each in turn."""
    leave(now)
    others = [other for other in _kept(draft_id) if now is None or other != now.id]
    left = [now.id] if now is not None and now.exists else []
    st.session_state[_BEFORE] = [*left, *others]


def _kept(but: str = "") -> list[str]:
    kept: list[str] = st.session_state.get(_BEFORE, [])
    return [one for one in kept if one != but and Draft(default_outputs(), one).exists]
