"""The entry script: what stands on every page, then the page. Served by streamlit_app.py."""

from __future__ import annotations

import streamlit as st

from studio import banner, dialogs, look, nav

st.set_page_config(page_title="FluxGym", page_icon=":material/fitness_center:", layout="wide")
current = nav.navigation()
look.style()
dialogs.begin(current.url_path)
banner.show()
current.run()
dialogs.show()
