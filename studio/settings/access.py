"""Who may open these pages."""

from __future__ import annotations

import os

import streamlit as st

from fluxcore.access import TOKEN_FILE, is_loopback


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
            "outputs folder. Delete that file and start the app again to lock everybody out."
        )
