"""A LoRA's alphas where a file has no `.alpha` tensors: in its metadata, as peft's configuration, or in its ups.

diffusers' `save_lora_adapter` and `save_lora_weights` put peft's LoraConfig into the metadata, as JSON under
`lora_adapter_metadata`. Their readers pass over `.alpha` tensors (of klein always; of any transformer in
`load_lora_adapter`), and over that metadata too where `load_lora_adapter` is given neither `weight_name` nor
`use_safetensors`: then alpha = rank is what they take. So the scale goes into the ups wherever that is exact, and
what alpha was is noted for the way back.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import FiniteFloat, TypeAdapter, ValidationError
from torch import Tensor

from fluxcore.training.lora_fuse import LoraFormatError, alpha_tensor

CONFIG = "lora_adapter_metadata"
"""diffusers' metadata entry: peft's LoraConfig as JSON, its keys behind `transformer.` where the tensors' names are."""
IN_UPS = "fluxgym_alphas"
"""Ours: the alphas whose scale is in the ups, as JSON: one number, or one per module."""
_NOTE = TypeAdapter(FiniteFloat | dict[str, FiniteFloat] | None)


def without_alphas(
    tensors: Mapping[str, Tensor], component: str = ""
) -> tuple[dict[str, Tensor], dict[str, str], bool]:
    """A LoRA with an `.alpha` a module, for readers that take none: its tensors, metadata, and if it is in the ups.

    `tensors` have peft's names behind `component` (`transformer.` or nothing). Where alpha / rank times each up is
    exact in the up's dtype (any power of two, say, short of under- and overflow), that is what the file has, with
    alpha = rank in the configuration; else the matrices stay as they are and the configuration has the alphas.
    """
    alphas = {key.removesuffix(".alpha"): float(t.item()) for key, t in tensors.items() if key.endswith(".alpha")}
    matrices = {key: tensor for key, tensor in tensors.items() if not key.endswith(".alpha")}
    ranks = {path: len(matrices[f"{path}.lora_A.weight"]) for path in alphas}
    scaled = {}
    for path, alpha in alphas.items():
        up = _scaled(matrices[f"{path}.lora_B.weight"], alpha / ranks[path])
        if up is None:
            return matrices, {CONFIG: _config(ranks, alphas, component)}, False
        scaled[f"{path}.lora_B.weight"] = up
    metadata = {CONFIG: _config(ranks, {path: float(rank) for path, rank in ranks.items()}, component)}
    if any(alpha != ranks[path] for path, alpha in alphas.items()):
        different = set(alphas.values())
        metadata[IN_UPS] = json.dumps(different.pop() if len(different) == 1 else alphas, sort_keys=True)
    return matrices | scaled, metadata, True


def with_alphas(tensors: Mapping[str, Tensor], config: str | None, in_ups: str | None) -> dict[str, Tensor]:
    """What a file says with `config` and `in_ups` (its CONFIG and IN_UPS, None = not there) as tensors alone.

    Alphas become `.alpha` tensors (0-d, float32, or float64 where that does not hold them), and a scale that was put
    into the ups is taken out of them, where that is exact. Raises LoraFormatError where the alphas are there twice or
    can't be read out of `config`.
    """
    out = dict(tensors)
    if config is not None:
        if any(key.endswith(".alpha") for key in tensors):
            raise LoraFormatError(f"it has its alphas twice, as tensors and as {CONFIG}.")
        out.update(_alphas_of(tensors, config))
    noted = _number_or_numbers(in_ups)
    for key, down in tensors.items():
        path, rank = key.removesuffix(".lora_A.weight"), len(down) if down.ndim else 0
        up = tensors.get(f"{path}.lora_B.weight")
        alpha = noted.get(path) if isinstance(noted, dict) else noted
        if path == key or up is None or rank == 0 or not alpha or float(out.get(f"{path}.alpha", rank)) != rank:
            continue  # where the file says another alpha than the rank, someone wrote it anew since
        before = _scaled(up, rank / alpha)
        if before is not None and (again := _scaled(before, alpha / rank)) is not None and torch.equal(again, up):
            out[f"{path}.lora_B.weight"] = before
            out[f"{path}.alpha"] = alpha_tensor(alpha, (torch.float32, torch.float64))
    return out


def _scaled(up: Tensor, scale: float) -> Tensor | None:
    """`scale * up` in its dtype; None where that is not exact, so that it could not be undone."""
    wide = up.double()
    product = (wide * scale).to(up.dtype)
    exact = scale != 0 and torch.equal(product.double(), wide * scale)
    return product if exact and torch.equal((product.double() / scale).to(up.dtype), up) else None


def _config(ranks: Mapping[str, int], alphas: Mapping[str, float], component: str) -> str:
    """What LoraConfig takes to make these modules (`^`: peft matches a pattern at a name's end, and some end alike)."""
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    names = {path: path.removeprefix(component) for path in ranks}
    settings: dict[str, Any] = {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {f"^{names[path]}": value for path, value in ranks.items() if value != rank},
        "alpha_pattern": {f"^{names[path]}": value for path, value in alphas.items() if value != alpha},
        "target_modules": sorted(names.values()),
    }
    return json.dumps({f"{component}{key}": value for key, value in settings.items()}, sort_keys=True)


def _alphas_of(tensors: Mapping[str, Tensor], adapter: str) -> dict[str, Tensor]:
    try:
        config = json.loads(adapter)
    except json.JSONDecodeError:
        config = None
    if not isinstance(config, dict):
        raise LoraFormatError(f"its {CONFIG} is no JSON object, so its alphas are not known.")
    alphas: dict[str, Tensor] = {}
    for key in tensors:
        name = key.removesuffix(".lora_A.weight")
        if name == key:
            continue
        component = next((c for c in ("transformer.", "text_encoder.") if name.startswith(c)), "")
        settings = {k.removeprefix(component): v for k, v in config.items() if k.startswith(component)}
        try:
            alpha = _peft_alpha(name.removeprefix(component), len(tensors[key]), settings)
        except LoraFormatError:
            raise
        except (TypeError, ValueError, re.error) as error:
            raise LoraFormatError(f"its {CONFIG} gives no alpha for {name}: {error}") from error
        alphas[f"{name}.alpha"] = torch.tensor(alpha, dtype=torch.float32)
    return alphas


def _peft_alpha(module: str, rank: int, settings: Mapping[str, Any]) -> float:
    patterns = dict(settings.get("alpha_pattern") or {})
    # peft takes the first pattern that matches at the end of a module's name.
    pattern = next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), None)
    alpha = float(settings.get("lora_alpha", rank) if pattern is None else patterns[pattern])
    if not settings.get("use_rslora"):
        return alpha
    if math.isqrt(rank) ** 2 != rank:
        raise LoraFormatError(
            f"{module} has use_rslora with rank {rank}: a scale of alpha / √{rank}, for which no other alpha is exact."
        )
    return alpha * math.isqrt(rank)


def _number_or_numbers(text: str | None) -> float | dict[str, float] | None:
    """IN_UPS as written; None where it is none: then the scale stays in the ups, and nothing is wrong."""
    try:
        return _NOTE.validate_json(text or "null", strict=True)
    except ValidationError:
        return None
