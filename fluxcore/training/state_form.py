"""A state's LoRA and moments as sd-scripts keep them, and back.

sd-scripts load a state into their own network class: its tensors' names are the file format's, and the optimizer's
moments go by the parameters' order alone. What fits is the form of their `split_qkv=True`, in which every projection
of a fused layer has a LoRA of its own, as here: downs stacked, ups block-diagonal, the moments by projection. So a
state of FluxGym has that form wherever a plain LoRA lies on whole layers of theirs; the trainer's own optimizer keeps
its parameters in their order. What sd-scripts have no place for (a DoRA, q without k) keeps peft's names.

The order is that of their `networks/lora_flux.py` over `library/flux_models.py`; a test holds it against both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from fluxcore.runs.exits import RESUME_WITH

from .failures import Exit, TrainingError
from .lora_fuse import fuse_blocks, split_blocks
from .lora_keys import place_in_sd_scripts

_ORDER = {
    name: number
    for number, name in enumerate(
        [
            *(f"double_blocks_#_{side}_{part}" for side in ("img", "txt") for part in
              ("mod_lin", "attn_qkv", "attn_proj", "mlp_0", "mlp_2")),
            *(f"single_blocks_#_{part}" for part in ("linear1", "linear2", "modulation_lin")),
        ]
    )
}  # fmt: skip
_PARTS = {"lora_A": "lora_down", "lora_B": "lora_up"}
_V = TypeVar("_V")


@dataclass(frozen=True)
class _Place:
    """Where a matrix goes: sd-scripts' module, which of `count` projections of it, and "lora_down" or "lora_up"."""

    module: str
    projection: int
    count: int
    part: str
    order: tuple[bool, int, int]

    @property
    def key(self) -> tuple[tuple[bool, int, int], str, int]:
        return self.order, self.part, self.projection


@dataclass(frozen=True)
class Found:
    """A state's LoRA by peft's names, in the order of its moments; None where those are another network's.

    `skip`: how many moments of a text encoder stand before them. `fused`: the names are sd-scripts'.
    """

    lora: dict[str, Tensor]
    order: list[str] | None
    skip: int = 0
    fused: bool = True


@dataclass(frozen=True)
class StateForm:
    """The form of a run's states. `names`: the family's `key_names`; `alpha`: what alpha / rank scales by."""

    names: str
    alpha: float

    def in_order(self, named: Mapping[str, _V]) -> dict[str, _V]:
        """Trained parameters, by the names that they have in the transformer, in the order of the moments."""
        places = self._places([peft_name(name) for name in named])
        if places is None:
            return dict(named)
        return dict(sorted(named.items(), key=lambda item: places[peft_name(item[0])].key))

    def write(self, lora: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of a state's weights file. `lora`: peft's, on the CPU."""
        places = self._places(lora)
        if places is None:
            return dict(lora)
        parts: dict[str, dict[str, list[Tensor]]] = {}
        for name in sorted(lora, key=lambda name: places[name].key):
            place = places[name]
            parts.setdefault(place.module, {}).setdefault(place.part, []).append(lora[name])
        out: dict[str, Tensor] = {}
        for module, pair in parts.items():
            down, up = fuse_blocks(pair["lora_down"], pair["lora_up"])
            out[f"{module}.lora_down.weight"], out[f"{module}.lora_up.weight"] = down, up
            # alpha / rank of a reader that knows nothing of projections stays what it is in training.
            out[f"{module}.alpha"] = torch.tensor(self.alpha * len(pair["lora_down"]))
        return out

    def read(self, found: Mapping[str, Tensor], ours: Mapping[str, Tensor], named: Sequence[str]) -> Found:
        """What a state's weights file holds, for a LoRA such as `ours`; `named` are the transformer's parameters.

        Raises TrainingError where it belongs to another LoRA: other layers, another rank, another alpha.
        """
        if not any(name.startswith("lora_unet_") for name in found):
            _same_layers(found, ours)
            return Found(dict(found), [peft_name(name) for name in named], fused=False)
        places = self._places(ours)
        if places is None:
            raise TrainingError(Exit.BAD_CONFIG, "it is a plain LoRA on whole layers: set network and layers as then")
        lora: dict[str, Tensor] = {}
        split = True
        modules = {place.module: (name, place.count) for name, place in places.items()}
        for module, (name, count) in modules.items():
            tensors = [found.get(f"{module}.{part}") for part in ("lora_down.weight", "lora_up.weight", "alpha")]
            if any(tensor is None for tensor in tensors):
                raise TrainingError(Exit.BAD_CONFIG, f"it has no {module}: set the trained layers as they were")
            down, up, alpha = (tensor for tensor in tensors if tensor is not None)
            rank = ours[name].shape[0 if places[name].part == "lora_down" else 1]
            if count > 1 and down.shape[0] == rank:  # one LoRA for all of the projections, as sd-scripts' default is
                split = False
            elif down.shape[0] != rank * count:
                its = down.shape[0] // (count if down.shape[0] % count == 0 else 1)
                raise TrainingError(Exit.BAD_CONFIG, f"its rank is {its}: {RESUME_WITH} `--set network_dim={its}`")
            factor = float(alpha) / self.alpha
            if not (math.isclose(factor, 1, rel_tol=1e-4) or math.isclose(factor, count, rel_tol=1e-4)):
                raise TrainingError(
                    Exit.BAD_CONFIG,
                    f"its alpha is {float(alpha):g}: {RESUME_WITH} `--set network_alpha={float(alpha):g}`",
                )
            sizes = [ours[n].shape[0] for n in _of(places, module, "lora_up")]
            downs, ups = split_blocks(module, down, up, sizes, dense=down.shape[0] == rank)
            lora |= zip(_of(places, module, "lora_down"), downs, strict=True)
            lora |= zip(_of(places, module, "lora_up"), ups, strict=True)
        _same_layers(lora, ours)
        text = [name for name in found if name.startswith("lora_te")]
        if other := set(found) - set(text) - {f"{m}.{p}" for m in modules for p in _FILE_PARTS}:
            raise TrainingError(
                Exit.BAD_CONFIG, f"it has {sorted(other)[0]} as well: set the trained layers as they were"
            )
        order = sorted(places, key=lambda name: places[name].key) if split else None
        skip = sum(not name.endswith(".alpha") for name in text)
        return Found(lora, order, skip)

    def _places(self, names: Sequence[str] | Mapping[str, Any]) -> dict[str, _Place] | None:
        """Where each matrix goes; None where sd-scripts have no place for all of them."""
        if self.names != "flux1":
            return None
        places: dict[str, _Place] = {}
        for name in names:
            path, _, part = name.removesuffix(".weight").rpartition(".")
            found = place_in_sd_scripts(path)
            if part not in _PARTS or found is None:
                return None
            module, pattern, number, projection, count = found
            kind = pattern.removeprefix("lora_unet_")
            if kind not in _ORDER:
                return None
            order = (kind.startswith("single"), int(number), _ORDER[kind])
            places[name] = _Place(module, projection, count, _PARTS[part], order)
        whole = {place.module: place.count for place in places.values()}
        held = [place.module for place in places.values()]
        if not places or any(held.count(module) != 2 * count for module, count in whole.items()):
            return None
        return places


def moments(
    saved: Mapping[str, Any], found: Found, order: Sequence[str], shapes: Mapping[str, torch.Size]
) -> dict[str, Any] | None:
    """A saved optimizer's state for parameters in `order`; None where it can't be theirs.

    `saved` is torch's `state_dict`: moments by number, the numbers in the groups.
    """
    if found.order is None:
        return None
    groups, skipped = list(saved["param_groups"]), 0
    while skipped < found.skip and groups:
        skipped += len(groups.pop(0)["params"])
    if skipped != found.skip or len(groups) != 1 or len(groups[0]["params"]) != len(found.order):
        return None  # several rates, as LoRA+ has them, are several groups
    by_name = dict(zip(found.order, groups[0]["params"], strict=True))
    state: dict[int, Any] = {}
    for number, name in enumerate(order):
        values = saved["state"].get(by_name[name])
        if values is None:
            continue
        whole = [value for value in values.values() if isinstance(value, Tensor) and value.ndim == 2]
        if any(value.shape != shapes[name] for value in whole):
            return None
        state[number] = values
    return {"state": state, "param_groups": [{**groups[0], "params": list(range(len(order)))}]}


def counted_steps(saved: Mapping[str, Any]) -> int:
    """How many steps a saved optimizer has made, as it counts itself; 0 where it doesn't."""
    return max((int(values["step"]) for values in saved["state"].values() if "step" in values), default=0)


def peft_name(parameter: str) -> str:
    """A parameter's name in the transformer -> the name that peft's state has for it."""
    return parameter.replace(".default.", ".").removesuffix(".default")


_FILE_PARTS = ("lora_down.weight", "lora_up.weight", "alpha")


def _of(places: Mapping[str, _Place], module: str, part: str) -> list[str]:
    """The names of a module's matrices, by projection."""
    found = [(place.projection, name) for name, place in places.items() if (place.module, place.part) == (module, part)]
    return [name for _, name in sorted(found)]


def _same_layers(found: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    if {name: value.shape for name, value in found.items()} != {name: value.shape for name, value in ours.items()}:
        raise TrainingError(
            Exit.BAD_CONFIG,
            f"it holds {_describe(found)}, the config asks for {_describe(ours)}: set network_dim as it was",
        )


def _describe(tensors: Mapping[str, Tensor]) -> str:
    ranks = sorted({value.shape[0] for name, value in tensors.items() if ".lora_A." in name})
    return f"a LoRA of rank {', '.join(map(str, ranks)) or '?'} on {len(tensors) // 2} layers"
