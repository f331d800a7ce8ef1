"""Where everything lies, how full that disk is, and the trash."""

from __future__ import annotations

import shutil

import streamlit as st

from fluxcore.runs import default_outputs
from fluxcore.runs.trash import empty_trash, list_trash, restore_run
from fluxcore.units import gib

from .. import ask, dialogs, words
from ..live import live_runs


def show() -> None:
    """The card."""
    outputs = default_outputs()
    with st.container(border=True):
        st.subheader("Outputs folder", anchor=False)
        st.markdown(f"`{outputs}`")
        try:
            disk = shutil.disk_usage(outputs if outputs.is_dir() else outputs.parent)
        except OSError:
            st.warning("It can't be looked into.", icon=":material/warning:")
            return
        used = disk.total - disk.free
        st.progress(used / disk.total, text=f"{gib(disk.free)} free of {gib(disk.total)}")
        runs = live_runs().all()
        st.caption(
            f"{words.plural(len(runs), 'run')}. Another folder: start the app with `--outputs DIR`, or set "
            "`FLUXGYM_OUTPUTS`."
        )
        _trash()


def _trash() -> None:
    outputs = default_outputs()
    deleted = list_trash(outputs)
    if not deleted:
        return
    with st.expander(f"Trash: {words.plural(len(deleted), 'run')}", icon=":material/delete:"):
        for one in deleted:
            with st.container(horizontal=True, vertical_alignment="center"):
                st.markdown(words.escape(one.name), width="stretch")
                st.button(
                    "Bring back",
                    key=f"restore-{one.id}",
                    icon=":material/undo:",
                    type="tertiary",
                    on_click=ask.do,
                    args=(lambda id=one.id: restore_run(outputs, id), f"{one.name} is back"),
                )
        st.button(
            "Empty it for good",
            key="empty-trash",
            icon=":material/delete_forever:",
            on_click=dialogs.confirm,
            args=(
                "Empty the trash?",
                f"{words.plural(len(deleted), 'run')} with pictures, checkpoints, LoRA files and logs. Nothing can "
                "bring them back.",
                "Empty it for good",
                lambda: empty_trash(outputs),
                "The trash is empty",
            ),
        )
