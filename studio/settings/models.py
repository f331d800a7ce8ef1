"""Base models: which there are, which of them lie on this machine, their downloads, and the token for gated ones."""

from __future__ import annotations

import streamlit as st

from fluxcore.errors import UserError
from fluxcore.jobs import Job, forget_job, stop_job
from fluxcore.models.fetch import fetch_model, fetching, job_name
from fluxcore.models.hub_token import forget_token, keep_token, token_source
from fluxcore.models.locating import is_here
from fluxcore.models.registry import BaseModel, find_model, list_models
from fluxcore.runs import default_outputs

from .. import ask, dialogs, words


def show() -> None:
    """The card."""
    with st.container(border=True):
        st.subheader("Base models", anchor=False)
        try:
            models = list_models()
        except UserError as error:
            st.error(words.escape(str(error)), icon=":material/error:")
            models = []
        busy = any((job := fetching(default_outputs(), model.name)) and job.state == "running" for model in models)
        st.fragment(_list, run_every=1.0 if busy else None, key="models")(models, busy)
        st.caption(
            "What is not here yet is fetched when a run first needs it; a download that breaks off goes on where it "
            "stopped. More models: `models.toml` in the outputs folder, or the file that `FLUXGYM_MODELS` names."
        )
        _token()


def _list(models: list[BaseModel], busy: bool) -> None:
    running = False
    for model in models:
        job = fetching(default_outputs(), model.name)
        running |= job is not None and job.state == "running"
        named, button = st.columns([3.4, 1], vertical_alignment="center", gap="small")
        named.markdown(f"{_where(model, job)} **{words.escape(model.title)}** :small[{words.escape(model.licence)}]")
        with button:
            _button(model, job)
        if job is not None and job.state == "running":
            done = f"{words.size(job.done)} of {words.size(job.total)}" if job.total else "asking the Hub"
            st.progress(job.share, text=done)
        elif job is not None and job.state == "failed":
            st.caption(f":red[:material/error: {words.escape(job.message)}]")
    if running != busy:  # the pace of a fragment is set where it is called
        _is_here.clear()
        st.rerun()


def _button(model: BaseModel, job: Job | None) -> None:
    if job is not None and job.state == "running":
        st.button(
            "Stop",
            key=f"model-stop-{model.name}",
            icon=":material/stop:",
            type="tertiary",
            help="What has come stays; the next download goes on with it.",
            on_click=ask.do,
            args=(lambda: stop_job(default_outputs(), job_name(model.name)), "It stops"),
        )
    elif model.path is None and not _is_here(model.name):
        st.button(
            "Download",
            key=f"model-fetch-{model.name}",
            icon=":material/download:",
            type="tertiary",
            on_click=_fetch,
            args=(model.name,),
        )


def _fetch(name: str) -> None:
    def begin() -> None:
        forget_job(default_outputs(), job_name(name))
        fetch_model(default_outputs(), name)

    ask.do(begin, f"{name} is being fetched; you may leave this page")


@st.cache_data(ttl=30, show_spinner=False)
def _is_here(name: str) -> bool:
    return is_here(find_model(name))


def _where(model: BaseModel, job: Job | None) -> str:
    if job is not None and job.state == "running":
        return ":blue-badge[:material/downloading: downloading]"
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
        st.button(
            "Forget the token",
            key="hub-token-forget",
            type="tertiary",
            on_click=dialogs.confirm,
            args=(
                "Forget the token?",
                "Gated models can't be fetched without one, and this one is shown nowhere. What else on this machine "
                "uses the Hub loses it too.",
                "Forget it",
                forget_token,
                "The token is forgotten",
            ),
        )
