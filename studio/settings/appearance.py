"""How the app looks in this browser, and the keys that press its buttons."""

from __future__ import annotations

import json

import streamlit as st

from .. import nav

THEMES = {"System": None, "Light": "Light", "Dark": "Dark"}
KEYS = (("Alt + Enter", "Start training, on the page Train"),)

# Streamlit keeps a browser's choice by page, under a key of its own; the choice here holds for all of them.
_SCRIPT = """<script>
(() => {
  const theme = %s, pages = %s, base = location.pathname.replace(/[^/]*$/, "");
  for (const page of pages) {
    const key = `stActiveTheme-${base}${page}-v2`;
    if (theme) localStorage.setItem(key, JSON.stringify(theme)); else localStorage.removeItem(key);
  }
  location.reload();
})();
</script>"""


def show() -> None:
    """The card."""
    with st.container(border=True):
        st.subheader("Appearance", anchor=False)
        chosen = st.segmented_control(
            "Theme in this browser",
            list(THEMES),
            key="theme",
            help="Light and dark have the same contrast; System follows the device. The page loads anew.",
        )
        if chosen:
            script = _SCRIPT % (json.dumps(THEMES[chosen]), json.dumps(["", *nav.TITLES]))
            st.html(script, unsafe_allow_javascript=True)
        st.caption(" · ".join(f"`{keys}` {what}" for keys, what in KEYS))
