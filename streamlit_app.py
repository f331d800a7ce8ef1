"""The app's server: `streamlit run streamlit_app.py`, or `./fluxgym app`. The pages begin at studio/main.py."""

from __future__ import annotations

import sys
from pathlib import Path

import streamlit as st

ROOT = Path(__file__).resolve().parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from studio.server import lifespan, middleware, on_script_error, routes  # noqa: E402

app = st.App(
    ROOT / "studio" / "main.py",
    lifespan=lifespan,
    routes=routes(),
    middleware=middleware(),
    on_script_error=on_script_error,
)
