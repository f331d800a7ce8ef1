"""The sample prompts, and the trigger word that each should have."""

from __future__ import annotations

import re

import streamlit as st

from . import form, words
from .drafts import Draft


def put_trigger(draft: Draft) -> None:
    """A button that puts the trigger word into the sample prompts that lack it."""
    trigger = str(draft.values["concept_sentence"]).strip()
    prompts = str(draft.values["sample_prompts"])
    wanted = with_trigger(prompts, trigger)
    st.button(
        f"Put “{words.escape(trigger)}” into the prompts" if trigger else "Put the trigger word into the prompts",
        key="prompts-trigger",
        icon=":material/first_page:",
        type="tertiary",
        disabled=wanted == prompts,
        on_click=form.set_value,
        args=(draft, "sample_prompts", wanted),
    )


def with_trigger(prompts: str, trigger: str) -> str:
    """`prompts`, a line each, with the trigger word in front of those that have it nowhere; comments stay."""
    if not trigger:
        return prompts
    there = word(trigger)
    return "\n".join(
        line if not line.strip() or line.lstrip().startswith("#") or there.search(line) else f"{trigger}, {line}"
        for line in prompts.split("\n")
    )


def without_trigger(prompt: str, trigger: str) -> str:
    """The prompt with an ellipsis where the trigger word stands: the same for runs that differ by that word alone."""
    return word(trigger.strip()).sub("…", prompt) if trigger.strip() else prompt


def word(trigger: str) -> re.Pattern[str]:
    """Where the trigger word stands as a word of its own."""
    return re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)
