"""ai-toolkit's configs (YAML, `config/examples/*.yaml` there) as FluxGym's settings.

Each key is mapped, of no matter here, or named as left out. What several keys say together is kept under names that
begin with -- until all of them are read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from fluxcore.models.registry import list_models

from .foreign_values import NOTHING, ForeignError, Left, allowed, fields_only, optimizer, resolution
from .names import slugify


def from_ai_toolkit(values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """ai-toolkit's YAML with one process of type sd_trainer on FLUX.1 or klein. Raises ForeignError for another."""
    config = values["config"]
    processes = config.get("process") or []
    if len(processes) != 1 or not isinstance(processes[0], dict) or processes[0].get("type") not in TRAINERS:
        raise ForeignError("it has not just one process of type sd_trainer")
    process = dict(processes[0])
    found: dict[str, Any] = {"lora_name": slugify(str(config.get("name", ""))), **_DEFAULTS_THERE}
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
    _settle(found, left)
    found |= {"concept_sentence": process.pop("trigger_word")} if process.get("trigger_word") else {}
    left += [key for key in process if key not in ("type", "training_folder", "device", "trigger_word")]
    if prompts := found.get("sample_prompts"):
        found["sample_prompts"] = prompts.replace("[trigger]", str(found.get("concept_sentence", "")))
    _sample_flags(found)
    return fields_only(found, left)


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
        return {name: meant} if allowed(name, meant) else None

    return rule


def _only(*values: Any) -> Callable[[Any], dict[str, Any] | None]:
    """A rule: these values are what is done here anyway; any other is left out."""
    return lambda value: {} if value in values else None


def _settle(found: dict[str, Any], left: Left) -> None:
    """What several keys say together."""
    batches = found.pop("--batches a step", 1)
    for name in ("max_train_steps", "save_every_n_steps", "sample_every_n_steps"):
        if batches > 1 and isinstance(found.get(name), int):  # there each batch counts as a step
            found[name] = math.ceil(found[name] / batches)
    if found.pop("--no samples", False):
        found["sample_every_n_steps"] = 0
    if found.pop("--full rank", False) and found.get("network_algo") == "lokr":
        left.append("network.lokr_full_rank")
    if not found.get("fp8_base"):
        found.pop("quantize_base", None)
    elif found.get("use_dora"):  # which measures whole weights here
        found |= {"fp8_base": False, "quantize_base": "none"}
        left.append("model.quantize")


def _network(value: Any) -> dict[str, Any] | None:
    kinds: dict[str, dict[str, Any]] = {
        "lora": {},
        "dora": {"use_dora": True},
        "lokr": {"network_algo": "lokr"},
        "loha": {"network_algo": "loha"},
    }
    return kinds.get(str(value).lower())


def _sizes(value: Any) -> dict[str, Any] | None:
    """Each picture is trained at every one of them, there as here."""
    largest = resolution(value)
    if largest is None or not isinstance(value, list):
        return largest
    sides = sorted({max(16, int(side) // 16 * 16) for side in value} - {largest["resolution"]})
    return {**largest, "extra_resolutions": ",".join(map(str, sides))}


def _accumulated(value: Any) -> dict[str, Any] | None:
    """So many batches a step, from 1 (which says nothing); -1, there a whole epoch, is left out."""
    if not isinstance(value, int) or value < 1:
        return None
    return {"gradient_accumulation_steps": value} if value > 1 else {}


def _accumulated_steps(value: Any) -> dict[str, Any] | None:
    """The older key for the same: each of the batches counts as a step."""
    taken = _accumulated(value)
    return {**taken, "--batches a step": value} if taken else taken


def _average(value: Any) -> dict[str, Any] | None:
    if not isinstance(value, Mapping) or not value.get("use_ema"):
        return {}
    return {"ema_decay": value.get("ema_decay", 0.999)}


def _arguments(value: Any) -> dict[str, Any] | None:
    """The optimizer's own arguments, numbers and pairs of them."""
    if not isinstance(value, Mapping):
        return None
    words = (one if isinstance(one, list) else [one] for one in value.values())
    pairs = (f"{name}={','.join(map(str, some))}" for name, some in zip(value, words, strict=True))
    return {"optimizer_args": " ".join(pairs)}


def _samples(value: Any) -> dict[str, Any] | None:
    """Prompts with sizes and seeds of their own."""
    if not isinstance(value, list) or not all(isinstance(one, Mapping) and one.get("prompt") for one in value):
        return None
    flags = {"width": "--w", "height": "--h", "seed": "--d"}
    lines = (
        [str(one["prompt"]).replace("\n", " "), *(f"{flag} {one[key]}" for key, flag in flags.items() if one.get(key))]
        for one in value
    )
    return {"sample_prompts": "\n".join(map(" ".join, lines))}


def _base(value: Any) -> dict[str, Any]:
    return {"base_model": next((model.name for model in list_models() if model.repo == value), str(value))}


_DEFAULTS_THERE = {"enable_bucket": True, "timestep_sampling": "sigmoid"}
"""What a job that says nothing of it gets there, and would not here."""
_PRECISIONS = {"float16": "fp16", "bfloat16": "bf16", "float32": "float"}
_TIMESTEPS = {"linear": "uniform", "shift": "flux_shift"}
_QUANTISED: dict[str, dict[str, Any]] = {"qfloat8": {}, "float8": {}, "qint8": {"quantize_base": "int8"}}
TOOLKIT: dict[str, dict[str, Any]] = {
    "model": {
        "name_or_path": _base,
        "is_flux": None,
        "arch": None,
        "quantize": lambda value: {"fp8_base": bool(value)},
        "qtype": lambda value: _QUANTISED.get(str(value)),
        "quantize_te": None,
        "qtype_te": None,
        "low_vram": None,
    },
    "network": {
        "type": _network,
        "linear": "network_dim",
        "linear_alpha": "network_alpha",
        "rank": "network_dim",
        "alpha": "network_alpha",
        "dropout": "network_dropout",
        "conv": None,  # FLUX has no convolutions
        "conv_alpha": None,
        "lokr_factor": "lokr_factor",
        "lokr_full_rank": lambda value: {"--full rank": bool(value)},
        "network_kwargs": _only({}, {"ignore_if_contains": []}),
    },
    "save": {
        "dtype": _one_of("save_precision", _PRECISIONS),
        "save_every": "save_every_n_steps",
        "push_to_hub": _only(False),
    },
    "datasets": {
        "folder_path": None,
        "caption_ext": _only("txt", ".txt"),
        "caption_dropout_rate": "caption_dropout_rate",
        "shuffle_tokens": lambda value: {"shuffle_caption": bool(value)},
        "keep_tokens": "keep_tokens",
        "flip_x": lambda value: {"flip_aug": bool(value)},
        "buckets": lambda value: {"enable_bucket": bool(value)},
        "bucket_tolerance": "bucket_reso_steps",
        "cache_latents": None,
        "cache_latents_to_disk": None,
        "resolution": _sizes,
        "num_repeats": "num_repeats",
    },
    "train": {
        "batch_size": "train_batch_size",
        "steps": "max_train_steps",
        "gradient_accumulation": _accumulated,
        "gradient_accumulation_steps": _accumulated_steps,
        "train_unet": _only(True),
        "train_text_encoder": _only(False),
        "gradient_checkpointing": "gradient_checkpointing",
        "noise_scheduler": _only("flowmatch"),
        "optimizer": lambda value: optimizer(value),
        "optimizer_params": _arguments,
        "lr_scheduler": _one_of("lr_scheduler", {}),
        "timestep_type": _one_of("timestep_sampling", _TIMESTEPS),
        "loss_type": _one_of("loss_type", {"mse": "l2"}),
        "ema_config": _average,
        "cache_text_embeddings": None,
        "unload_text_encoder": None,
        "lr": lambda value: {"learning_rate": str(value)},
        "dtype": _one_of("mixed_precision", {**_PRECISIONS, "float32": "no"}),
        "skip_first_sample": lambda value: {"sample_at_first": not value},
        "disable_sampling": lambda value: {"--no samples": bool(value)},
        "max_grad_norm": "max_grad_norm",
    },
    "sample": {
        "sampler": _only("flowmatch"),
        "sample_every": lambda value: {"sample_every_n_steps": value},
        "sample_start_step": _only(0),
        "width": lambda value: {"--w": value},
        "height": lambda value: {"--h": value},
        "samples": _samples,
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
    """Width, height, steps and guidance of all samples, as flags behind each prompt that has none of its own."""
    flags = {flag: f" {flag} {found.pop(flag)}" for flag in ("--w", "--h", "--s", "--g") if flag in found}
    if flags and found.get("sample_prompts"):
        found["sample_prompts"] = "\n".join(
            line + "".join(words for flag, words in flags.items() if f" {flag} " not in line)
            for line in found["sample_prompts"].splitlines()
        )
