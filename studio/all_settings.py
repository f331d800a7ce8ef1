"""Every other setting of a draft, by group, searchable, the changed ones marked."""

from __future__ import annotations

from typing import Any

import streamlit as st

from fluxcore.config import GROUPS, RunConfig
from fluxcore.errors import UserError

from . import form, words
from .drafts import Draft
from .labels import label_of


def all_settings(draft: Draft, errors: dict[str, str], usual: dict[str, Any]) -> None:
    """Every other setting by group, narrowed by a word or to what was changed; `usual`: see `Draft.usual`."""
    wanted = st.text_input(
        "Find a setting",
        key="form-find",
        placeholder="Find a setting: rank, seed, stall …",
        live=True,
        type="search",
        label_visibility="collapsed",
    )
    changed = draft.changed()
    only = st.toggle(f"Changed only ({len(changed)})", key="form-changed", disabled=not changed) and bool(changed)
    found = False
    for group, title in GROUPS.items():
        names = [
            name
            for name, info in RunConfig.model_fields.items()
            if form.group_of(name) == group
            and name not in (*form.PROMINENT, *form.SAMPLES, *form.START, *form.ELSEWHERE)
            and (wanted or "").lower() in f"{name} {label_of(name)} {info.description}".lower()
            and (not only or name in changed or name in errors)
        ]
        if not names:
            continue
        found = True
        st.markdown(f"**{title}**")
        for name in names:
            form.field(name, draft, errors, usual)
            if name in changed:
                back = "yes" if changed[name] is True else "no" if changed[name] is False else changed[name]
                with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
                    st.markdown(":violet-badge[:material/edit: changed]", width="content")
                    st.button(
                        f"back to {words.escape(str(back)) or 'empty'}",
                        key=f"usual-{name}",
                        type="tertiary",
                        help=f"{label_of(name)} as the defaults, the memory preset and the base model have it",
                        on_click=_back_to_usual,
                        args=(draft, name),
                    )
    if not found:
        st.caption("No setting has that word.")


def _back_to_usual(draft: Draft, name: str) -> None:
    usual = draft.changed().get(name)
    try:
        draft.edit({name: usual}, touched=draft.touched - {name}, forget=True)
        form.show(draft, name)
    except UserError as error:
        st.session_state["train.problem"] = str(error)
