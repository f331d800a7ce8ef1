"""The sample prompts, and the trigger word that each should have."""

from __future__ import annotations

import re

import streamlit as st

from . import form, words
from .drafts import Draft
from .labels import label_of
from .live import live_runs


def put_trigger(draft: Draft) -> None:
    """A button that puts the trigger word into the sample prompts that lack it."""
    trigger = str(draft.values["concept_sentence"]).strip()
    prompts = str(draft.values["sample_prompts"])
    former = former_trigger(draft, [line for line in prompts.split("\n") if line.strip()])
    wanted = with_trigger(prompts, trigger, former)
    st.button(
        put_words(trigger, former, "into the prompts"),
        key="prompts-trigger",
        icon=":material/first_page:",
        type="tertiary",
        disabled=wanted == prompts,
        on_click=form.set_value,
        args=(draft, "sample_prompts", wanted),
    )


def say_not_drawn(draft: Draft) -> None:
    """A line where prompts are given and a step at which they are drawn is not."""
    values = draft.values
    if str(values["sample_prompts"]).strip() and not values["sample_every_n_steps"]:
        st.caption(
            f":orange[:material/hide_image:] These prompts are drawn only when you ask (*Sample now*, on the run's "
            f"page): set *{label_of('sample_every_n_steps')}* to have them drawn while it trains."
        )


def put_words(trigger: str, former: str, where: str) -> str:
    """What a button says that puts the trigger word somewhere, in the place of a former one."""
    what = f"“{words.escape(trigger)}”" if trigger else "the trigger word"
    return f"Put {what} in the place of “{words.escape(former)}”" if former else f"Put {what} {where}"


def former_trigger(draft: Draft, texts: list[str]) -> str:
    """The trigger word of before, of this draft or of the run that it follows, that most of the texts without today's
    still have; "" where there is none."""
    trigger = str(draft.values["concept_sentence"]).strip()
    bare = [text for text in texts if not word(trigger).search(text)] if trigger else []
    if not bare:
        return ""
    followed = live_runs().get(st.session_state.get("follows") or "")
    known = {*draft.triggers, str(followed.state.config.get("concept_sentence") or "").strip() if followed else ""}
    found = [one for one in known - {"", trigger} if 2 * sum(bool(word(one).search(text)) for text in bare) > len(bare)]
    return max(found, key=len, default="")


def with_trigger(prompts: str, trigger: str, former: str = "") -> str:
    """`prompts`, a line each, with the trigger word in front of those that have it nowhere, or in the place of a former
    one; comments stay."""
    if not trigger:
        return prompts

    def line_with(line: str) -> str:
        if not line.strip() or line.lstrip().startswith("#") or word(trigger).search(line):
            return line
        if former and word(former).search(line):
            return word(former).sub(lambda _: trigger, line)
        return f"{trigger}, {line}"

    return "\n".join(map(line_with, prompts.split("\n")))


def without_trigger(prompt: str, trigger: str) -> str:
    """The prompt with an ellipsis where the trigger word stands: the same for runs that differ by that word alone."""
    return word(trigger.strip()).sub("…", prompt) if trigger.strip() else prompt


def word(trigger: str) -> re.Pattern[str]:
    """Where the trigger word stands as a word of its own."""
    return re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)
