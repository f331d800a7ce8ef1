"""What both pretraining stages share: an exponential average, a schedule, a checkpoint that survives a kill."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn


@dataclass
class Stage:
    """One pretraining stage: `modules` trained together for `steps`, resumable from `checkpoint`.

    `seconds` is the time spent computing, over all sittings.
    """

    checkpoint: Path
    modules: nn.ModuleDict
    steps: int
    learning_rate: float
    warmup: int = 100
    ema_decay: float = 0.999
    save_seconds: float = 120.0
    weight_decay: float = 0.0
    step: int = field(default=0, init=False)
    seconds: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(
            [p for p in self.modules.parameters() if p.requires_grad],
            lr=self.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=self.weight_decay,
            fused=True,
        )
        self.ema = {name: value.detach().clone() for name, value in self.modules.state_dict().items()}
        if self.checkpoint.exists():
            saved = torch.load(self.checkpoint, weights_only=True)
            self.modules.load_state_dict(saved["modules"])
            self.optimizer.load_state_dict(saved["optimizer"])
            self.ema, self.step, self.seconds = saved["ema"], saved["step"], saved["seconds"]

    def save(self) -> None:
        """Write the checkpoint aside and rename it."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        aside = self.checkpoint.with_suffix(".tmp")
        torch.save(
            {
                "modules": self.modules.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "ema": self.ema,
                "step": self.step,
                "seconds": self.seconds,
            },
            aside,
        )
        os.replace(aside, self.checkpoint)

    def use_ema(self) -> None:
        """Put the averaged weights into the modules (for evaluation and export)."""
        self.modules.load_state_dict(self.ema)

    def run(self, loss_of: Callable[[int], torch.Tensor], report: Callable[[int, float], None]) -> None:
        """Train until `steps`; `loss_of(step)` must depend on the step alone, so that a resumed run goes on alike."""
        last_save = time.monotonic()
        smoothed = 0.0
        while self.step < self.steps:
            started = time.monotonic()
            rate = self.learning_rate * learning_rate_factor(self.step, self.steps, self.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = loss_of(self.step)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            decay = min(self.ema_decay, (1 + self.step) / (10 + self.step))
            with torch.no_grad():
                for name, value in self.modules.state_dict().items():
                    if value.is_floating_point():
                        self.ema[name].lerp_(value, 1 - decay)
            self.seconds += time.monotonic() - started
            smoothed = loss.item() if smoothed == 0 else 0.98 * smoothed + 0.02 * loss.item()
            if self.step % 100 == 0 or self.step == self.steps:
                report(self.step, smoothed)
            if time.monotonic() - last_save > self.save_seconds or self.step == self.steps:
                self.save()
                last_save = time.monotonic()


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine down to 2% of the peak."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
