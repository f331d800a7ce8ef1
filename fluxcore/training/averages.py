"""The weights that are looked at: what is saved and drawn is not always what is trained.

With an EMA it is the average of the steps so far; with a schedule-free optimizer the point that its `eval()` gives.
Both are swapped in for a save, samples or validation, and the trained weights are put back to the bit, so that looking
changes no training.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .failures import Exit, TrainingError

EMA_FILE = "ema.safetensors"


class Averages:
    """The trained parameters beside what is shown of them. `decay`: the EMA's, 0 = none."""

    def __init__(self, named: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer, decay: float) -> None:
        self._named, self._parameters, self._decay = named, list(named.values()), decay
        self._optimizer: Any = optimizer if hasattr(optimizer, "eval") else None
        self._ema = [parameter.detach().clone() for parameter in self._parameters] if decay else []
        self.train_mode()

    def train_mode(self) -> None:
        """A schedule-free optimizer steps only so."""
        if self._optimizer is not None:
            self._optimizer.train()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimizer step `step` (from 1). Early on it follows faster: decay at most (1 + step) / (10 + step)."""
        if self._ema:
            decay = min(self._decay, (1 + step) / (10 + step))
            get_ema_multi_avg_fn(decay)(self._ema, self._parameters, None)

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within it the model has the weights to be saved and drawn."""
        if not self._ema and self._optimizer is None:
            yield
            return
        trained = [parameter.detach().clone() for parameter in self._parameters]
        try:
            if self._ema:
                self._set(self._ema)
            else:
                self._optimizer.eval()
            yield
        finally:
            self.train_mode()
            self._set(trained)

    def save(self, folder: Path) -> None:
        """Write the EMA into a state's folder: a file of its own, which sd-scripts pass over."""
        if self._ema:
            save_file(dict(zip(self._named, (value.cpu() for value in self._ema), strict=True)), folder / EMA_FILE)

    def load(self, folder: Path) -> None:
        """Read it back. A state without one, of before it was asked for, starts it at the present weights.

        Raises TrainingError where it is torn or another network's.
        """
        if not self._ema:
            return
        with torch.no_grad():
            for value, parameter in zip(self._ema, self._parameters, strict=True):
                value.copy_(parameter)
        if not (folder / EMA_FILE).is_file():
            return
        try:
            found = load_file(folder / EMA_FILE)
            for value, name in zip(self._ema, self._named, strict=True):
                value.copy_(found[name])
        except (OSError, KeyError, RuntimeError, SafetensorError) as error:
            raise TrainingError(Exit.BAD_CONFIG, f"the EMA of {folder.name} can't be read ({error})") from None

    @torch.no_grad()
    def _set(self, values: list[torch.Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)
