"""Settings as a whole: templates, another run's, a file in, a file out, and all of them as text. Each can be undone."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import streamlit as st

from fluxcore.config import RunConfig, defaults, from_export, to_export
from fluxcore.config.foreign import read_config
from fluxcore.config.templates import NOT_KEPT, list_templates, load_template, remove_template, save_template
from fluxcore.errors import UserError
from fluxcore.runs import default_outputs
from fluxcore.runs.files import PROJECT_ROOT

from . import ask, dialogs, form, words
from .drafts import Draft
from .live import live_runs

BEFORE = "settings.before"
"""In the session: the draft's settings before a whole set of others took their place."""
MOST_GIVEN = 16
TEXTS = ("config.text", "command.text")
"""The settings as text, and as a command."""


def menu(draft: Draft, config: RunConfig | None) -> None:
    """All of it behind one button."""
    with st.popover("Settings from …", icon=":material/tune:", key="settings-menu", width="content"):
        names = list_templates(draft.outputs)
        if st.session_state.get("template") not in (None, *names):  # it was forgotten, here or in another tab
            st.session_state["template"] = None
        with st.container(horizontal=True, vertical_alignment="bottom"):
            chosen = st.selectbox(
                "Template",
                names,
                index=None,
                key="template",
                placeholder="None kept yet" if not names else "Choose one",
            )
            st.button(
                "Apply", key="template-apply", disabled=not chosen, on_click=_apply_template, args=(draft, chosen)
            )
            st.button(
                "",
                key="template-remove",
                icon=":material/delete:",
                type="tertiary",
                disabled=not chosen,
                help="Forget this template",
                on_click=dialogs.confirm,
                args=(
                    f"Forget the template {words.escape(chosen or '')}?",
                    "Runs and drafts that have its settings keep them.",
                    "Forget it",
                    lambda: remove_template(draft.outputs, str(chosen)),
                    f"The template {chosen} is forgotten",
                ),
            )
        with st.container(horizontal=True, vertical_alignment="bottom"):
            st.text_input("Keep these settings as a template", key="template-name", placeholder="portrait-12G")
            st.button("Keep", key="template-save", icon=":material/bookmark_add:", on_click=_save, args=(draft,))
        runs = [run.name for run in live_runs().all()]
        with st.container(horizontal=True, vertical_alignment="bottom"):
            run = st.selectbox("Settings of a run", runs, index=None, key="settings-run", placeholder="Choose one")
            st.button("Take them", key="settings-run-apply", disabled=not run, on_click=_apply_run, args=(draft, run))
        turn = st.session_state.setdefault("settings.turn", 0)
        st.file_uploader(
            "Settings from a file",
            type=["json", "toml", "yaml", "yml"],
            key=f"settings-file-{turn}",
            max_upload_size=1,
            on_change=_import,
            args=(draft, f"settings-file-{turn}"),
            help="FluxGym's own ui_state.json, kohya's JSON or TOML, ai-toolkit's YAML.",
        )
        if config:
            st.download_button(
                "Settings as a file",
                json.dumps(to_export(config, "draft"), indent=2, ensure_ascii=False),
                file_name=f"{config.lora_name or 'fluxgym'}.json",
                mime="application/json",
                key="settings-export",
                icon=":material/download:",
                on_click="ignore",
            )


def say_what_was_taken(draft: Draft) -> None:
    """After a whole set of settings came in: from where, what of it was unknown, and the way back."""
    note = st.session_state.get("settings.note")
    if not note or note[0] != draft.id:
        return
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(note[1], width="content")
        st.button(
            "Undo", key="settings-undo", icon=":material/undo:", type="tertiary", on_click=_undo, args=(draft,),
        )  # fmt: skip


def as_text(draft: Draft, config: RunConfig | None) -> None:
    """The settings as JSON, to edit, and the command that trains the same."""
    shown = ("lora_name", "base_model", "vram", *(name for name in draft.changed() if name != "lora_name"))
    text = json.dumps({name: draft.values[name] for name in shown}, indent=2, ensure_ascii=False)
    _editable(
        draft,
        "config.text",
        text,
        "What is not as usual, as text",
        "A setting that is taken out is again as the memory preset and the base model have it. All settings: "
        "“Settings from …”, “Settings as a file”.",
        "Use this text",
        _apply_text,
    )
    _editable(
        draft,
        "command.text",
        command(config, draft.folder.dataset) if config else "",
        "The same from a shell",
        "Edit it, or put another `./fluxgym new` or `start` here: its settings are taken, nothing is run.",
        "Use this command",
        _apply_command,
    )


def _editable(
    draft: Draft, key: str, text: str, label: str, tip: str, use: str, apply: Callable[[Draft], None]
) -> None:
    """`text` to edit; as long as nobody did, it follows the form. An edit outlives that it is folded away."""
    # A browser may still say one of before: drawings that were broken off gave it others.
    whose, given = st.session_state.get(f"{key}.given") or ("", [])
    if whose != draft.id:
        given, st.session_state[key] = [], text
    elif key not in st.session_state:
        st.session_state[key] = st.session_state.get(f"{key}.edit") or text
    elif st.session_state[key] in given:
        st.session_state[key] = text
    if text not in given:
        st.session_state[f"{key}.given"] = (draft.id, [*given, text][-MOST_GIVEN:])
    st.session_state[f"{key}.edit"] = st.session_state[key] if st.session_state[key] != text else ""
    st.text_area(label, key=key, height=220, help=tip)
    if problem := st.session_state.get(f"{key}.problem"):
        st.markdown(f":red[:material/error: {words.escape(problem)}]")
    edited = st.session_state[key] != text
    with st.container(horizontal=True):
        st.button(
            use,
            key=f"{key.replace('.', '-')}-apply",
            icon=":material/check:",
            disabled=not edited,
            on_click=apply,
            args=(draft,),
        )
        if edited:
            st.button(
                "Put it back",
                key=f"{key.replace('.', '-')}-back",
                icon=":material/undo:",
                type="tertiary",
                help="As the form has it",
                on_click=_put_back,
                args=(key, text),
            )


def is_unused(draft: Draft) -> bool:
    """Whether the text or the command was edited and neither used nor put back."""
    for key in TEXTS:
        whose, _ = st.session_state.get(f"{key}.given") or ("", [])
        if whose == draft.id and st.session_state.get(f"{key}.edit"):
            return True
    return False


def _put_back(key: str, text: str) -> None:
    st.session_state[key] = text
    st.session_state.pop(f"{key}.problem", None)


def command(config: RunConfig, pictures: Path) -> str:
    """The command line that makes and starts the same run."""
    from fluxcore.config import resolve_config

    base = {"lora_name": config.lora_name, "base_model": config.base_model, "vram": config.vram}
    usual = resolve_config(base).model_dump()
    given = {
        name: value for name, value in config.model_dump().items() if name not in NOT_KEPT and value != usual[name]
    }
    given = {"base_model": config.base_model, "vram": config.vram, **given}
    parts = [f"./fluxgym new {config.lora_name or 'NAME'} --images {shlex.quote(str(pictures))}"]
    if default_outputs() != PROJECT_ROOT / "outputs":
        parts.append(f"--outputs {shlex.quote(str(default_outputs()))}")
    parts += [f"--set {shlex.quote(f'{name}={_plain(value)}')}" for name, value in given.items()]
    return " \\\n  ".join([*parts, "--start"])


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def take(draft: Draft, values: dict[str, Any], note: str) -> None:
    """Put a whole set of settings into the draft; what was there can be had back. Raises UserError."""
    before = (draft.id, dict(draft.values), set(draft.touched))
    draft.edit(values, touched=draft.touched | set(values))
    st.session_state[BEFORE] = before
    st.session_state["settings.note"] = (draft.id, note)
    form.fill(draft)


def _undo(draft: Draft) -> None:
    before = st.session_state.pop(BEFORE, None)
    st.session_state.pop("settings.note", None)
    if before and before[0] == draft.id:
        ask.tried(lambda: draft.edit(before[1], touched=before[2], forget=True))
        form.fill(draft)


def _apply_template(draft: Draft, name: str) -> None:
    note = f"The settings are those of the template {name}."
    ask.tried(lambda: take(draft, load_template(draft.outputs, name), note))


def _save(draft: Draft) -> None:
    def save() -> None:
        name = save_template(draft.outputs, str(st.session_state.get("template-name") or ""), draft.values)
        st.toast(f"The template {name} is kept", icon=":material/bookmark_added:")
        st.session_state["template-name"] = ""

    ask.tried(save)


def _apply_run(draft: Draft, name: str) -> None:
    run = live_runs().get(name)
    if run is None:
        return
    known = {key: value for key, value in from_export(run.state.config)[0].items() if key not in NOT_KEPT}
    ask.tried(lambda: take(draft, known, f"The settings are those of {words.escape(name)}."))


def _import(draft: Draft, widget: str) -> None:
    file = st.session_state.get(widget)
    if file is None:
        return
    st.session_state["settings.turn"] += 1

    def read() -> None:
        text = file.getvalue().decode("utf-8-sig", "replace")
        known, unknown = read_config(text, Path(file.name).suffix.lower())
        left = f" It has settings that FluxGym does not know, left out: {', '.join(unknown[:20])}." if unknown else ""
        known.pop("resume_from_checkpoint", None)
        take(draft, known, words.escape(f"The settings are those of {file.name}.{left}"))

    ask.tried(read)


def _apply_text(draft: Draft) -> None:
    def use() -> None:
        try:
            values = json.loads(st.session_state["config.text"] or "{}")
        except json.JSONDecodeError as error:
            raise UserError(f"that is no JSON: {error.msg} in line {error.lineno}") from None
        if not isinstance(values, dict):
            raise UserError("it must be one JSON object: { … }")
        known, unknown = from_export(values)
        if unknown:
            raise UserError(f"there is no setting {', '.join(unknown)}")
        gone = {name: value for name, value in defaults().items() if name not in known}
        take(draft, {**gone, **known}, "The settings are those of the text.")
        draft.edit({}, touched=set(known), forget=True)

    _use_text(draft, "config.text", use)


def _apply_command(draft: Draft) -> None:
    def use() -> None:
        from fluxcore.cli.written import read_command

        config, given = read_command(st.session_state["command.text"], draft.values)
        values = {name: value for name, value in config.model_dump().items() if name != "resume_from_checkpoint"}
        take(draft, values, "The settings are those of the command; the pictures are these.")
        draft.edit({}, touched={"lora_name", "base_model", "vram", *given, *draft.changed()}, forget=True)

    _use_text(draft, "command.text", use)


def _use_text(draft: Draft, key: str, use: Callable[[], None]) -> None:
    try:
        use()
    except UserError as error:
        st.session_state[f"{key}.problem"] = str(error)
        return
    for name in TEXTS:  # they are written anew, as the form has it now
        st.session_state.pop(f"{name}.problem", None)
        st.session_state.pop(f"{name}.given", None)
    form.fill(draft)
