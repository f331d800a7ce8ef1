"""How large a LoRA on a base model is, from the model's own config file or what is known of its family. No torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fluxcore.trainers import DEFAULT_TRAINER

from .klein import KLEIN_FAMILY, is_9b
from .registry import BaseModel

MLP_RATIO = 4
KLEIN_MLP_RATIO = 3


@dataclass(frozen=True)
class LoraSize:
    """Numbers of values for a LoRA of rank r on every linear layer of the blocks.

    `trained` × r: the trained parameters. `in_file` × r: what sd-scripts' format holds, where the three or four
    projections that FLUX fuses into one have block-diagonal ups, zeros included. `layers`: adapted layers.
    """

    trained: int
    in_file: int
    layers: int


def flux_lora_size(double_blocks: int, single_blocks: int, width: int) -> LoraSize:
    """Of a FLUX transformer."""
    hidden = MLP_RATIO * width
    # One linear layer of n inputs and m outputs has (n + m) × r values.
    qkv, out, mlp = 3 * (width + width), width + width, 2 * (width + hidden)
    double = 2 * (qkv + out + mlp + width + 6 * width)
    single = qkv + (width + hidden) + (hidden + width + width) + (width + 3 * width)
    fused_qkv = 3 * width + 3 * (3 * width)
    fused_linear1 = 4 * width + 4 * (3 * width + hidden)
    trained = double_blocks * double + single_blocks * single
    in_file = trained + double_blocks * 2 * (fused_qkv - qkv)
    in_file += single_blocks * (fused_linear1 - qkv - (width + hidden))
    return LoraSize(trained, in_file, 14 * double_blocks + 6 * single_blocks)


def klein_lora_size(double_blocks: int, single_blocks: int, width: int) -> LoraSize:
    """Of a FLUX.2 klein transformer: the MLP is gated, so its first layer writes twice what its second reads."""
    hidden = KLEIN_MLP_RATIO * width
    qkv, out, mlp = 3 * (width + width), width + width, (width + 2 * hidden) + (hidden + width)
    fused_qkv = 3 * width + 3 * (3 * width)
    single = (width + 3 * width + 2 * hidden) + (width + hidden + width)
    trained = double_blocks * 2 * (qkv + out + mlp) + single_blocks * single
    in_file = trained + double_blocks * 2 * (fused_qkv - qkv)
    return LoraSize(trained, in_file, 12 * double_blocks + 2 * single_blocks)


FLUX_1 = flux_lora_size(19, 38, 24 * 128)
KLEIN_4B, KLEIN_9B = klein_lora_size(5, 20, 24 * 128), klein_lora_size(8, 24, 32 * 128)


def _sd_scripts_size(double_blocks: int, single_blocks: int, width: int) -> LoraSize:
    """As sd-scripts train it: one LoRA for a fused projection, none block-diagonal, and one on CLIP-L's 12 layers."""
    double = 2 * (4 + 2 + 5 + 5 + 7) * width  # qkv, its output, the MLP's two, the modulation
    single = (8 + 6 + 4) * width  # linear1, linear2, the modulation
    clip = 12 * (4 * (768 + 768) + 2 * (768 + 3072))
    values = double_blocks * double + single_blocks * single + clip
    return LoraSize(values, values, 10 * double_blocks + 3 * single_blocks + 12 * 6)


SD_SCRIPTS_FLUX_1 = _sd_scripts_size(19, 38, 24 * 128)


def lora_size(model: BaseModel, trainer: str = DEFAULT_TRAINER) -> LoraSize | None:
    """Of a base model by a trainer; None where that can't be told without loading it."""
    if model.family == KLEIN_FAMILY and trainer == DEFAULT_TRAINER:
        if model.path is not None:
            return _from_config(model.path / "transformer" / "config.json", klein_lora_size)
        return KLEIN_9B if is_9b(model) else KLEIN_4B
    if model.family != "flux":
        return None
    if trainer == "sd-scripts":  # they train FLUX.1 only; of the 12G preset, single blocks alone, it is the most
        return SD_SCRIPTS_FLUX_1 if model.path is None else None
    if model.path is None:
        return FLUX_1
    return _from_config(model.path / "transformer" / "config.json", flux_lora_size)


def _from_config(file: Path, size: Callable[[int, int, int], LoraSize]) -> LoraSize | None:
    try:
        values = json.loads(file.read_text())
        width = int(values["num_attention_heads"]) * int(values["attention_head_dim"])
        return size(int(values["num_layers"]), int(values["num_single_layers"]), width)
    except (OSError, ValueError, KeyError, TypeError):
        return None


T5_WIDTH = 4096


def _klein_text_width(model: BaseModel) -> int:
    """Three of Qwen3's layers side by side."""
    if model.path is None:
        return 3 * (4096 if is_9b(model) else 2560)
    try:
        return int(json.loads((model.path / "transformer" / "config.json").read_text())["joint_attention_dim"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def caption_values(model: BaseModel) -> int:
    """How many values an encoded caption of a base model has: its tokens times their width."""
    if model.family == KLEIN_FAMILY:
        return model.tokens * _klein_text_width(model)
    width = T5_WIDTH
    if model.path is not None:
        try:
            width = int(json.loads((model.path / "text_encoder_2" / "config.json").read_text())["d_model"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0
    return model.tokens * width
