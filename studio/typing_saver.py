"""Large text fields commit when they are left; a reload in mid-sentence would lose it. This commits at a pause."""

from __future__ import annotations

import streamlit as st

PAUSE_MILLISECONDS = 400

# Streamlit commits a text area at Ctrl+Enter; this presses it for the person, in text areas only.
_SCRIPT = f"""<script>
(() => {{
  if (window.fluxgymSaver) return;
  window.fluxgymSaver = true;
  const timers = new WeakMap();
  document.addEventListener("input", event => {{
    const area = event.target;
    if (!(area instanceof HTMLTextAreaElement) || event.isComposing) return;
    clearTimeout(timers.get(area));
    const enter = {{key: "Enter", code: "Enter", keyCode: 13, ctrlKey: true, bubbles: true, cancelable: true}};
    timers.set(area, setTimeout(() => area.dispatchEvent(new KeyboardEvent("keydown", enter)), {PAUSE_MILLISECONDS}));
  }}, true);
}})();
</script>"""


def save_while_typing() -> None:
    """Draw nothing; from now on text areas keep what is typed after a short pause."""
    st.html(_SCRIPT, unsafe_allow_javascript=True)
