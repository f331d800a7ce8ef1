"""Captions by Florence-2 for a draft's pictures: the buttons, and how far it is."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from fluxcore.captioning import caption_pictures, captioner
from fluxcore.dataset import Picture, list_pictures
from fluxcore.jobs import Job, forget_job, read_job, stop_job

from . import ask, captions, words
from .drafts import Draft


def job_name(draft: Draft) -> str:
    """The job that captions this draft's pictures."""
    return f"caption-{draft.id}"


def is_running(draft: Draft) -> bool:
    """Whether captions of this draft are being written."""
    job = read_job(*_of(draft))
    return job is not None and job.state == "running"


def tools(draft: Draft, pictures: list[Picture], running: bool) -> None:
    """The buttons."""
    st.divider()
    bare = sum(picture.caption is None for picture in pictures)
    with st.container(horizontal=True):
        st.button(
            f"Caption {words.plural(bare, 'picture')}" if bare else "Every picture has a caption",
            key="caption-bare",
            icon=":material/auto_fix_high:",
            disabled=not bare or running,
            help=f"{Path(captioner()).name} writes what it sees, with the trigger word in front. Its 1.5 GB are "
            "fetched the first time; without a GPU a picture takes some seconds.",
            on_click=_begin,
            args=(draft, False),
        )
        st.button(
            "Caption all anew",
            key="caption-all",
            type="tertiary",
            disabled=running,
            help="Also those that have a caption: it is replaced. It can be undone.",
            on_click=_begin,
            args=(draft, True),
        )


def progress(draft: Draft) -> None:
    """How far it is, while it runs, and what became of it."""
    job = read_job(draft.outputs, job_name(draft))
    if job is not None and job.state == "running":
        _live(draft)
    elif job is not None:
        _ended(draft, job)


@st.fragment(run_every=1.0)
def _live(draft: Draft) -> None:
    job = read_job(draft.outputs, job_name(draft))
    if job is None or job.state != "running":
        st.rerun()  # the captions are there: the whole page shows them
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.progress(job.share, text=_words(job))
        st.button("Stop", key="caption-stop", icon=":material/stop:", on_click=_stop, args=(draft,))
    if job.unit == "pictures" and st.session_state.get("captioner.done") != job.done:
        st.session_state["captioner.done"] = job.done
        st.rerun()


def _words(job: Job) -> str:
    if job.unit == "bytes" and job.total:
        return f"Fetching {Path(captioner()).name}: {words.size(job.done)} of {words.size(job.total)}"
    if job.unit == "pictures" and job.total:
        return f"Captioning: {int(job.done)} of {int(job.total)}"
    return "Loading the model"


def _ended(draft: Draft, job: Job) -> None:
    if job.state == "failed":
        st.error(f"No captions were written: {words.escape(job.message)}", icon=":material/error:")
    else:
        done = words.plural(int(job.done), "caption") if job.unit == "pictures" else "nothing yet"
        st.caption(f"Captioning {'is done' if job.state == 'done' else 'was stopped'}: {done}.")
    st.button("Understood", key="caption-understood", type="tertiary", on_click=forget_job, args=_of(draft))


def _begin(draft: Draft, every: bool) -> None:
    trigger = str(draft.values["concept_sentence"]).strip()

    def begin() -> None:
        if is_running(draft):  # another tab began it, and kept what was before
            return
        captions.keep_before(draft, {one.path.name: one.caption or "" for one in list_pictures(draft.dataset)})
        caption_pictures(*_of(draft), draft.dataset, trigger, all_pictures=every)

    ask.tried(begin)


def _stop(draft: Draft) -> None:
    stop_job(*_of(draft))


def _of(draft: Draft) -> tuple[Path, str]:
    return draft.outputs, job_name(draft)
