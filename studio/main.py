"""The entry script: what stands on every page, then the page. Served by streamlit_app.py."""

from __future__ import annotations

import streamlit as st

from studio import banner, look, nav

st.set_page_config(page_title="FluxGym", page_icon=":material/fitness_center:", layout="wide")
current = nav.navigation()
look.style()
banner.show()
current.run()
