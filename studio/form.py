"""The training form, drawn from the schema: a field's widget, label, help and error come from `RunConfig`."""

from __future__ import annotations

from math import isfinite
from typing import Any, Literal, get_args, get_origin

import streamlit as st

from fluxcore.alerts import load_targets
from fluxcore.config import VRAM_PRESETS, ConfigError, RunConfig, defaults, parse_config
from fluxcore.config.names import slugify
from fluxcore.errors import UserError
from fluxcore.models.registry import find_model, list_models, registry_problems

from . import typing_saver, words
from .drafts import Draft
from .labels import HELP, PLACEHOLDERS, caution, label_of

_FILLED = "form.filled"
LARGEST = 2**53 - 1
"""A browser has no larger whole number."""
PROMINENT = ("lora_name", "concept_sentence", "base_model", "vram", "num_repeats", "max_train_epochs", "resolution")


def group_of(name: str) -> str:
    """The form group of a field."""
    extra: Any = RunConfig.model_fields[name].json_schema_extra
    return str(extra["group"])


SAMPLES = tuple(name for name in RunConfig.model_fields if group_of(name) == "samples")
START = ("enable_checkpointing", "enable_monitoring")
# A new run begins afresh; going on from a checkpoint is asked for on the run's own page.
ELSEWHERE = ("resume_from_checkpoint",)
CHOSEN = ("base_model", "vram", "alerts")
"""Texts that are picked from a list, not typed."""


def key(name: str) -> str:
    """The widget's key in the session."""
    return f"form.{name}"


def fill(draft: Draft) -> None:
    """Set every widget to the draft's value: on load, and where something else than the widget changed it.

    Until `drawn` is told that the page has shown them it is to be done again: of a page that an edit has drawn anew
    when it was halfway, Streamlit takes what the browser says of the other half.
    """
    st.session_state[_FILLED] = True
    for name in RunConfig.model_fields:
        show(draft, name)


def show(draft: Draft, name: str) -> None:
    """Set one widget to the draft's value."""
    st.session_state[key(name)] = _for_widget(name, draft.values.get(name))


def fill_missing(draft: Draft) -> None:
    """Set the widgets that have no value: Streamlit forgets those of a page that was left."""
    if st.session_state.get(_FILLED):
        fill(draft)
    for name in RunConfig.model_fields:
        if key(name) not in st.session_state:
            show(draft, name)


def drawn() -> None:
    """The page has been drawn to its end."""
    st.session_state.pop(_FILLED, None)


def field(name: str, draft: Draft, errors: dict[str, str], usual: dict[str, Any]) -> None:
    """Draw one field, and what is wrong with it right below. `usual`: see `Draft.usual`."""
    info = RunConfig.model_fields[name]
    default = defaults()[name]
    shown = f" Default: {default}." if default not in ("", None) else ""
    if name not in CHOSEN and usual[name] != default:
        # The base model's own, the memory preset's, or what was set on the page Settings.
        shown = f" Default here: {words.escape(str(usual[name]))} (elsewhere {'empty' if default == '' else default})."
    # What a browser says of a widget before it has heard of the draft is the widget's default: so that is the draft's
    # value too. (With Streamlit's own defaults a page opened on a busy machine emptied the draft it was to show.)
    value = _for_widget(name, draft.values.get(name))
    common: dict[str, Any] = {
        "label": label_of(name),
        "key": key(name),
        "help": f"{info.description}{HELP.get(name, '')}{shown} (`{name}`)",
        "on_change": edited,
        "args": (draft, name),
    }
    if name == "base_model":
        options = list(dict.fromkeys([*(model.name for model in list_models()), value]))
        st.selectbox(
            options=options,
            index=options.index(value),
            format_func=_model_title,
            accept_new_options=True,
            placeholder="A model, or the path of a folder with one",
            **common,
        )
        for problem in registry_problems():
            st.caption(f":orange[:material/warning: {problem}]")
    elif name == "vram":
        st.segmented_control(options=list(VRAM_PRESETS), default=value, required=True, width="stretch", **common)
    elif name in ("sample_prompts", "dataset_config"):
        st.text_area(value=value, height=120, placeholder=PLACEHOLDERS.get(name, ""), **common)
    elif name == "alerts":  # chosen, never typed: a draft keeps every letter, and an address holds a secret
        options = _alert_choices(draft)
        st.selectbox(options=options, index=options.index(value), **common)
    elif get_origin(info.annotation) is Literal:
        options = list(get_args(info.annotation))
        st.selectbox(options=options, index=options.index(value), **common)
    elif info.annotation is bool:
        st.checkbox(value=value, **common)
    elif info.annotation is int:
        st.number_input(value=value, step=1, **common)
    elif info.annotation is float:
        st.number_input(value=value, format="%g", step=_step(default), **common)
    else:
        st.text_input(value=value, live=True, placeholder=PLACEHOLDERS.get(name, ""), **common)
    if name in errors:
        st.markdown(f":red[:material/error: {errors[name]}]")
    elif said := caution(name, value, draft.values.get("enable_monitoring")):
        st.caption(f":orange[:material/warning: {said}]")


def edited(draft: Draft, name: str) -> None:
    """A widget changed: keep it at once, and let what follows the model or the preset follow."""
    value = st.session_state[key(name)]
    if typing_saver.is_stale(key(name)):
        return show(draft, name)
    if value == _for_widget(name, draft.values.get(name)):  # a browser at a new server reports every widget as changed
        typing_saver.is_kept(key(name), value)
        return
    before = dict(draft.values)
    try:
        draft.edit({name: value})
    except UserError as error:
        st.session_state["train.problem"] = str(error)
        return
    st.session_state.pop("train.problem", None)
    typing_saver.is_kept(key(name), value)
    if name in draft.overwritten:
        say_overwritten(name, draft.overwritten[name])
    if name in ("base_model", "vram"):
        for other in RunConfig.model_fields:  # what was typed elsewhere and comes with the same message stays
            if st.session_state.get(key(other)) == _for_widget(other, before.get(other)):
                show(draft, other)


def put_back(draft: Draft, name: str, text: str) -> None:
    """Keep what was typed and has not come from the field, as if it came now."""
    kind: Any = RunConfig.model_fields[name].annotation
    try:
        value = kind(text)
    except ValueError:  # half typed: no number yet
        value = None
    stood = _for_widget(name, draft.values.get(name))
    if value is None or value != _for_widget(name, value):
        typing_saver.is_kept(key(name), text)  # it can't be, and need not be told again
    elif value == stood == st.session_state.get(key(name)):
        typing_saver.is_kept(key(name), value)
    else:
        set_value(draft, name, value)
        typing_saver.was_put_back(key(name), stood)


def is_typed(name: str) -> bool:
    """Whether a field is typed, not picked or ticked."""
    return RunConfig.model_fields[name].annotation in (int, float, str) and name not in CHOSEN


def say_overwritten(name: str, stood: Any) -> None:
    """What another tab had set meanwhile, and that it stands no more."""
    text = f"Another tab had set {label_of(name)} to “{words.escape(str(stood)[:200])}”; what you set here stands now"
    typing_saver.say_of_another({key(name): stood}, lambda _: text)


def say_changed(draft: Draft, names: list[str]) -> None:
    """What another tab has set, and is shown here now."""

    def text(keys: list[str]) -> str:
        labels = [label_of(name) for name in names if key(name) in keys]
        return "Changed in another tab, and here now: " + ", ".join(labels[:6]) + (" …" if len(labels) > 6 else "")

    stood = {key(name): draft.values[name] for name in names}
    typing_saver.say_of_another(stood, text, ":material/sync:")


def check(draft: Draft) -> tuple[RunConfig | None, dict[str, str]]:
    """The draft as a config under its slugified name, or what is wrong, field by field."""
    values = {**draft.values, "lora_name": slugify(str(draft.values["lora_name"]))}
    errors: dict[str, str] = {}
    try:
        find_model(str(values["base_model"]))
    except UserError as error:
        errors["base_model"] = str(error)
    try:
        config = parse_config(values)
    except ConfigError as error:
        # At its field, and in a list under its label, a sentence needs no name of its own.
        return None, errors | {name: text.removeprefix(f"{name} ") for name, text in error.fields.items()}
    return (None, errors) if errors else (config, errors)


def set_value(draft: Draft, name: str, value: Any) -> None:
    """Set a field and keep it, as if a person had."""
    st.session_state[key(name)] = value
    edited(draft, name)


def _model_title(name: str) -> str:
    try:
        return find_model(name).title
    except UserError:
        return name


def _alert_choices(draft: Draft) -> list[str]:
    """All, nobody, each target, and what the draft says."""
    try:
        names = [target.name for target in load_targets(draft.outputs)]
    except UserError:
        names = []
    return list(dict.fromkeys(["all", "off", *names, str(draft.values["alerts"])]))


def _step(default: float) -> float:
    return 1.0 if default >= 5 else 0.1 if default >= 1 else 0.05


def _for_widget(name: str, value: Any) -> Any:
    """A value of the type its widget wants; the default where a draft holds something else."""
    info, default = RunConfig.model_fields[name], defaults()[name]
    try:
        if info.annotation is bool:
            return bool(value)
        if info.annotation is int:
            return max(-LARGEST, min(int(value), LARGEST))
        if info.annotation is float:
            return number if isfinite(number := float(value)) else default
    except (TypeError, ValueError, OverflowError):
        return default
    if get_origin(info.annotation) is Literal:
        return value if value in get_args(info.annotation) else default
    if name == "vram":
        return value if value in VRAM_PRESETS else default
    return default if value is None else str(value)
