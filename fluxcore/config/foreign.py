"""Configs of other trainers: kohya's (the GUI's JSON, sd-scripts' TOML) and ai-toolkit's (YAML) as FluxGym's settings.

Each key is mapped, or named as left out: nothing is dropped in silence. Layouts as in the projects' own files:
kohya_ss `presets/lora/*.json`, sd-scripts `--config_file`, ai-toolkit `config/examples/*.yaml`.
"""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from typing import Any

from fluxcore.errors import UserError
from fluxcore.trainers import DEFAULT_TRAINER

from .names import slugify
from .portable import from_export
from .schema import RunConfig

Left = list[str]
WINDOWS = re.compile(r"[A-Za-z]:[\\/]")


class ForeignError(UserError):
    """A file that is no config of a known kind."""


def read_config(text: str, suffix: str) -> tuple[dict[str, Any], list[str]]:
    """The settings in a config file, and the names of its keys that were left out. Raises ForeignError.

    `suffix` (.json, .toml, .yaml, .yml) says how it is written; whose it is, its keys.
    """
    values = _parsed(text, suffix)
    if not isinstance(values, dict):
        raise ForeignError("it is no set of settings")
    if "config" in values and isinstance(values["config"], dict) and "process" in values["config"]:
        return from_ai_toolkit(values)
    if suffix == ".toml" or "LoRA_type" in values or "output_name" in values:
        return from_kohya(values)
    return from_export(values)


def _parsed(text: str, suffix: str) -> Any:
    try:
        if suffix == ".toml":
            return tomllib.loads(text)
        if suffix in (".yaml", ".yml"):
            import yaml

            return yaml.safe_load(text)
        return json.loads(text)
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as error:
        raise ForeignError(f"it is not {suffix[1:].upper()} ({error})") from None
    except Exception as error:  # yaml's own errors, whose module may be missing at this point
        if type(error).__module__.startswith("yaml"):
            first = " ".join(str(error).split())
            raise ForeignError(f"it is not YAML ({first})") from None
        raise


# kohya: the GUI's names where they are others than sd-scripts'.
GUI_NAMES = {"optimizer": "optimizer_type", "max_resolution": "resolution"}
OPTIMIZERS = {"adamw": "adamw", "adamw8bit": "adamw", "pagedadamw": "adamw", "pagedadamw8bit": "adamw"}
NOTHING = ("", None, False, 0, "0", "none", "None")
"""A key that is switched off asks for nothing, so that leaving it out changes nothing."""

KEPT = (
    "ae", "clip_l", "discrete_flow_shift", "fp8_base", "blocks_to_swap", "gradient_checkpointing", "guidance_scale",
    "learning_rate", "max_grad_norm", "max_train_epochs", "max_train_steps", "network_alpha", "network_dim",
    "network_dropout", "network_weights", "pretrained_model_name_or_path", "sample_at_first", "sample_every_n_steps",
    "sample_prompts", "save_every_n_epochs", "save_every_n_steps", "seed", "sigmoid_scale", "t5xxl",
    "train_batch_size", "caption_dropout_rate", "lr_warmup_steps", "save_last_n_epochs_state",
    "save_last_n_steps_state",
)  # fmt: skip
"""Settings that mean there what they mean here."""


def from_kohya(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """kohya's GUI or sd-scripts' config file; TOML tables are only for the eye, as sd-scripts read them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= value if isinstance(value, dict) else {key: value}
    gui = "LoRA_type" in flat
    found: dict[str, Any] = {}
    left: Left = []
    if gui and flat["LoRA_type"] != "Flux1":
        raise ForeignError(f"it trains {flat['LoRA_type']}, not a LoRA of FLUX.1")
    for given, value in flat.items():
        name = GUI_NAMES.get(given, given) if gui else given
        if given in ("LoRA_type", "flux1_checkbox", "epoch"):
            continue
        taken = _kohya_value(name, value)
        if taken is not None:
            found |= taken
        elif not _asks_for_nothing(name, value):
            left.append(given)
    found.setdefault("base_model", "flux-dev")
    if gui and flat.get("unet_lr"):  # the GUI's own rule: what trains here is the transformer alone
        found["learning_rate"] = str(flat["unet_lr"])
        left = [name for name in left if name != "unet_lr"]
    found.pop("max_train_epochs", None)
    epochs = flat.get("max_train_epochs") or (0 if flat.get("max_train_steps") else flat.get("epoch"))
    if epochs:  # there epochs win over steps
        found |= {"max_train_epochs": epochs, "max_train_steps": 0}
    return _fields_only(found, left)


def _kohya_value(name: str, value: Any) -> dict[str, Any] | None:
    """What a key of kohya's sets, or None where this project has nothing for it."""
    if name == "output_name":
        return {"lora_name": slugify(str(value))} if value else {}
    if name == "resolution":
        return _resolution(value)
    if name == "optimizer_type":
        return _optimizer(value)
    if name in ("lr_scheduler", "timestep_sampling", "mixed_precision", "save_precision"):
        return {name: value} if _allowed(name, value) else None
    if name in ("save_state", "save_state_on_train_end"):
        return {"enable_checkpointing": True} if value else {}
    if name == "max_data_loader_n_workers":
        return {"workers": value}
    if name == "resume":
        return {}  # a state of another machine; a run is resumed from its own
    if name in KEPT or (name in RunConfig.model_fields and name not in ("trainer", "vram", "base_model")):
        if value is None or value == "":
            return {}
        if isinstance(value, str) and (WINDOWS.match(value) or (name == "sample_prompts" and value.endswith(".txt"))):
            return None  # a file of another machine
        return {name: str(value) if name == "learning_rate" else value}
    return None


def _optimizer(value: Any) -> dict[str, Any] | None:
    """The same optimizer, or its relative with moments in 32 bit."""
    kind = str(value).lower()
    kind = kind if _allowed("optimizer_type", kind) else OPTIMIZERS.get(kind, kind)
    return {"optimizer_type": kind} if _allowed("optimizer_type", kind) else None


def _asks_for_nothing(name: str, value: Any) -> bool:
    return value in NOTHING or name in _OF_NO_MATTER or (name in _DEFAULT_THERE and value == _DEFAULT_THERE[name])


_OF_NO_MATTER = frozenset(
    (
        "cache_latents cache_latents_to_disk cache_text_encoder_outputs cache_text_encoder_outputs_to_disk highvram "
        "flux1_cache_text_encoder_outputs flux1_cache_text_encoder_outputs_to_disk output_dir logging_dir "
        "persistent_data_loader_workers sdpa xformers save_model_as network_module num_cpu_threads_per_process "
        "network_train_unet_only num_processes num_machines main_process_port dynamo_backend dynamo_mode model_list "
        "train_data_dir"
    ).split()
)
"""What is always so here (encodings kept, PyTorch's attention, safetensors), or a matter of their machine."""

_DEFAULT_THERE = {"loss_type": "l2", "model_prediction_type": "raw", "train_blocks": "all", "caption_extension": ".txt"}


def from_ai_toolkit(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """ai-toolkit's YAML with one process of type sd_trainer on FLUX.1. Raises ForeignError for another."""
    config = values["config"]
    processes = config.get("process") or []
    if len(processes) != 1 or not isinstance(processes[0], dict) or processes[0].get("type") not in TRAINERS:
        raise ForeignError("it has not just one process of type sd_trainer")
    process = dict(processes[0])
    found: dict[str, Any] = {"lora_name": slugify(str(config.get("name", "")))}
    left: Left = [f"config.{key}" for key in config if key not in ("name", "process")]
    left += [key for key in values if key not in ("job", "config", "meta")]
    model = process.pop("model", {}) or {}
    if not (model.get("is_flux") or str(model.get("arch", "")).startswith("flux")):
        raise ForeignError(f"it trains {model.get('name_or_path', 'another model')}, not FLUX.1")
    for group, table in TOOLKIT.items():
        part = process.pop(group, None) if group != "model" else model
        parts = _listed(part)
        for index, one in enumerate(parts):
            where = f"{group}[{index}]" if len(parts) > 1 else group
            _take(one, table, found, left, where, first=index == 0)
    sizes = [one.get("resolution") for one in _listed(config["process"][0].get("datasets"))]
    if any(isinstance(size, list) and len(size) > 1 for size in sizes):
        left.append("datasets.resolution (all but the largest)")
    found |= {"concept_sentence": process.pop("trigger_word")} if process.get("trigger_word") else {}
    left += [key for key in process if key not in ("type", "training_folder", "device", "trigger_word")]
    if prompts := found.get("sample_prompts"):
        found["sample_prompts"] = prompts.replace("[trigger]", str(found.get("concept_sentence", "")))
    _sample_flags(found)
    return _fields_only(found, left)


def _listed(part: Any) -> list[dict[str, Any]]:
    return [one or {} for one in part] if isinstance(part, list) else [part or {}]


TRAINERS = ("sd_trainer", "diffusion_trainer", "ui_trainer")


def _take(
    part: Mapping[str, Any], table: Mapping[str, Any], found: dict[str, Any], left: Left, where: str, *, first: bool
) -> None:
    """Map the keys of one part by `table`: a setting's name, a function of the value, or None for of no matter."""
    for key, value in part.items():
        if key not in table or not first:
            if value not in NOTHING:
                left.append(f"{where}.{key}")
            continue
        rule = table[key]
        if rule is None:
            continue
        taken = {rule: value} if isinstance(rule, str) else rule(value)
        if taken is None:
            if value not in NOTHING:
                left.append(f"{where}.{key}")
        else:
            found |= taken


def _one_of(name: str, names: Mapping[str, str]) -> Callable[[Any], dict[str, Any] | None]:
    """A rule: the setting `name` takes what `names` makes of the value, where it allows that."""

    def rule(value: Any) -> dict[str, Any] | None:
        meant = names.get(str(value).lower(), str(value).lower())
        return {name: meant} if _allowed(name, meant) else None

    return rule


def _only(*values: Any) -> Callable[[Any], dict[str, Any] | None]:
    """A rule: these values are what is done here anyway; any other is left out."""
    return lambda value: {} if value in values else None


_PRECISIONS = {"float16": "fp16", "bfloat16": "bf16", "float32": "float"}
_MODELS = {"black-forest-labs/FLUX.1-dev": "flux-dev", "black-forest-labs/FLUX.1-schnell": "flux-schnell"}
TOOLKIT: dict[str, dict[str, Any]] = {
    "model": {
        "name_or_path": lambda value: {"base_model": _MODELS.get(str(value), str(value))},
        "is_flux": None,
        "arch": None,
        "quantize": lambda value: {"fp8_base": bool(value)},
        "quantize_te": None,
        "low_vram": None,
    },
    "network": {"type": _only("lora"), "linear": "network_dim", "linear_alpha": "network_alpha"},
    "save": {
        "dtype": _one_of("save_precision", _PRECISIONS),
        "save_every": "save_every_n_steps",
        "push_to_hub": _only(False),
    },
    "datasets": {
        "folder_path": None,
        "caption_ext": _only("txt", ".txt"),
        "caption_dropout_rate": "caption_dropout_rate",
        "shuffle_tokens": _only(False),
        "cache_latents_to_disk": None,
        "resolution": lambda value: _resolution(value),
        "num_repeats": "num_repeats",
    },
    "train": {
        "batch_size": "train_batch_size",
        "steps": "max_train_steps",
        "gradient_accumulation_steps": _only(1),
        "gradient_accumulation": _only(1),
        "train_unet": _only(True),
        "train_text_encoder": _only(False),
        "gradient_checkpointing": "gradient_checkpointing",
        "noise_scheduler": _only("flowmatch"),
        "optimizer": lambda value: _optimizer(value),
        "lr": lambda value: {"learning_rate": str(value)},
        "dtype": _one_of("mixed_precision", {**_PRECISIONS, "float32": "no"}),
        "skip_first_sample": lambda value: {"sample_at_first": not value},
        "disable_sampling": lambda value: {"sample_every_n_steps": 0} if value else {},
        "max_grad_norm": "max_grad_norm",
    },
    "sample": {
        "sampler": _only("flowmatch"),
        "sample_every": lambda value: {"sample_every_n_steps": value},
        "sample_start_step": _only(0),
        "width": lambda value: {"--w": value},
        "height": lambda value: {"--h": value},
        "prompts": lambda value: {"sample_prompts": "\n".join(str(line) for line in value)},
        "neg": _only(""),
        "seed": lambda value: {"seed": value},
        "walk_seed": _only(True),
        "guidance_scale": lambda value: {"--g": value},
        "sample_steps": lambda value: {"--s": value},
    },
}
"""ai-toolkit's keys by part. Samples walk through seeds from `seed` on here too, one for each prompt."""


def _sample_flags(found: dict[str, Any]) -> None:
    """Width, height, steps and guidance of all samples, as flags behind each prompt."""
    flags = " ".join(f"{flag} {found.pop(flag)}" for flag in ("--w", "--h", "--s", "--g") if flag in found)
    if flags and found.get("sample_prompts"):
        found["sample_prompts"] = "\n".join(f"{line} {flags}" for line in found["sample_prompts"].splitlines())


def _resolution(value: Any) -> dict[str, Any] | None:
    """One number, "512,512", or [512, 768, 1024]: a square of the same area, or the largest of several; None where
    that is none of this trainer's sizes."""
    parts = value if isinstance(value, list) else str(value).split(",")
    try:
        numbers = [int(part) for part in parts]
    except (TypeError, ValueError):
        return None
    if not numbers:
        return None
    side = max(numbers) if isinstance(value, list) else math.isqrt(numbers[0] * numbers[-1])
    return {"resolution": max(16, side // 16 * 16)}


def _allowed(name: str, value: Any) -> bool:
    """Whether a setting of a few values has this one."""
    annotation = RunConfig.model_fields[name].annotation
    return value in getattr(annotation, "__args__", ())


def _fields_only(found: dict[str, Any], left: Left) -> tuple[dict[str, Any], list[str]]:
    """What is a setting; the rest joins the names left out."""
    known = {name: value for name, value in found.items() if name in RunConfig.model_fields}
    known.setdefault("trainer", DEFAULT_TRAINER)
    return known, sorted({*left, *(name for name in found if name not in known)})
