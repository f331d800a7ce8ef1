"""Versions, and the file to attach to a bug report."""

from __future__ import annotations

import streamlit as st

from fluxcore.runs import default_outputs

from .. import diagnostics, look
from ..live import live_runs


def show() -> None:
    """The card."""
    with st.container(border=True):
        st.subheader("Versions", anchor=False)
        st.html(look.facts(list(diagnostics.versions().items())))
        st.download_button(
            "Diagnostics file",
            lambda: diagnostics.make(default_outputs(), live_runs().all()),
            file_name="fluxgym-diagnostics.zip",
            mime="application/zip",
            key="diagnostics",
            icon=":material/bug_report:",
            on_click="ignore",
            help="Versions, the machine, the newest runs' states and the ends of their logs. Tokens, passwords and "
            "addresses are blacked out; pictures, captions and prompts are not in it.",
        )
        st.caption("Bugs: attach the file, after a look into it.")
