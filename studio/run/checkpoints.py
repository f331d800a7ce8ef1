"""Checkpoints: states to resume from and LoRA files to take along; whole or not, and a careful way to delete them."""

from __future__ import annotations

import streamlit as st

from fluxcore.errors import UserError
from fluxcore.runs import best_weights, default_outputs, list_checkpoints, resume_choice
from fluxcore.runs.requests import planned_steps
from fluxcore.runs.trash import delete_checkpoint

from .. import ask, dialogs, look, words
from ..files import run_url, zip_url
from ..live import LiveRun, live_runs

MANY = 6
KINDS = {"All": "", "LoRA files": "weights", "States to resume from": "state"}


def show(run: LiveRun) -> None:
    """The tab: every state and weights file; what can be resumed from, downloaded, deleted."""
    found = list_checkpoints(run.folder, run.state)
    if not found:
        every = run.state.config.get("save_every_n_epochs")
        st.caption(
            f"None yet; one is kept every {words.plural(int(every), 'epoch')} and at the end."
            if every
            else "None yet; the LoRA is kept at the end."
        )
        return
    chosen, best = resume_choice(run.folder, run.state), best_weights(run.folder, run.state)
    total = sum(item.bytes for item in found)
    st.caption(f"{words.plural(len(found), 'file')}, {words.size(total)} together.")
    planned = _planned(run) if run.state.attempts and not run.state.is_busy else 0
    if len(found) > MANY:
        kinds = {name: kind for name, kind in KINDS.items() if not kind or any(one.kind == kind for one in found)}
        shown = st.segmented_control(
            "Show", list(kinds), default="All", required=True, key="checkpoints-kind", label_visibility="collapsed"
        )
        found = [item for item in found if KINDS[shown or "All"] in ("", item.kind)]
    for item in reversed(found):
        left = item.step is not None and item.step < planned
        with st.container(border=True, horizontal=True, vertical_alignment="center", key=f"checkpoint-{item.name}"):
            with st.container(width="stretch", gap="xsmall"):
                kind = "state to resume from" if item.kind == "state" else "LoRA file"
                good = (
                    ":green-badge[:material/check: complete]"
                    if item.complete
                    else ":red-badge[:material/error: incomplete]"
                )
                star = " :violet-badge[:material/star: best]" if best and best.path == item.name else ""
                st.markdown(f"**{words.escape(item.name)}** &nbsp; {good}{star}")
                st.html(
                    look.facts(
                        [
                            ("", kind),
                            ("step", f"{item.step:,}" if item.step is not None else words.UNKNOWN),
                            ("epoch", str(item.epoch or "")),
                            ("size", words.size(item.bytes)),
                            ("held-out loss", held_out(run, item.name)),
                            ("", item.problem),
                            ("", "Resume takes this one" if chosen and chosen.name == item.name and left else ""),
                        ]
                    )
                )
            if item.complete:
                st.link_button(
                    "Download",
                    run_url(run.folder, item.name) if item.kind == "weights" else zip_url(run.folder, item.name),
                    key=f"get-{item.name}",
                    icon=":material/download:",
                    help=None if item.kind == "weights" else "As a zip; unpacked into a run's folder it can be resumed",
                )
            if item.kind == "state" and item.complete and left:
                st.button(
                    "Resume from here",
                    key=f"from-{item.name}",
                    icon=":material/play_arrow:",
                    on_click=ask.resume,
                    args=(run.name, item.name),
                )
            if not run.is_busy:
                st.button(
                    "",
                    key=f"delete-{item.name}",
                    icon=":material/delete:",
                    type="tertiary",
                    help=f"Delete {words.escape(item.name)}",
                    on_click=dialogs.want,
                    args=(_delete, "Delete it for good?", run.name, item.name),
                )


def held_out(run: LiveRun, name: str) -> str:
    """What a LoRA file reached on the held-out pictures; "" where that was not measured."""
    saved = run.state.checkpoints.get(name)
    return words.loss(saved.validation_loss) if saved and saved.validation_loss is not None else ""


def _delete(name: str, file: str) -> None:
    run = live_runs().get(name)
    found = list_checkpoints(run.folder, run.state) if run else []
    item = next((one for one in found if one.name == file), None)
    if run is None or item is None:
        st.caption("It is gone.")
        return
    st.markdown(f"**{words.escape(file)}**, {words.size(item.bytes)}. Nothing can bring it back.")
    chosen = resume_choice(run.folder, run.state)
    states = [one for one in found if one.kind == "state" and one.complete]
    if item.kind == "weights" and file == run.state.weights:
        st.warning("It is the finished LoRA of this run.", icon=":material/warning:")
    elif (best := best_weights(run.folder, run.state)) and best.path == file:
        st.warning("It is the best LoRA of this run, by its loss on held-out pictures.", icon=":material/warning:")
    elif len(states) == 1 and states[0].name == file:
        st.warning("It is the only state: without it this run can't be resumed.", icon=":material/warning:")
    elif chosen and chosen.name == file:
        st.warning("Resume takes this one; without it an earlier one.", icon=":material/warning:")
    if st.button("Delete for good", key="checkpoint-delete-yes", type="primary", icon=":material/delete:") and (
        dialogs.attempt(lambda: delete_checkpoint(default_outputs(), name, file), f"{file} is deleted")
    ):
        st.rerun()


def _planned(run: LiveRun) -> int:
    """The steps that its config means now; 0 where nothing can be said, so that no resume is offered."""
    try:
        return planned_steps(run.folder, run.state)
    except (UserError, OSError):
        return 0
