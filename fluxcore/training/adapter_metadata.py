"""A LoRA's alphas in files without `.alpha` tensors: read from peft's configuration, or put into the ups and noted.

diffusers' `save_lora_adapter` and `save_lora_weights` put peft's LoraConfig into the metadata, as JSON under
`lora_adapter_metadata`; a PeftModel saves it as adapter_config.json. But `load_lora_adapter` passes over `.alpha`
tensors (for klein the pipeline does, too), and over that metadata unless it is given `weight_name` or
`use_safetensors`: what is left is alpha = rank. So what we write for those readers has its scale in the ups.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal

import torch
from pydantic import BaseModel, FiniteFloat, ValidationError
from torch import Tensor

from fluxcore.training.lora_fuse import LoraFormatError, alpha_tensor, times

CONFIG = "lora_adapter_metadata"
"""diffusers' metadata entry: peft's LoraConfig as JSON, its keys behind `transformer.` where the tensors' names are."""
IN_UPS = "fluxgym_in_ups"
"""Ours: what the scale in the ups was made of, for the way back."""
_PEFT_ALPHA = 8  # LoraConfig's default


class _Before(BaseModel, strict=True):
    """IN_UPS as JSON: the alphas, one for all or by module, and the matrices' dtype where it was a narrower one."""

    alpha: FiniteFloat | dict[str, FiniteFloat]
    dtype: Literal["bfloat16", "float16"] | None = None


def scale_in_ups(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A LoRA by peft's names with an `.alpha` a module, for readers that take none: its matrices, and metadata.

    The ups are times alpha / rank. Where 16 bits don't hold that, all matrices are in 32, which is undone exactly; ups
    in 32 bit are rounded once where alpha / rank is no power of two. Raises LoraFormatError for an alpha of (all but) 0
    or beyond all sense.
    """
    matrices = {key: tensor for key, tensor in tensors.items() if not key.endswith(".alpha")}
    alphas = {key.removesuffix(".alpha"): float(t.item()) for key, t in tensors.items() if key.endswith(".alpha")}
    scales = {path: Fraction(alpha) / len(matrices[f"{path}.lora_A.weight"]) for path, alpha in alphas.items()}
    for path, scale in scales.items():
        if not _usable(scale):
            has = f"alpha {alphas[path]:g} over rank {len(matrices[f'{path}.lora_A.weight'])}"
            raise LoraFormatError(f"{path} has {has}, which weights can't be multiplied by and divided by again.")
    if all(scale == 1 for scale in scales.values()):
        return matrices, {}
    one_for_all = len(set(alphas.values())) == 1
    before = _Before(alpha=next(iter(alphas.values())) if one_for_all else dict(sorted(alphas.items())))
    if not all(_holds(matrices[f"{path}.lora_B.weight"], scale) for path, scale in scales.items()):
        narrow = {tensor.dtype for tensor in matrices.values()}
        before.dtype = "bfloat16" if torch.bfloat16 in narrow else "float16"
        wide = lambda dtype: torch.promote_types(dtype, torch.float32)
        matrices = {key: tensor.to(wide(tensor.dtype)) for key, tensor in matrices.items()}
    for path, scale in scales.items():
        matrices[f"{path}.lora_B.weight"] = times(matrices[f"{path}.lora_B.weight"], scale)
    return matrices, {IN_UPS: before.model_dump_json(exclude_none=True)}


def _usable(scale: Fraction) -> bool:
    return Fraction(1, 2**100) < abs(scale) < 2**100


def _holds(up: Tensor, scale: Fraction) -> bool:
    """Whether an up of 16 bits times `scale` needs no more; the wider ones are as wide as is of use."""
    return up.dtype.itemsize > 2 or torch.equal(times(up, scale).double(), times(up.double(), scale))


def config_of(tensors: Mapping[str, Tensor]) -> str:
    """peft's LoraConfig for matrices by peft's names with alpha = rank, as JSON.

    `^`, and the modules as a pattern: peft matches a name's end else, and some modules' names end alike.
    """
    downs = {key.removesuffix(".lora_A.weight"): len(t) for key, t in tensors.items() if key.endswith(".lora_A.weight")}
    counts = Counter(downs.values())
    rank = max(counts, key=lambda rank: (counts[rank], rank))
    others = {f"^{path}": other for path, other in downs.items() if other != rank}
    targets = "|".join(map(re.escape, sorted(downs)))
    config = {"r": rank, "lora_alpha": rank, "rank_pattern": others, "alpha_pattern": others, "target_modules": targets}
    return json.dumps(config, sort_keys=True)


def with_alphas(
    tensors: Mapping[str, Tensor], config: str | None, in_ups: str | None, where: str = CONFIG
) -> dict[str, Tensor]:
    """What a file says with `config` (peft's, `where` it stands) and `in_ups` (None = not there) as tensors alone.

    Alphas become `.alpha` tensors (0-d; a config's in float32, as our other formats take them), and a scale that was
    put into the ups is taken out of them. Raises LoraFormatError where alphas are there twice, or `config` gives none.
    """
    out = dict(tensors)
    if config is not None:
        if any(key.endswith(".alpha") for key in tensors):
            raise LoraFormatError(f"it has its alphas twice, as tensors and as {where}.")
        out.update(_alphas_of(tensors, config, where))
    try:
        before = _Before.model_validate_json(in_ups or "null")
    except ValidationError:  # the scale stays in the ups, and nothing is wrong
        return out
    for key in tensors:
        path = key.removesuffix(".lora_A.weight")
        if path != key and f"{path}.lora_B.weight" in tensors:
            out.update(_taken_out(path, out, before))
    return out


def _taken_out(path: str, tensors: Mapping[str, Tensor], before: _Before) -> dict[str, Tensor]:
    """A module as it was before its scale went into the ups; {} where another program has changed it since."""
    down, up = tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"]
    alpha = before.alpha.get(path.removeprefix("transformer.")) if isinstance(before.alpha, dict) else before.alpha
    rank = len(down) if down.ndim else 0
    if (
        not alpha
        or not rank
        or not _usable(Fraction(alpha) / rank)
        or float(tensors.get(f"{path}.alpha", rank)) != rank
    ):
        return {}
    scale = Fraction(alpha) / rank
    dtype = getattr(torch, before.dtype) if before.dtype else up.dtype
    narrow, old = down.to(dtype), times(up, 1 / scale, dtype)
    if not torch.equal(narrow.to(down.dtype), down) or not torch.equal(times(old, scale, up.dtype), up):
        return {}
    alone = alpha_tensor(alpha, (torch.float32, torch.float64))
    return {f"{path}.lora_A.weight": narrow, f"{path}.lora_B.weight": old, f"{path}.alpha": alone}


def _alphas_of(tensors: Mapping[str, Tensor], text: str, where: str) -> dict[str, Tensor]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise LoraFormatError(f"its {where} is no JSON object, so its alphas are not known.")
    alphas: dict[str, Tensor] = {}
    for key in tensors:
        name = key.removesuffix(".lora_A.weight")
        if name == key:
            continue
        component = next((c for c in ("transformer.", "text_encoder.") if name.startswith(c)), "")
        settings = {k.removeprefix(component): v for k, v in config.items() if k.startswith(component)}
        try:
            alpha = _peft_alpha(name.removeprefix(component), len(tensors[key]), settings, where)
        except LoraFormatError:
            raise
        except (TypeError, ValueError, OverflowError, re.error) as error:
            raise LoraFormatError(f"its {where} gives no alpha for {name}: {error}") from error
        alphas[f"{name}.alpha"] = torch.tensor(alpha, dtype=torch.float32)
    return alphas


def _peft_alpha(module: str, rank: int, settings: Mapping[str, Any], where: str) -> float:
    if not settings:
        return float(rank)
    if (said := _by_pattern(module, settings.get("rank_pattern"), settings.get("r", rank))) != rank:
        raise LoraFormatError(f"its {where} is another LoRA's: {module} has rank {rank} here and {said} there.")
    alpha = float(_by_pattern(module, settings.get("alpha_pattern"), settings.get("lora_alpha", _PEFT_ALPHA)))
    if not settings.get("use_rslora"):
        return alpha
    if math.isqrt(rank) ** 2 != rank:
        raise LoraFormatError(
            f"{module} has use_rslora with rank {rank}: a scale of alpha / √{rank}, for which no other alpha is exact."
        )
    return alpha * math.isqrt(rank)


def _by_pattern(module: str, patterns: Any, default: Any) -> Any:
    """peft takes the first pattern that matches at the end of a module's name."""
    found = dict(patterns or {})
    return next((value for pattern, value in found.items() if re.match(rf"(.*\.)?({pattern})$", module)), default)
