"""How the app looks in this browser, and the keys that press its buttons."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from .. import nav

THEMES = ("System", "Light", "Dark")
KEYS = (
    ("Alt + Enter", "starts the training, on the page Train"),
    ("Ctrl + Enter", "asks, on the page History"),
    ("← →", "earlier and later samples, where they are shown large"),
    ("↑ ↓", "the previous prompt and the next one, there"),
    ("Esc", "closes what stands in front of the page"),
)
_theme = st.components.v2.component("fluxgym_theme", js=Path(__file__).with_name("theme.js").read_text("utf-8"))


def show() -> None:
    """The card."""
    with st.container(border=True):
        st.subheader("Appearance", anchor=False)
        if known := st.session_state.get("theme.known"):
            st.session_state.setdefault("theme", known)  # Streamlit forgets the widgets of a page that was left
        chosen = st.session_state.get("theme") if known else None
        data = {"pages": ["", *nav.TITLES], "known": known, "chosen": chosen}
        # What a browser has kept it tells itself: nothing here knows it before.
        if (told := _theme(key="theme-kept", data=data, on_kept_change=lambda: None).kept) and told != known:
            st.session_state["theme.known"] = st.session_state["theme"] = told
        st.segmented_control(
            "Theme in this browser",
            THEMES,
            key="theme",
            required=True,
            help="Light and dark have the same contrast; System follows the device. The page loads anew.",
        )
        st.caption("  \n".join(f"`{keys}` {what}" for keys, what in KEYS))
