"""Out of memory beside a step's pass: what is tried instead. (Of the pass itself train.py says it.)"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

from .data import Batch

T = TypeVar("T")


def free_memory() -> None:
    """Give back what no tensor uses. Not to be called within `except`, which keeps the memory of what failed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def if_it_fits(work: Callable[[], T]) -> T | None:
    """What `work` returns; None where the GPU's memory was too short for it, which is then freed."""
    try:
        return work()
    except torch.OutOfMemoryError:
        pass
    free_memory()
    return None


def in_parts(losses: Callable[[Batch], torch.Tensor], batch: Batch) -> torch.Tensor:
    """`losses(batch)` (B,), of its halves where the whole does not fit. Raises OutOfMemoryError where one sample
    doesn't."""
    if len(batch) == 1:
        return losses(batch)
    found = if_it_fits(lambda: losses(batch))
    return found if found is not None else torch.cat([in_parts(losses, half) for half in batch.halves()])
