"""Publishing a LoRA on the Hugging Face Hub: the question, how far it is, and where it stands."""

from __future__ import annotations

import streamlit as st

from fluxcore.jobs import Job
from fluxcore.models.hub_token import token_source
from fluxcore.models.registry import ModelNotFound, find_model
from fluxcore.publishing import (
    NO_TOKEN,
    TOKENS,
    Wish,
    forget_publishing,
    publish,
    publishable,
    publishing,
    stop_publishing,
)
from fluxcore.runs import default_outputs

from .. import access, ask, dialogs, nav, words
from ..live import LiveRun, live_runs
from .checkpoints import held_out


def question(name: str) -> None:
    """What is sent where; for a dialog."""
    run, outputs = live_runs().get(name), default_outputs()
    files = publishable(outputs, name) if run else []
    if run is None or not files:
        st.caption("It has no LoRA file that could be published.")
        return
    if (job := publishing(outputs, name)) and job.state == "running":
        st.caption("It is being sent already.")
        return
    if not token_source():
        said = words.escape(f"{NO_TOKEN[0].upper()}{NO_TOKEN[1:]}.")
        st.markdown(said.replace(words.escape(TOKENS), f"[{TOKENS}](https://{TOKENS})"))
        st.caption("On the page Settings it is asked for below the base models.")
        st.page_link(nav.page("settings"), label="To Settings", icon=":material/settings:")
        return

    def told(file: str) -> str:
        saved, loss = run.state.checkpoints.get(file), held_out(run, file)
        step = f", step {saved.step:,}" if saved else ""
        return f"{file}{step}{f', held-out loss {loss}' if loss else ''}"

    before = run.state.published or {}
    with st.form("publish-form", border=False):
        file = st.selectbox("LoRA file", files, format_func=told, key="publish-file")
        repo = st.text_input(
            "Repository",
            str(before.get("repo") or name),
            key="publish-repo",
            help="A name, then it is your account's, or an organisation's as owner/name. What is there already gets a "
            "new version.",
        )
        samples = st.toggle("With the newest picture of each prompt", True, key="publish-samples")
        public = st.toggle(
            "Public",
            not before.get("private", True),
            key="publish-public",
            help="Off: only the account, or its organisation, sees it.",
        )
        st.caption(_licence(run))
        sent = st.form_submit_button("Publish", type="primary", icon=":material/cloud_upload:")
    if sent:
        wish = Wish(repo.strip(), str(file), public=public, samples=samples)

        if dialogs.attempt(
            lambda: publish(outputs, name, wish, "app"), f"{file} is being sent; you may leave this page"
        ):
            st.rerun()


def _licence(run: LiveRun) -> str:
    try:
        model = find_model(str(run.state.config.get("base_model") or ""))
    except ModelNotFound:
        return "The card names no licence: its base model is not in the list any more."
    return words.escape(f"Its licence is that of {model.title}: {model.licence}.")


def show(run: LiveRun) -> None:
    """On the run's page: a publishing under way, or failed, or where the LoRA stands."""
    job = publishing(default_outputs(), run.name)
    if job is not None and job.state == "running":
        st.fragment(_under_way, run_every=1.0, key="publishing")(run.name)
        return
    if job is not None and job.state == "failed" and not access.is_viewer():
        with st.container(horizontal=True, vertical_alignment="center", key="publish-failed"):
            st.error(f"Publishing: {words.escape(job.message)}", icon=":material/cloud_off:", width="stretch")
            st.button(
                "Understood",
                key="publish-understood",
                type="tertiary",
                on_click=ask.do,
                args=(lambda: forget_publishing(default_outputs(), run.name), ""),
            )
    if where := run.state.published:
        sees = "private" if where.get("private") else "public"
        url = str(where.get("url") or "")
        st.caption(
            f":material/cloud_done: {words.escape(str(where.get('file')))} is on the Hugging Face Hub as "
            f"[{words.escape(str(where.get('repo')))}]({url}), {sees}; {words.ago(str(where['ts']))}."
        )


def _under_way(name: str) -> None:
    job = publishing(default_outputs(), name)
    if job is None or job.state != "running":
        live_runs().expire()
        st.rerun()
    with st.container(horizontal=True, vertical_alignment="center"):
        st.progress(job.share, text=_words(job))
        st.button(
            "Stop",
            key="publish-stop",
            icon=":material/stop:",
            help="Nothing of it will be in the repository.",
            on_click=ask.do,
            args=(lambda: stop_publishing(default_outputs(), name), "It stops"),
        )


def _words(job: Job) -> str:
    return f"Publishing: file {job.done + 1:.0f} of {job.total:.0f}" if job.total else "Publishing: asking the Hub"
