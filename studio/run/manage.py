"""What a person does to a run besides training it: title, tags, note, away, again, gone and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import streamlit as st

from fluxcore.config import from_export
from fluxcore.errors import UserError
from fluxcore.publishing import forget_publishing
from fluxcore.runs import default_outputs, free_run_name, load_run
from fluxcore.runs.about import MAX_NOTE, MAX_TAGS, MAX_TITLE, set_archived, set_note, set_tags, set_title
from fluxcore.runs.trash import KEEP_SECONDS, Deleted, empty_trash, restore_run, size_of, trash_run

from .. import access, ask, dialogs, former_drafts, nav, words
from ..drafts import fill_from, new_draft
from ..live import LiveRun, live_runs
from ..typing_saver import save_while_typing
from . import publish

DELETED = "runs.deleted"
"""In the session: what was deleted last and can be had back."""
_REFUSED = "about.refused"
"""In the session: why what stands in a field of the dialog could not be kept."""
ABOUT, LIKE_IT, PUBLISH = "Title, tags and note", "Train another one like it", "Publish on Hugging Face"


def menu(run: LiveRun) -> None:
    """The quiet actions behind one button; the menu closes with a choice."""
    state, name = run.state, run.name
    with st.popover(
        "",
        icon=":material/more_horiz:",
        key="run-menu",
        help="Rename, tag, duplicate, compare, publish, archive, delete",
        on_change="rerun",
    ):
        _item(ABOUT, "edit_note", _open_about, name, key="run-about")
        _item(LIKE_IT, "content_copy", dialogs.want, _duplicate, LIKE_IT, name, key="run-duplicate")
        others = [run.name for run in live_runs().all() if run.name != name]
        with st.container(key="run-compare"):
            st.page_link(
                nav.page("compare"),
                label="Compare with other runs",
                icon=":material/compare_arrows:",
                query_params={"runs": ",".join([name, *others[:1]])},
            )
        if state.weights or state.checkpoints:
            _item(PUBLISH, "cloud_upload", dialogs.want, publish.question, PUBLISH, name, key="run-publish")
        _item(
            "Back out of the archive" if state.archived else "Archive",
            "unarchive" if state.archived else "archive",
            ask.do,
            lambda: set_archived(default_outputs(), name, "app", not state.archived),
            f"{name} is back in the list" if state.archived else f"{name} is put away: see Archived on the page Runs",
            key="run-archive",
            disabled=run.is_busy,
        )
        _item(
            "Delete",
            "delete",
            dialogs.want,
            delete,
            f"Delete {name}?",
            [name],
            key="run-delete",
            disabled=run.is_busy,
            help="It lives; stop it first." if run.is_busy else None,
        )


def _item(label: str, icon: str, does: Callable[..., None], *args: Any, **more: Any) -> None:
    def chosen() -> None:
        st.session_state["run-menu"] = False  # it is the popover's state
        does(*args)

    st.button(label, icon=f":material/{icon}:", type="tertiary", on_click=chosen, **more)


def _open_about(name: str) -> None:
    try:
        state = load_run(default_outputs(), name)[1]
    except (UserError, OSError) as error:
        st.toast(ask.sentence(error), icon=":material/error:")
        return
    st.session_state[_REFUSED] = {}
    dialogs.want(_about, ABOUT, name, state.title, state.tags, state.note)


def _about(name: str, title: str, tags: list[str], note: str) -> None:
    """Each field is kept when it is left, by closing the dialog too; given is what it held when that was opened."""
    refused: dict[str, str] = st.session_state.setdefault(_REFUSED, {})

    def field(part: str, keep: Callable[[Path, str, str, Any], object]) -> dict[str, Any]:
        def left() -> None:
            value = st.session_state[f"about-{part}"]
            try:
                before = getattr(load_run(default_outputs(), name)[1], part)
                if before != (value.strip() if isinstance(value, str) else value):
                    keep(default_outputs(), name, "app", value)
                    live_runs().expire()
                refused.pop(part, None)
            except (UserError, OSError) as error:
                refused[part] = access.SENTENCE if access.is_viewer() else ask.sentence(error)

        return {"key": f"about-{part}", "on_change": left}

    def say(part: str) -> None:
        if part in refused:
            st.markdown(f":red[:material/error: {words.escape(refused[part])}]")

    st.text_input("Title", title, max_chars=MAX_TITLE, placeholder=name, **field("title", set_title))
    say("title")
    st.multiselect(
        "Tags",
        sorted({*all_tags(), *tags}, key=str.lower),
        tags,
        accept_new_options=True,
        max_selections=MAX_TAGS,
        placeholder="Choose or type some",
        **field("tags", set_tags),
    )
    say("tags")
    st.text_area("Note", note, max_chars=MAX_NOTE, height=160, **field("note", set_note))
    say("note")
    save_while_typing()  # it listens for Escape
    if st.button("Done", key="about-done", type="primary", icon=":material/check:") and not refused:
        dialogs.close()
        st.rerun()


def all_tags() -> list[str]:
    """Every tag that any run has."""
    return sorted({tag for run in live_runs().all() for tag in run.row.get("tags") or []}, key=str.lower)


def _duplicate(name: str) -> None:
    st.markdown("A new draft with its settings and a copy of its pictures. What you have on the page Train is kept.")
    if st.button("Make the draft", key="duplicate-yes", type="primary", icon=":material/content_copy:"):
        run = live_runs().get(name)

        def make() -> None:
            if run is None:
                raise UserError("the run is gone")
            known, _ = from_export(run.state.config)
            known |= {"lora_name": free_run_name(default_outputs(), name), "resume_from_checkpoint": ""}
            fill_from(new_draft(default_outputs()), known, run.folder.dataset)

        if dialogs.attempt(make):
            former_drafts.leave(st.session_state.pop("draft", None))  # the newest one, which this is, is taken up
            st.switch_page(nav.page("train"))


def delete(names: list[str]) -> None:
    """The question before runs are deleted."""
    outputs = default_outputs()
    runs = [run for name in names if (run := live_runs().get(name))]
    busy = [run.name for run in runs if run.is_busy]
    runs = [run for run in runs if not run.is_busy]
    if busy:
        st.caption(f"{words.escape(', '.join(busy))} must be stopped first and will stay.")
    if not runs:
        return
    size = words.size(sum(size_of(run.folder) for run in runs))
    what = f"**{words.escape(runs[0].name)}**" if len(runs) == 1 else f"**{len(runs)} runs**"
    st.markdown(f"{what} with pictures, checkpoints, LoRA files and log: {size}.")
    at_once = st.toggle(
        "For good, now",
        key="delete-now",
        help="Frees the disk at once. Nothing can bring it back.",
    )
    if not at_once:
        hours = f"{KEEP_SECONDS / 3600:.0f} hours"
        st.caption(f"You can take it back for {hours}; after that the next deletion removes it for good.")
    if st.button(
        "Delete for good" if at_once else "Delete", key="delete-yes", type="primary", icon=":material/delete:"
    ):

        def remove() -> None:
            empty_trash(outputs, older_than=KEEP_SECONDS)
            gone = [trash_run(outputs, run.name) for run in runs]
            for run in runs:  # how its publishing ended is nothing of the next run of that name
                forget_publishing(outputs, run.name)
            if at_once:
                empty_trash(outputs, only=[one.id for one in gone])
            else:
                st.session_state[DELETED] = gone

        if dialogs.attempt(remove):
            st.switch_page(nav.page("runs"))


def offer_undo() -> None:
    """What was deleted last, and the button that brings it back."""
    gone: list[Deleted] = st.session_state.get(DELETED) or []
    if not gone:
        return
    what = words.escape(gone[0].name) if len(gone) == 1 else words.plural(len(gone), "run")
    with st.container(border=True, horizontal=True, vertical_alignment="center", key="deleted"):
        st.markdown(f":gray-badge[:material/delete: deleted] **{what}**", width="stretch")
        st.button("Undo", key="undo-delete", icon=":material/undo:", on_click=_undo, args=(gone,))
        st.button(
            "", key="undo-no", icon=":material/close:", type="tertiary", help="Leave it deleted", on_click=_forget
        )


def _undo(gone: Iterable[Deleted]) -> None:
    _forget()
    for one in gone:
        ask.do(lambda id=one.id: restore_run(default_outputs(), id), f"{one.name} is back")


def _forget() -> None:
    st.session_state.pop(DELETED, None)
