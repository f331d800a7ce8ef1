"""What is trained: a LoRA or one of its kin on chosen layers of the blocks, and the file it is written to.

Plain LoRAs (rsLoRA included) go into sd-scripts' keys. What these can't hold, because sd-scripts fuses projections that
are separate here, goes into the keys that other programs read on diffusers' layers: a DoRA into diffusers' with its
magnitudes twice (`lora_magnitude_vector` for diffusers, `dora_scale` for ComfyUI; of klein without an alpha, which
diffusers takes none of for it: the scale is in the ups), LoKr and LoHa into LyCORIS' as
SimpleTuner writes and ComfyUI reads them (`lycoris_transformer_blocks_0_attn_to_q.lokr_w1`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from fluxcore.config import RunConfig
from fluxcore.config.arguments import parse_blocks
from fluxcore.models.family import Family
from fluxcore.models.registry import find_model

from .failures import Exit, TrainingError
from .lora_file import read_lora
from .lora_keys import KEY_NAMES
from .lora_layers import make_lean
from .metadata import base_name

DTYPES = {"no": torch.float32, "float": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What a config calls a precision: `mixed_precision`, `save_precision`."""
_KINDS = {
    "attn": r"attn\..+|proj_out",
    "mlp": r"ff(_context)?\.(net\..+|linear_(in|out))|proj_mlp|proj_out|attn\.(to_qkv_mlp_proj|to_out)",
    "mod": r"norm.*\.linear",
}
"""Which layers of a block are its attention, its MLP, its modulation. A single block's `proj_out` ends both."""
_BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")


def add_network(transformer: torch.nn.Module, config: RunConfig, family: Family) -> None:
    """Put the config's adapter on the transformer.

    Raises TrainingError where the selection leaves no layer.
    """
    transformer.add_adapter(_adapter(config, target_layers(transformer, config, family)))
    make_lean(transformer)


def target_layers(transformer: torch.nn.Module, config: RunConfig, family: Family) -> str:
    """The trained layers as a pattern for peft. Raises TrainingError where there is none."""
    double, single = parse_blocks(config.train_double_block_indices), parse_blocks(config.train_single_block_indices)
    kinds = config.train_layers.split(",") if config.train_layers != "all" else list(_KINDS)
    if (config.train_blocks, double, single, len(kinds)) == ("all", None, None, len(_KINDS)):
        return family.lora_targets

    def wanted(name: str) -> bool:
        match = _BLOCK.fullmatch(name)
        if match is None or not re.fullmatch(family.lora_targets, name):
            return False
        numbers = single if match[1] else double
        if config.train_blocks not in ("all", "single" if match[1] else "double"):
            return False
        if numbers is not None and int(match[2]) not in numbers:
            return False
        return any(re.fullmatch(_KINDS[kind], match[3]) for kind in kinds)

    names = [name for name, _ in transformer.named_modules() if wanted(name)]
    if not names:
        raise TrainingError(
            Exit.BAD_CONFIG,
            "no layer is left to train: look at train_blocks, train_double_block_indices, train_single_block_indices "
            "and train_layers",
        )
    return "|".join(map(re.escape, names))


def _adapter(config: RunConfig, targets: str) -> PeftConfig:
    if config.network_algo == "lora":
        return LoraConfig(
            r=config.network_dim,
            lora_alpha=config.network_alpha,
            lora_dropout=config.network_dropout,
            target_modules=targets,
            use_rslora=config.use_rslora,
            use_dora=config.use_dora,
        )
    shared = {
        "r": config.network_dim,
        "alpha": config.network_alpha,
        "rank_dropout": config.network_dropout,
        "target_modules": targets,
    }
    if config.network_algo == "loha":
        return LoHaConfig(**shared)
    return LoKrConfig(decompose_factor=config.lokr_factor, **shared)


def effective_alpha(config: RunConfig) -> float:
    """The alpha that alpha / rank makes the scale in use of: rsLoRA divides by the rank's square root instead."""
    return config.network_alpha * (math.sqrt(config.network_dim) if config.use_rslora else 1.0)


def network_settings(config: RunConfig) -> dict[str, object]:
    """The settings that decide what a network's weights add: another value of one makes other weights of the same."""
    names = ("network_algo", "network_dim", "network_alpha", "use_rslora", "use_dora")
    return {name: getattr(config, name) for name in names}


def network_tensors(
    state: Mapping[str, torch.Tensor], config: RunConfig, family: Family, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The adapter (by peft's names) as its file has it; matrices in `dtype`, alphas in float32."""
    values = {name: value.to(dtype) for name, value in state.items()}
    alpha = torch.tensor(effective_alpha(config))
    if config.network_algo == "lora" and not config.use_dora:
        return KEY_NAMES[family.key_names].to_file(values, effective_alpha(config), config.lora_format)
    out = {_file_name(name, config): value for name, value in values.items()}
    in_ups = family.key_names == "flux2"
    for name, value in values.items():
        module, _, part = name.rpartition(".")
        if part == "lora_magnitude_vector":
            out[f"transformer.{module}.dora_scale"] = value[:, None].clone()
            if not in_ups:
                out[f"transformer.{module}.alpha"] = alpha
        elif name.endswith(".lora_B.weight") and in_ups:
            out[_file_name(name, config)] = (state[name].float() * (alpha / config.network_dim)).to(dtype)
        elif part == "hada_w1_a" or (part in ("lokr_w1_b", "lokr_w2_b")):
            out[f"{_lycoris(module)}.alpha"] = alpha
        elif part == "lokr_w1" and f"{module}.lokr_w2" in values:
            # Two whole matrices have no rank: readers scale them by 1, so the scale goes into one of them.
            out[_file_name(name, config)] = (state[name].float() * config.network_alpha / config.network_dim).to(dtype)
    return out


def look_at_weights(path: Path) -> None:
    """Raises TrainingError where a `network_weights` file can't be read: before hours of download, not behind them."""
    try:
        with safe_open(path, "pt"):
            return
    except (OSError, SafetensorError) as error:
        said = "it is cut short or no safetensors file: copy it here again"
        if isinstance(error, OSError):
            said = "it is a folder" if path.is_dir() else "there is no such file" if not path.exists() else str(error)
        raise TrainingError(Exit.BAD_CONFIG, f"network_weights {path} can't be used: {said}") from None


def continue_from(transformer: torch.nn.Module, path: Path, config: RunConfig, family: Family) -> str:
    """Put the adapter at `path` into the transformer's: same layers and rank, at the strength that it had.

    Returns what is to be told of it, or "". Raises TrainingError where it can't be used.
    """
    look_at_weights(path)
    ours = get_peft_model_state_dict(transformer)
    base = _other_base(path, config)
    try:
        if config.network_algo == "lora" and not config.use_dora:
            theirs, alphas = KEY_NAMES[family.key_names].from_file(read_lora(path)[0])
        else:
            theirs, alphas = _read_kin(path, ours, config), {}
            if config.use_dora and family.key_names == "flux2":
                alphas = {name.partition(".lora_B.")[0]: float(config.network_dim) for name in theirs}
    except (OSError, ValueError, SafetensorError) as error:
        said = str(error).removeprefix(f"{path} ").removeprefix(f"{path}: ")
        raise TrainingError(Exit.BAD_CONFIG, f"network_weights {path} can't be used: {said}{base}") from None
    if misfit := _misfit(theirs, ours, config):
        raise TrainingError(Exit.BAD_CONFIG, f"network_weights {path.name} can't be used: {misfit}{base}")
    for name in theirs:
        module, is_up, _ = name.partition(".lora_B.")
        if is_up and module in alphas:  # their scale is alpha / rank of their own; the adapter's is the config's
            theirs[name] = theirs[name].float() * (alphas[module] / effective_alpha(config))
    set_peft_model_state_dict(transformer, theirs)
    return f"the training goes on from {path.name}{base}" if base else ""


def _misfit(theirs: Mapping[str, torch.Tensor], ours: Mapping[str, torch.Tensor], config: RunConfig) -> str:
    """Why an adapter's tensors can't become ours, and what to do; "" where they can."""
    if {name: value.shape for name, value in theirs.items()} == {name: value.shape for name, value in ours.items()}:
        return ""
    ranks = {value.shape[0] for name, value in theirs.items() if name.endswith(".lora_A.weight")}
    shared = [name for name in ours if name.endswith(".lora_A.weight") and name in theirs]
    if any(ours[name].shape[1:] != theirs[name].shape[1:] for name in shared):  # of whatever number of blocks
        return "its layers have other widths, so it is another base model's: set base_model to the one it is of"
    if set(theirs) == set(ours) and len(ranks) == 1 and ranks != {config.network_dim}:
        return f"it has rank {min(ranks)}, not {config.network_dim}: set network_dim={min(ranks)}"
    return (
        f"it is not a {config.network_algo} of rank {config.network_dim} on the same layers: set network_dim, "
        "network_algo, use_dora and the layers as they were"
    )


def _other_base(path: Path, config: RunConfig) -> str:
    """That a LoRA file was trained on another base model, by its own word; "" where it says no such thing."""
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
    except (OSError, SafetensorError):
        return ""
    theirs = said.get("ss_sd_model_name") or said.get("modelspec.architecture", "").removesuffix("/lora")
    ours = base_name(config, find_model(config.base_model))
    if not theirs or theirs == ours:
        return ""
    return f" (it says that it was trained on {theirs}; the base model here is {ours})"


def _read_kin(path: Path, ours: Mapping[str, torch.Tensor], config: RunConfig) -> dict[str, torch.Tensor]:
    """A DoRA, LoKr or LoHa as network_tensors writes it, by peft's names. Raises ValueError where its scale differs."""
    found = load_file(path)
    alphas = {float(value) for name, value in found.items() if name.endswith(".alpha")}
    if alphas - {torch.tensor(effective_alpha(config)).item()}:
        raise ValueError(f"its alpha is {sorted(alphas)[0]:g}: set network_alpha so")
    names = {_file_name(name, config): name for name in ours}
    theirs = {names[name]: value for name, value in found.items() if name in names}
    for name, value in theirs.items():
        if name.endswith(".lokr_w1") and f"{name[:-1]}2" in ours:
            theirs[name] = value.float() * (config.network_dim / config.network_alpha)
    return theirs


def _file_name(name: str, config: RunConfig) -> str:
    module, _, part = name.rpartition(".")
    return f"transformer.{name}" if config.network_algo == "lora" else f"{_lycoris(module)}.{part}"


def _lycoris(module: str) -> str:
    return f"lycoris_{module.replace('.', '_')}"
