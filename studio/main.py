"""The entry script: what stands on every page, then the page. Served by streamlit_app.py."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from studio import access, banner, dialogs, look, nav, notice, pulse

# Our own file: Streamlit has browsers fetch the icons of its names from a host of Google's.
ICON = Path(__file__).with_name("icon.png")
AGAIN = "main.again"

# Before the navigation, which would have browsers fetch the page's own icon all the same.
st.set_page_config(page_title=notice.shown(), page_icon=ICON, layout="wide")
if access.is_shut_out():
    st.warning("The link that let you in was taken back. Ask the owner for a new one.", icon=":material/lock:")
    st.stop()
current = nav.navigation()
notice.begin(current.url_path or nav.first())
pulse.begin()
look.style()
if access.is_viewer():
    look.looking_only()
dialogs.begin(current.url_path)
is_again = st.session_state.pop(AGAIN, False)
try:
    banner.show(current.url_path or nav.first(), notice.keep)
    if current.url_path in nav.OWNERS and access.is_viewer():
        st.info("This page is the owner's: with your link there is nothing to do on it.", icon=":material/visibility:")
    else:
        current.run()
    dialogs.show()
except RuntimeError as error:
    # Of a session that connects anew Streamlit draws in two threads for a moment, whatever `fastReruns` says: one
    # counts what is kept while the other keeps something.
    if "changed size during iteration" not in str(error) or is_again:
        raise
    st.session_state[AGAIN] = True
    st.rerun()
