"""Base models: which there are, which of them lie on this machine, and the token for the gated ones."""

from __future__ import annotations

import streamlit as st

from fluxcore.errors import UserError
from fluxcore.models.hub_token import forget_token, keep_token, token_source
from fluxcore.models.locating import is_here
from fluxcore.models.registry import BaseModel, find_model, list_models

from .. import words


def show() -> None:
    """The card."""
    with st.container(border=True):
        st.subheader("Base models", anchor=False)
        try:
            models = list_models()
        except UserError as error:
            st.error(words.escape(str(error)), icon=":material/error:")
            models = []
        for model in models:
            st.markdown(f"{_where(model)} **{words.escape(model.title)}** :small[{words.escape(model.licence)}]")
        st.caption("What is not here yet is fetched when a run first needs it; more of them: `FLUXGYM_MODELS`.")
        _token()


@st.cache_data(ttl=30, show_spinner=False)
def _is_here(name: str) -> bool:
    return is_here(find_model(name))


def _where(model: BaseModel) -> str:
    if _is_here(model.name):
        return ":green-badge[:material/check: here]"
    if model.path is not None:
        return ":red-badge[:material/error: its folder is missing]"
    if model.gated and not token_source():
        return ":orange-badge[:material/lock: wants a token]"
    return ":gray-badge[:material/cloud_download: fetched when needed]"


def _token() -> None:
    source = token_source()
    said = {
        "environment": ":green-badge[:material/key: set] The Hub's token comes from the environment.",
        "file": ":green-badge[:material/key: kept] A token of the Hub is kept on this machine.",
    }.get(source, ":gray-badge[:material/key_off: none] No token of the Hub: gated models can't be fetched.")
    st.markdown(said)
    if source == "environment":
        return
    with (
        st.form("hub-token", border=False, clear_on_submit=True),
        st.container(horizontal=True, vertical_alignment="bottom"),
    ):
        given = st.text_input(
            "Another token" if source else "Token",
            type="password",
            key="hub-token-given",
            placeholder="hf_…",
            help="From huggingface.co/settings/tokens. It is kept where the Hub's own tools keep it, and never shown.",
            autocomplete="off",
        )
        kept = st.form_submit_button("Keep", icon=":material/key:")
    if kept:
        try:
            keep_token(given)
            st.rerun()
        except UserError as error:
            st.error(words.escape(str(error)), icon=":material/error:")
    if source == "file":
        st.button("Forget the token", key="hub-token-forget", type="tertiary", on_click=_forget)


def _forget() -> None:
    try:
        forget_token()
    except UserError as error:
        st.toast(str(error), icon=":material/error:", duration="long")
