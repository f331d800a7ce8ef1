"""Config: every setting, what is not the default, and what differs from another run."""

from __future__ import annotations

from typing import Any

import streamlit as st

from fluxcore.config import defaults

from .. import look, overlay, words
from ..drafts import follow_presets
from ..labels import label_of
from ..live import LiveRun, live_runs


def show(run: LiveRun) -> None:
    """The tab."""
    others = [other.name for other in live_runs().all() if other.name != run.name]
    with st.container(horizontal=True, vertical_alignment="center"):
        other = st.selectbox(
            "Compare with",
            others,
            index=None,
            key=f"config-other-{run.name}",
            placeholder="Difference to another run …",
            label_visibility="collapsed",
            width=320,
        )
        only = st.toggle("Differences only", True, key="config-only")
    against = live_runs().get(other) if other else None
    mine = run.state.config
    theirs: dict[str, Any] = against.state.config if against else _usual(mine)
    called = overlay.told_apart([run, *([against] if against else [])])
    title = called[against.name] if against else "as usual"
    names = [name for name in mine if not only or mine.get(name) != theirs.get(name)]
    names += [name for name in theirs if name not in mine and (not only or against)]
    if not names:
        st.caption(f"No setting differs from {'those of ' + words.escape(title) if against else 'what is usual'}.")
        return
    names.sort(key=lambda name: mine.get(name) == theirs.get(name))
    rows = [(label_of(name), name, [as_text(mine.get(name)), as_text(theirs.get(name))]) for name in names]
    st.html(look.settings([called[run.name], title], rows))


def _usual(config: dict[str, Any]) -> dict[str, Any]:
    """The defaults, as this config's base model and memory preset have them."""
    values = defaults() | {name: config[name] for name in ("base_model", "vram") if name in config}
    return follow_presets(values, {"base_model", "vram"})


def as_text(value: Any) -> str:
    """A setting's value in a table."""
    if value is None:
        return "–"
    return (
        {True: "yes", False: "no", "": "(empty)"}.get(value, str(value))
        if isinstance(value, bool | str)
        else str(value)
    )
