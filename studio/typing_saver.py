"""Large text fields and numbers commit when they are left; a reload in mid-sentence would lose them. This commits at a
pause.

Of the fields that are meant alone: the listener outlives the page that drew it, and in a form or a dialog what is half
typed is nobody's wish yet.
"""

from __future__ import annotations

import streamlit as st

PAUSE_MILLISECONDS = 400
KEPT = '[class*="st-key-form-"], [class*="st-key-caption-"], .st-key-config-text, .st-key-sql'
"""The fields of the draft, its captions, the settings as text, the statement on the page History."""

# Streamlit commits a field when it loses the focus: it is told that, and that it is back. A key pressed for the person,
# as Ctrl+Enter, would also press the button that has it as its shortcut. A number is committed only where it reads as
# it was typed: of "0." or "0.50" on the way to "0.505" the form would make another one under the person's hands.
_SCRIPT = f"""<script>
(() => {{
  if (window.fluxgymSaver) return;
  window.fluxgymSaver = true;
  const timers = new WeakMap();
  document.addEventListener("input", event => {{
    const field = event.target, number = field instanceof HTMLInputElement && field.type === "number";
    if (event.isComposing || !(number || field instanceof HTMLTextAreaElement) || !field.closest('{KEPT}')) return;
    clearTimeout(timers.get(field));
    timers.set(field, setTimeout(() => {{
      if (document.activeElement !== field || (number && String(Number(field.value)) !== field.value)) return;
      for (const what of ["focusout", "focusin"]) field.dispatchEvent(new FocusEvent(what, {{bubbles: true}}));
    }}, {PAUSE_MILLISECONDS}));
  }}, true);
}})();
</script>"""


def save_while_typing() -> None:
    """Draw nothing; from now on those fields keep what is typed after a short pause."""
    st.html(_SCRIPT, unsafe_allow_javascript=True)
