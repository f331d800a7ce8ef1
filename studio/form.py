"""The training form, drawn from the schema: a field's widget, label, help and error come from `RunConfig`."""

from __future__ import annotations

import re
from math import isfinite
from typing import Any, Literal, get_args, get_origin

import streamlit as st

from fluxcore.alerts import load_targets
from fluxcore.config import GROUPS, VRAM_PRESETS, ConfigError, RunConfig, defaults, parse_config
from fluxcore.config.names import slugify
from fluxcore.errors import UserError
from fluxcore.models.registry import find_model, list_models, registry_problems

from . import typing_saver, words
from .drafts import Draft

LABELS = {
    "lora_name": "Name",
    "concept_sentence": "Trigger word",
    "base_model": "Base model",
    "vram": "GPU memory",
    "num_repeats": "Repeats per picture",
    "max_train_epochs": "Epochs",
    "max_train_steps": "Steps (instead of epochs)",
    "network_dim": "LoRA rank",
    "network_alpha": "LoRA alpha",
    "network_dropout": "LoRA dropout",
    "network_algo": "Kind of network",
    "use_rslora": "rsLoRA",
    "use_dora": "DoRA",
    "lokr_factor": "LoKr factor",
    "train_blocks": "Blocks",
    "train_double_block_indices": "Double blocks by number",
    "train_single_block_indices": "Single blocks by number",
    "train_layers": "Layers of a block",
    "ema_decay": "EMA decay",
    "validate_every_n_steps": "Measure held-out loss every N steps",
    "network_weights": "Continue from a LoRA file",
    "train_batch_size": "Batch size",
    "lr_scheduler": "Learning rate schedule",
    "lr_warmup_steps": "Warm-up steps",
    "max_grad_norm": "Gradient clipping",
    "optimizer_type": "Optimizer",
    "optimizer_args": "Arguments of the optimizer",
    "lr_scheduler_num_cycles": "Restarts of the schedule",
    "lr_scheduler_power": "Power of the polynomial schedule",
    "weighting_scheme": "Weighting of noise levels",
    "loss_type": "Loss",
    "huber_c": "Huber threshold",
    "logit_mean": "Middle of logit_normal",
    "logit_std": "Spread of logit_normal",
    "mode_scale": "Strength of mode",
    "caption_dropout_rate": "Caption dropout",
    "extra_resolutions": "Further resolutions",
    "enable_bucket": "Keep aspect ratios (buckets)",
    "min_bucket_reso": "Shortest side of a bucket",
    "max_bucket_reso": "Longest side of a bucket",
    "bucket_reso_steps": "Bucket sides are multiples of",
    "bucket_no_upscale": "Never enlarge pictures",
    "flip_aug": "Mirror pictures at random",
    "shuffle_caption": "Shuffle tags",
    "keep_tokens": "Tags kept in front",
    "shuffle_caption_forms": "Orders of tags per caption",
    "prior_loss_weight": "Weight of regularisation pictures",
    "dataset_config": "Dataset file of sd-scripts (TOML)",
    "validation_split": "Share of pictures held out",
    "gradient_accumulation_steps": "Batches per step (accumulation)",
    "discrete_flow_shift": "Timestep shift",
    "sample_prompts": "Sample prompts, one a line",
    "sample_at_first": "Draw samples before the first step too",
    "sample_every_n_steps": "Draw samples every N steps",
    "save_every_n_epochs": "Save every N epochs",
    "save_every_n_steps": "Save every N steps",
    "save_last_n_epochs_state": "Keep states of the last N epochs",
    "save_last_n_steps_state": "Keep states of the last N steps",
    "enable_checkpointing": "Keep checkpoints",
    "enable_monitoring": "Monitoring",
    "auto_resume": "Automatic resumes",
    "stall_seconds": "Stuck after (seconds)",
    "sample_gpu_seconds": "Look at the GPU every (seconds)",
    "stop_grace_seconds": "Time to save when stopped (seconds)",
    "alerts": "Alerts",
    "workers": "Reader threads",
    "gpu_ids": "GPUs (empty: any one)",
    "num_processes": "Processes (0: one a GPU)",
    "shard_base": "Base model split over the GPUs",
    "compile": "Compile the blocks",
    "gradient_checkpointing": "Gradient checkpointing",
    "fp8_base": "Base model in 8-bit floats",
    "gradient_checkpointing_interval": "Gradient checkpointing of every so-many-th block",
    "quantize_base": "Base model quantised",
    "blocks_to_swap": "Blocks kept in the host's memory",
    "encode_on_cpu": "Encode captions on the CPU",
    "mixed_precision": "Precision of the base model",
    "save_precision": "Precision of the saved LoRA",
    "lora_format": "Key names in the saved LoRA",
    "pretrained_model_name_or_path": "Transformer file",
    "ae": "Autoencoder file",
    "clip_l": "CLIP-L file",
    "t5xxl": "T5 file",
    "qwen3": "Qwen3 file",
    "tokenizer_cache_dir": "Tokenizers folder",
}
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
HELP = {"base_model": " flux-mini comes with FluxGym: it draws 64-pixel emoji and trains on a CPU in a minute."}
PLACEHOLDERS = {
    "lora_name": "my-cat",
    "concept_sentence": "a rare word, such as p3rs0n",
    "dataset_config": '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "cats"\nnum_repeats = 10',
    "sample_prompts": "p3rs0n on a beach --w 512 --h 512 --s 20 --g 3.5 --d 42",
}


def key(name: str) -> str:
    """The widget's key in the session."""
    return f"form.{name}"


def label(name: str) -> str:
    """What a person reads for a field."""
    return LABELS.get(name, name.replace("_", " ").capitalize())


def fill(draft: Draft) -> None:
    """Set every widget to the draft's value: on load, and where something else than the widget changed it.

    Until `drawn` is told that the page has shown them it is to be done again: of a page that an edit has drawn anew
    when it was halfway, Streamlit takes what the browser says of the other half.
    """
    st.session_state[_FILLED] = True
    for name in RunConfig.model_fields:
        st.session_state[key(name)] = _for_widget(name, draft.values.get(name))


def fill_missing(draft: Draft) -> None:
    """Set the widgets that have no value: Streamlit forgets those of a page that was left."""
    if st.session_state.get(_FILLED):
        fill(draft)
    for name in RunConfig.model_fields:
        if key(name) not in st.session_state:
            st.session_state[key(name)] = _for_widget(name, draft.values.get(name))


def drawn() -> None:
    """The page has been drawn to its end."""
    st.session_state.pop(_FILLED, None)


def field(name: str, draft: Draft, errors: dict[str, str]) -> None:
    """Draw one field, and what is wrong with it right below."""
    info = RunConfig.model_fields[name]
    default = defaults()[name]
    shown = f" Default: {default}." if default not in ("", None) else ""
    # What a browser says of a widget before it has heard of the draft is the widget's default: so that is the draft's
    # value too. (With Streamlit's own defaults a page opened on a busy machine emptied the draft it was to show.)
    value = _for_widget(name, draft.values.get(name))
    common: dict[str, Any] = {
        "label": label(name),
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


def edited(draft: Draft, name: str) -> None:
    """A widget changed: keep it at once, and let what follows the model or the preset follow."""
    value = st.session_state[key(name)]
    if typing_saver.is_stale(key(name)):
        st.session_state[key(name)] = _for_widget(name, draft.values.get(name))
        return
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
                st.session_state[key(other)] = _for_widget(other, draft.values.get(other))


def put_back(draft: Draft, name: str, text: str) -> None:
    """Keep what was typed in an earlier session, as if it were typed now."""
    kind: Any = RunConfig.model_fields[name].annotation
    try:
        value = kind(text)
    except ValueError:  # half typed: no number yet
        return
    if value == _for_widget(name, value):
        stood = _for_widget(name, draft.values.get(name))
        _set(draft, name, value)
        typing_saver.was_put_back(key(name), stood)


def is_typed(name: str) -> bool:
    """Whether a field is typed, not picked or ticked."""
    return RunConfig.model_fields[name].annotation in (int, float, str) and name not in CHOSEN


def is_same(value: Any, text: str) -> bool:
    """Whether a field that shows `text` has this value."""
    try:
        return bool(type(value)(text) == value)
    except ValueError:
        return False


def say_overwritten(name: str, stood: Any) -> None:
    """What another tab had set meanwhile, and that it stands no more."""
    text = f"Another tab had set {label(name)} to “{words.escape(str(stood)[:200])}”; what you set here stands now"
    typing_saver.say_at_the_end(text)


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


def advanced(draft: Draft, errors: dict[str, str]) -> None:
    """Every other setting by group, narrowed by a word or to what was changed."""
    wanted = st.text_input(
        "Find a setting",
        key="form-find",
        placeholder="Find a setting: rank, seed, stall …",
        live=True,
        type="search",
        label_visibility="collapsed",
    )
    changed = draft.changed()
    only = st.toggle(f"Changed only ({len(changed)})", key="form-changed", disabled=not changed) and bool(changed)
    found = False
    for group, title in GROUPS.items():
        names = [
            name
            for name, info in RunConfig.model_fields.items()
            if group_of(name) == group
            and name not in (*PROMINENT, *SAMPLES, *START, *ELSEWHERE)
            and (wanted or "").lower() in f"{name} {label(name)} {info.description}".lower()
            and (not only or name in changed or name in errors)
        ]
        if not names:
            continue
        found = True
        st.markdown(f"**{title}**")
        for name in names:
            field(name, draft, errors)
            if name in changed:
                usual = "yes" if changed[name] is True else "no" if changed[name] is False else changed[name]
                with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
                    st.markdown(":violet-badge[:material/edit: changed]", width="content")
                    st.button(
                        f"back to {words.escape(str(usual)) or 'empty'}",
                        key=f"usual-{name}",
                        type="tertiary",
                        help=f"{label(name)} as the defaults, the memory preset and the base model have it",
                        on_click=_back_to_usual,
                        args=(draft, name),
                    )
    if not found:
        st.caption("No setting has that word.")


def trigger_into_prompts(draft: Draft) -> None:
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
        on_click=_set,
        args=(draft, "sample_prompts", wanted),
    )


def with_trigger(prompts: str, trigger: str) -> str:
    """`prompts`, a line each, with the trigger word in front of those that have it nowhere; comments stay."""
    if not trigger:
        return prompts
    there = re.compile(rf"(?<!\w){re.escape(trigger)}(?!\w)", re.IGNORECASE)
    return "\n".join(
        line if not line.strip() or line.lstrip().startswith("#") or there.search(line) else f"{trigger}, {line}"
        for line in prompts.split("\n")
    )


def _set(draft: Draft, name: str, value: Any) -> None:
    st.session_state[key(name)] = value
    edited(draft, name)


def _back_to_usual(draft: Draft, name: str) -> None:
    usual = draft.changed().get(name)
    try:
        draft.edit({name: usual}, touched=draft.touched - {name}, forget=True)
        st.session_state[key(name)] = _for_widget(name, draft.values[name])
    except UserError as error:
        st.session_state["train.problem"] = str(error)


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
