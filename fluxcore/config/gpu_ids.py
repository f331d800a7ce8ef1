"""Which GPUs a run is to have: `gpu_ids` as accelerate has it. No pydantic: the runner reads it each turn."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fluxcore.errors import UserError

RULE = "must be GPU numbers as nvidia-smi shows them, such as 0 or 0,1, or their uuids; empty = any one"
_NAME = re.compile(r"\d{1,4}|(?:GPU|MIG)-[A-Za-z0-9/-]{1,80}")


class NoSuchGpu(UserError):
    """A GPU that `gpu_ids` names is not there; the message is a sentence for a person."""


def parse_gpu_ids(text: str) -> list[str]:
    """The numbers and uuids in a config's `gpu_ids`, in order; [] = any one GPU. Raises ValueError with the rule."""
    names = [name.strip() for name in text.split(",")] if text.strip() else []
    if not all(_NAME.fullmatch(name) for name in names) or len(set(names)) != len(names):
        raise ValueError(RULE)
    return names


def choose_gpus(names: list[str], by_index: Mapping[int, str]) -> list[str]:
    """The uuids of exactly these GPUs, in the order named, each once. `by_index`: those that there are.

    A uuid may be cut short as long as it fits one alone, as in CUDA_VISIBLE_DEVICES. Raises NoSuchGpu.
    """
    chosen: list[str] = []
    for name in names:
        fits = [uuid for index, uuid in by_index.items() if name in (str(index), uuid)]
        if not fits and not name.isdigit():
            fits = [uuid for uuid in by_index.values() if uuid.startswith(name)]
        if len(fits) != 1:
            there = ", ".join(f"{index} ({uuid})" for index, uuid in by_index.items()) or "none"
            raise NoSuchGpu(f"there is no GPU {name} here (FluxGym sees: {there}); set gpu_ids anew, or empty for any")
        chosen += [uuid for uuid in fits if uuid not in chosen]
    return chosen
