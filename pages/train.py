"""Train: three columns from a name to a running training. Everything typed is kept as it is typed."""

from __future__ import annotations

import json
import math
import time
from datetime import datetime
from functools import partial
from pathlib import Path

import streamlit as st

from fluxcore.config import RunConfig, from_export
from fluxcore.config.names import slugify
from fluxcore.dataset import list_pictures
from fluxcore.dataset.layout import lay_out
from fluxcore.errors import UserError
from fluxcore.runs import default_outputs, free_run_name
from fluxcore.runs.requests import check_new_name
from studio import ask, dataset_view, estimate, form, former_drafts, nav, prompts, templates, words
from studio.all_settings import all_settings
from studio.captions import has_trigger
from studio.drafts import Draft, copy_pictures, fill_from, new_draft, newest_draft
from studio.labels import label_of
from studio.live import live_runs
from studio.put_back import put_back, remember_found
from studio.typing_saver import save_while_typing

START_SECONDS = 10.0
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "riso"


def current_draft() -> Draft:
    """This session's draft: the newest one, or an empty one with the settings of the newest run."""
    draft: Draft | None = st.session_state.get("draft")
    if draft and not draft.exists and not draft.gone and newest_draft(default_outputs()):
        draft = None  # nothing was done here yet, and another tab has begun one meanwhile: work on the same
    if draft is None or draft.gone:
        draft = newest_draft(default_outputs()) or Draft(default_outputs())
        if not draft.exists:
            follow_newest_run(draft)
        st.session_state["draft"] = draft
        form.fill(draft)
    elif (changed := draft.refresh()) is not None:  # another tab wrote: the log is what counts
        form.fill(draft)
        if changed:
            form.say_changed(draft, changed)
    form.fill_missing(draft)
    return draft


def follow_newest_run(draft: Draft) -> None:
    """Settings of the newest run under a free name; nothing is written before the first edit."""
    runs = [run for run in live_runs().all() if run.row.get("config")]  # a row has it; a state may be a log to read
    if not runs:
        return
    newest = max(runs, key=lambda run: run.row["created"] or datetime.min)
    known, _ = from_export(newest.row["config"])
    draft.values |= known | {"lora_name": free_run_name(default_outputs(), newest.name), "resume_from_checkpoint": ""}
    draft.touched = set(known)
    st.session_state["follows"] = newest.name


def try_example() -> None:
    """Fill the form with flux-mini and the pictures that ship with the project."""
    try:
        given = json.loads((EXAMPLE / "config.json").read_text()) if (EXAMPLE / "config.json").is_file() else {}
        known, _ = from_export(given)
        values = {"base_model": "flux-mini", "concept_sentence": "r1so"} | known
        values["lora_name"] = free_run_name(default_outputs(), slugify(str(values.get("lora_name") or "")) or "riso")
        draft = new_draft(default_outputs())
        folder = EXAMPLE if list_pictures(EXAMPLE) else EXAMPLE / "dataset"
        fill_from(draft, values, folder)
    except (UserError, OSError, ValueError) as error:
        st.session_state["train.problem"] = f"The example can't be taken: {error}"
        return
    use(draft)


def use_pictures_of(name: str, draft: Draft) -> None:
    """Take a run's pictures into the draft."""
    run = live_runs().get(name)
    if run is None:
        return
    try:
        copy_pictures(run.folder.dataset, draft.dataset)
        draft.edit({}, touched=draft.touched)
    except (UserError, OSError) as error:
        st.session_state["train.problem"] = f"The pictures of {name} can't be taken: {error}"
    st.session_state.pop("follows", None)


def clear_form() -> None:
    """Begin a new draft; the old one stays on the disk."""
    try:
        use(new_draft(default_outputs()))
    except UserError as error:
        st.session_state["train.problem"] = str(error)


def use(draft: Draft) -> None:
    """Make `draft` this session's; what was there before can be had back."""
    former_drafts.leave(st.session_state.get("draft"))
    take_up(draft)


def take_up(draft: Draft) -> None:
    """Make `draft` this session's."""
    for name in ("follows", "upload.taken", "picture.removed", "train.problem", "train.asked"):
        st.session_state.pop(name, None)
    st.session_state["draft"] = draft
    form.fill(draft)


def go_back(draft_id: str) -> None:
    """Return to a draft that was there before."""
    draft = Draft(default_outputs(), draft_id)
    if not draft.exists:  # another tab has made a run of it meanwhile
        return
    try:
        draft.edit({}, touched=draft.touched)  # it is the newest again, also after a reload
    except UserError as error:
        st.session_state["train.problem"] = str(error)
        return
    former_drafts.go_back(st.session_state.get("draft"), draft_id)
    take_up(draft)


def name_problem(slug: str) -> str:
    """Why the run can't have this name, or ""."""
    if not slug:
        return "a name of letters and digits is needed"
    try:
        check_new_name(default_outputs(), slug)
    except UserError as error:
        return str(error)
    return ""


def want_start() -> None:
    """Start in this drawing, or in the next one where another message breaks it off. Not when the page is seen again
    later: the form may be another one by then."""
    st.session_state["train.wanted"] = time.monotonic()


def start(draft: Draft, config: RunConfig) -> str:
    """Make a run of the draft, ask for its start and go to its page; or return why it can't be made."""
    problem = ask.start_new(config, lambda target: copy_pictures(draft.folder.dataset, target, link=True))
    if problem:
        return problem
    draft.discard()
    for name in ("draft", "upload.taken", "picture.removed", "train.asked", "follows"):
        st.session_state.pop(name, None)
    st.switch_page(nav.page("run"), query_params={"name": config.lora_name})


draft = current_draft()
remember_found(draft)
config, errors = form.check(draft)
usual = draft.usual()
slug = slugify(str(draft.values["lora_name"]))
asked = st.session_state.get("train.asked", False)
if (draft.values["lora_name"] or asked) and (problem := name_problem(slug)):
    errors["lora_name"] = problem
pictures = list_pictures(draft.folder.dataset)

with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
    st.title("Train a LoRA", anchor=False, width="content")
    with st.container(horizontal=True, width="content", gap="xsmall"):
        if before := former_drafts.last(draft):
            st.button(
                "Back to what I had",
                key="go-back",
                icon=":material/undo:",
                type="tertiary",
                on_click=go_back,
                args=(before,),
            )
        templates.menu(draft, config)
        if EXAMPLE.is_dir():
            st.button("Try the example", key="try-example", icon=":material/auto_awesome:", on_click=try_example)
        st.button("Clear form", key="clear-form", icon=":material/restart_alt:", type="tertiary", on_click=clear_form)

if problem := st.session_state.get("train.problem"):
    st.error(problem, icon=":material/error:")
templates.say_what_was_taken(draft)
followed = st.session_state.get("follows")
if followed and not pictures:
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(f"The settings are those of your latest run, **{words.escape(followed)}**.", width="content")
        st.button(
            "Use its pictures too",
            key="use-pictures",
            icon=":material/photo_library:",
            type="tertiary",
            on_click=use_pictures_of,
            args=(followed, draft),
        )

left, middle, right = st.columns([1.05, 1.5, 0.9], gap="medium")

with left, st.container(border=True):
    st.subheader("1 · LoRA", anchor=False)
    form.field("lora_name", draft, errors, usual)
    if slug and slug != draft.values["lora_name"] and "lora_name" not in errors:
        st.caption(f"It will be called `{slug}`.")
    form.field("concept_sentence", draft, errors, usual)
    form.field("base_model", draft, errors, usual)
    if draft.values["base_model"] == "flux-mini":
        st.caption(
            "flux-mini draws emoji of 64 pixels, to try all of this out. For your own pictures take a FLUX model."
        )
    form.field("vram", draft, errors, usual)
    one, two = st.columns(2, vertical_alignment="top")
    with one:
        form.field("num_repeats", draft, errors, usual)
    with two:
        form.field("max_train_epochs", draft, errors, usual)
    form.field("resolution", draft, errors, usual)
    wrong = any(name in errors for name in form.SAMPLES)
    # By its key it stays open where a sentence above it comes or goes.
    with st.expander("Samples", icon=":material/imagesmode:", expanded=wrong, key="samples"):
        for name in form.SAMPLES:
            form.field(name, draft, errors, usual)
        prompts.put_trigger(draft)
        prompts.say_not_drawn(draft)
    hidden = [name for name in errors if name not in (*form.PROMINENT, *form.SAMPLES, *form.START)]
    if hidden != st.session_state.get("settings.wrong", []):  # something there has just become wrong, or right
        st.session_state["settings.wrong"] = hidden
        st.session_state["settings.open"] = bool(hidden) or st.session_state.get("settings.open", False)
    # Closed, neither is drawn: seventy widgets take longer than all the rest of the page.
    rest = st.expander("All other settings", icon=":material/tune:", key="settings.open", on_change="rerun")
    if rest.open:
        with rest:
            all_settings(draft, errors, usual)
    text = st.expander("As text, and as a command", icon=":material/code:", key="text.open", on_change="rerun")
    if text.open:
        with text:
            templates.as_text(draft, config)

with middle, st.container(border=True):
    st.subheader("2 · Pictures", anchor=False)
    dataset_view.show(draft, config)

with right, st.container(border=True):
    st.subheader("3 · Start", anchor=False)
    if config:
        try:
            layout = lay_out(config, draft.folder.dataset) if pictures or config.dataset_config else None
        except UserError as error:
            layout = None
            errors["dataset_config" if config.dataset_config else "validation_split"] = str(error)
        steps = layout.total_steps if layout else config.max_train_steps
        st.html(f"<div class=fg-steps>{steps:,} steps</div>")
        if config.max_train_steps:
            st.caption("as set under “Steps (instead of epochs)”")
        elif layout and any((config.enable_bucket, config.dataset_config, layout.held_out, config.more_resolutions)):
            st.caption(
                f"{words.plural(layout.steps_per_epoch, 'step')} an epoch, in "
                f"{words.plural(len(layout.batch_sizes), 'size')} × {words.plural(config.max_train_epochs, 'epoch')}"
            )
        else:
            batch = f" ÷ {config.train_batch_size} a step" if config.train_batch_size > 1 else ""
            each = f" = {words.plural(layout.steps_per_epoch, 'step')} an epoch" if batch and layout else ""
            st.caption(
                f"{words.plural(len(pictures), 'picture')} × {words.plural(config.num_repeats, 'repeat')}{batch}{each} "
                f"× {words.plural(config.max_train_epochs, 'epoch')}"
            )
        if steps:
            estimate.show(draft, config, len(pictures), steps)
    else:
        st.caption("The steps are counted when every field is right.")
    for name in form.START:
        form.field(name, draft, errors, usual)
    missing = [] if slug else [f"Name: {name_problem(slug)}"]
    if templates.is_unused(draft):
        missing.append("Use the text or the command that you edited, or put it back (*As text, and as a command*).")
    if not pictures and not (config and config.dataset_config):
        missing.append("Add pictures.")
    elif not str(draft.values["concept_sentence"]).strip() and any(picture.caption is None for picture in pictures):
        missing.append("Give a trigger word, or caption every picture.")
    missing += [f"{label_of(name)}: {text}" for name, text in errors.items() if slug or name != "lora_name"]
    st.button(
        "Start training",
        key="start",
        type="primary",
        icon=":material/play_arrow:",
        width="stretch",
        shortcut="Alt+Enter",  # Ctrl+Enter is what commits a text area
        on_click=want_start,
    )
    if time.monotonic() - st.session_state.pop("train.wanted", -math.inf) < START_SECONDS:
        if config is None or missing:
            st.session_state["train.asked"] = st.session_state["train.said"] = True
            st.rerun()
        st.error(start(draft, config), icon=":material/error:")
    if asked and missing:
        if st.session_state.pop("train.said", False):  # on a phone the button is far from the list
            st.toast(f"Before it can start: {missing[0]}", icon=":material/checklist:", duration="long")
        st.warning("Before it can start:\n\n" + "\n".join(f"- {text}" for text in missing), icon=":material/checklist:")
    elif not missing:
        trigger = str(draft.values["concept_sentence"]).strip()
        if trigger and pictures and not any(has_trigger(picture.caption or trigger, trigger) for picture in pictures):
            st.warning(
                f"No caption has “{words.escape(trigger)}”: *Captions* in step 2 puts it in.",
                icon=":material/label_off:",
            )
        st.caption("You may close this page then: the training goes on without it.")
form.drawn()
save_while_typing(draft.id if draft.exists else "", partial(put_back, draft))
