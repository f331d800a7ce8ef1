"""Configs of other trainers: kohya's (the GUI's JSON, sd-scripts' TOML) and ai-toolkit's (YAML) as FluxGym's settings.

Each key is mapped, or named as left out: nothing is dropped in silence. Layouts as in the projects' own files:
kohya_ss `presets/lora/*.json`, sd-scripts `--config_file`, ai-toolkit `config/examples/*.yaml`.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from .ai_toolkit import from_ai_toolkit
from .foreign_values import NOTHING, ForeignError, Left, allowed, fields_only, optimizer, resolution
from .names import slugify
from .portable import from_export
from .schema import RunConfig

WINDOWS = re.compile(r"[A-Za-z]:[\\/]")


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

KEPT = (
    "ae", "clip_l", "discrete_flow_shift", "fp8_base", "blocks_to_swap", "gradient_checkpointing", "guidance_scale",
    "learning_rate", "max_grad_norm", "max_train_epochs", "max_train_steps", "network_alpha", "network_dim",
    "network_dropout", "network_weights", "pretrained_model_name_or_path", "sample_at_first", "sample_every_n_steps",
    "sample_prompts", "save_every_n_epochs", "save_every_n_steps", "seed", "sigmoid_scale", "t5xxl",
    "train_batch_size", "caption_dropout_rate", "lr_warmup_steps", "save_last_n_epochs_state",
    "save_last_n_steps_state",
)  # fmt: skip
"""Settings that mean there what they mean here."""
_NETWORK_ARGS = ("train_blocks", "train_double_block_indices", "train_single_block_indices")
"""Those that sd-scripts takes within `network_args`."""


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
        if name == "network_args":
            found |= _network_args(value, left)
            continue
        if name == "lr_warmup_steps" and isinstance(value, float) and 0 < value < 1:  # there a share of all steps
            steps = flat.get("max_train_steps")
            if not steps or flat.get("max_train_epochs"):
                left.append(given)
                continue
            value = round(value * steps)
        taken = _kohya_value(name, value)
        if taken is not None:
            found |= taken
        elif not _asks_for_nothing(name, value):
            left.append(given)
    found.setdefault("base_model", "flux-dev")
    if flat.get("unet_lr"):  # the rule of both: what trains here is the transformer alone
        found["learning_rate"] = str(flat["unet_lr"])
        left = [name for name in left if name != "unet_lr"]
    found.pop("max_train_epochs", None)
    epochs = flat.get("max_train_epochs") or (0 if flat.get("max_train_steps") else flat.get("epoch"))
    if epochs:  # there epochs win over steps
        found |= {"max_train_epochs": epochs, "max_train_steps": 0}
    return fields_only(found, left)


def _kohya_value(name: str, value: Any) -> dict[str, Any] | None:
    """What a key of kohya's sets, or None where this project has nothing for it."""
    if name == "output_name":
        return {"lora_name": slugify(str(value))} if value else {}
    if name == "resolution":
        return resolution(value)
    if name == "optimizer_type":
        return optimizer(value)
    if name in ("lr_scheduler", "timestep_sampling", "mixed_precision", "save_precision"):
        return {name: value} if allowed(name, value) else None
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
        if name == "optimizer_args" and isinstance(value, list):
            value = " ".join(map(str, value))
        return {name: str(value) if name == "learning_rate" else value}
    return None


def _network_args(value: Any, left: Left) -> dict[str, Any]:
    """The settings among sd-scripts' `network_args` ("train_blocks=single"); the others join the names left out."""
    found: dict[str, Any] = {}
    for given in value if isinstance(value, list) else str(value).split():
        name, _, said = str(given).partition("=")
        if name in _NETWORK_ARGS:
            found[name] = said
        elif name != "split_qkv":  # only how its file is laid out: here q, k and v always have their own
            left.append(f"network_args {name}")
    return found


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
