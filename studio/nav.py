"""The pages, by absolute path: so a first visitor's deep link on a fresh server goes through the entry script too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

from . import access

PAGES = Path(__file__).resolve().parents[1] / "pages"
TITLES = {
    "train": ("Train", "model_training"),
    "runs": ("Runs", "list"),
    "run": ("Run", "monitoring"),
    "compare": ("Compare", "compare_arrows"),
    "history": ("History", "database"),
    "settings": ("Settings", "settings"),
}
_PAGES = "nav.pages"
HIDDEN = frozenset({"compare"})
"""Reached from the page Runs, with the runs in the address."""
OWNERS = frozenset({"train", "settings"})
"""For those who may change something: there is nothing to see on them but what they would change."""


def first() -> str:
    """The page at the bare address."""
    return "runs" if access.is_viewer() else "train"


def page(name: str) -> Any:
    """One page, for `st.page_link` and `st.switch_page`."""
    return st.session_state.get(_PAGES, {}).get(name) or _page(name)


def _page(name: str) -> Any:
    title, icon = TITLES[name]
    return st.Page(
        PAGES / f"{name}.py",
        title=title,
        icon=f":material/{icon}:",
        url_path=name,
        default=name == first(),
        visibility="hidden" if name in HIDDEN or (name in OWNERS and access.is_viewer()) else "visible",
    )


def navigation() -> Any:
    """Draw the navigation and return the page to run."""
    pages = {name: _page(name) for name in TITLES}
    st.session_state[_PAGES] = pages  # a list of runs links to them often, and making one looks at the disk
    return st.navigation(list(pages.values()), position="top")
