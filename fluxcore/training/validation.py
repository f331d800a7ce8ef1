"""The loss on held-out pictures with noise that never changes: comparable from step to step and from run to run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch

from fluxcore.models.loading import PromptEmbedding

from .data import Batch
from .randomness import generator_for

LEVELS = 4
"""Noise levels at which each picture is measured, spread evenly over those that are trained."""
BEST_FILE = "validation.json"


class Validation:
    """Measures, and remembers the lowest loss so far with its step."""

    def __init__(self, seed: int, held_out: list[tuple[torch.Tensor, PromptEmbedding]]) -> None:
        self.best_loss: float | None = None
        self.best_step: int | None = None
        self.pictures = len(held_out)
        self._batches = [self._batch(seed, i, clean, prompt) for i, (clean, prompt) in enumerate(held_out)]

    @staticmethod
    def _batch(seed: int, number: int, clean: torch.Tensor, prompt: PromptEmbedding) -> Batch:
        # The middles of equal parts of the normal distribution, from which noise levels are made.
        normal = torch.special.ndtri((torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS).float()
        generator = generator_for(seed, "validation", number)
        noise = torch.randn((LEVELS, *clean.shape), generator=generator)
        return Batch(clean.expand_as(noise), noise, normal, [prompt] * LEVELS, torch.ones(LEVELS))

    @torch.no_grad()
    def measure(self, losses: Callable[[Batch], torch.Tensor], after_each: Callable[[], None]) -> float:
        """The mean over pictures and noise levels; `losses` as Training.losses. One picture at a time."""
        total = 0.0
        for batch in self._batches:
            total += losses(batch).mean().item()
            after_each()
        return total / len(self._batches)

    def note(self, loss: float, step: int) -> bool:
        """Remember a measured loss; whether it is the lowest so far."""
        if self.best_loss is not None and loss >= self.best_loss:
            return False
        self.best_loss, self.best_step = loss, step
        return True

    def save(self, folder: Path) -> None:
        """Write the lowest loss into a state's folder."""
        if self.best_loss is not None:
            (folder / BEST_FILE).write_text(json.dumps({"best_loss": self.best_loss, "best_step": self.best_step}))

    def load(self, folder: Path) -> None:
        """Read it back; a state without it starts anew."""
        try:
            found = json.loads((folder / BEST_FILE).read_text())
            self.best_loss, self.best_step = float(found["best_loss"]), int(found["best_step"])
        except (OSError, ValueError, KeyError, TypeError):
            self.best_loss = self.best_step = None
