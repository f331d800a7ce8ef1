"""The pages, by absolute path: so a first visitor's deep link on a fresh server goes through the entry script too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

PAGES = Path(__file__).resolve().parents[1] / "pages"
TITLES = {
    "train": ("Train", "model_training"),
    "runs": ("Runs", "list"),
    "run": ("Run", "monitoring"),
    "compare": ("Compare", "compare_arrows"),
    "history": ("History", "database"),
    "settings": ("Settings", "settings"),
}
HIDDEN = frozenset({"compare"})
"""Reached from the page Runs, with the runs in the address."""


def page(name: str) -> Any:
    """One page, for `st.navigation`, `st.page_link` and `st.switch_page`."""
    title, icon = TITLES[name]
    return st.Page(
        PAGES / f"{name}.py",
        title=title,
        icon=f":material/{icon}:",
        url_path=name,
        default=name == "train",
        visibility="hidden" if name in HIDDEN else "visible",
    )


def navigation() -> Any:
    """Draw the navigation and return the page to run."""
    return st.navigation([page(name) for name in TITLES], position="top")
