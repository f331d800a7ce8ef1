"""Gradient checkpointing of some of a transformer's blocks: those keep only their inputs and are computed twice."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(transformer: Any, interval: int = 1) -> None:
    """Compute every `interval`th block again in the backward pass, from the first one on; 1 is all of them.

    The blocks between keep what their backward pass needs. Losses and gradients are the same to the bit.
    """
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    twice = {id(block) for block in blocks[::interval]}

    def run(block: nn.Module, *given: Any) -> Any:
        if id(block) not in twice:
            return block(*given)
        return checkpoint(block.__call__, *given, use_reentrant=False)

    transformer.enable_gradient_checkpointing(run)
