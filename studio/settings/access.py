"""Who may open these pages, and the link for those who only look."""

from __future__ import annotations

import os

import streamlit as st

from fluxcore.access import TOKEN_FILE, is_loopback, make_viewer_token, remove_viewer_token, viewer_token
from fluxcore.runs import default_outputs

from .. import access, ask, dialogs


def show() -> None:
    """The card."""
    address = str(st.get_option("server.address") or "")
    open_here = not os.environ.get("FLUXGYM_TOKEN") and is_loopback(address)
    with st.container(border=True):
        st.subheader("Access", anchor=False)
        if open_here:
            st.markdown(
                ":blue-badge[:material/home: this machine] The app listens on this machine alone; under any other name "
                "it asks for the token."
            )
        else:
            st.markdown(":green-badge[:material/lock: token] Pages, files and live updates ask for the token.")
        st.caption(
            f"The link with the token was printed when the app started; the token stands in `{TOKEN_FILE}` of the "
            "outputs folder. Delete that file and start the app again to lock everybody out. Who guesses wrong waits, "
            "each time twice as long."
        )
        _viewers()


def _viewers() -> None:
    outputs = default_outputs()
    token = viewer_token(outputs)
    st.markdown("**A link to look only**")
    if token is None:
        st.caption("Whoever has it sees every run, sample, chart and log and downloads the LoRAs, and changes nothing.")
        st.button(
            "Make a link",
            key="viewers-make",
            icon=":material/visibility:",
            on_click=ask.do,
            args=(lambda: make_viewer_token(outputs), "The link is made"),
        )
        return
    st.code(access.link(token, str(st.context.url or "")), language=None, wrap_lines=True)
    with st.container(horizontal=True):
        st.button(
            "Make another",
            key="viewers-make",
            icon=":material/refresh:",
            help="This one stops working.",
            on_click=dialogs.confirm,
            args=(
                "Make another link?",
                "The one that is there stops working: whoever has it looks on no more.",
                "Make another",
                lambda: make_viewer_token(outputs),
                "The old link is void; this is the new one",
            ),
        )
        st.button(
            "Take it back",
            key="viewers-remove",
            icon=":material/visibility_off:",
            type="tertiary",
            on_click=dialogs.confirm,
            args=(
                "Take the link back?",
                "Whoever has it looks on no more, and it will not work again.",
                "Take it back",
                lambda: remove_viewer_token(outputs),
                "Nobody looks on any more",
            ),
        )
