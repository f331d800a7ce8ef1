"""The entry script: what stands on every page, then the page. Served by streamlit_app.py."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from studio import banner, dialogs, look, nav, notice

# Our own file: Streamlit has browsers fetch the icons of its names from a host of Google's.
ICON = Path(__file__).with_name("icon.png")

# Before the navigation, which would have browsers fetch the page's own icon all the same.
st.set_page_config(page_title=notice.shown(), page_icon=ICON, layout="wide")
current = nav.navigation()
notice.begin(current.url_path or nav.FIRST)
look.style()
dialogs.begin(current.url_path)
banner.show(notice.keep)
current.run()
dialogs.show()
