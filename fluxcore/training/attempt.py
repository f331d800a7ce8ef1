"""One attempt between its steps: how it is measured, sampled, saved and stopped. Its loop is train.py's."""

from __future__ import annotations

import glob
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image

from fluxcore.config import RunConfig
from fluxcore.dataset.layout import Layout
from fluxcore.log import PatientLog
from fluxcore.models.family import Family
from fluxcore.models.loading import PromptEmbedding
from fluxcore.models.registry import BaseModel
from fluxcore.runs.files import RunFolder

from .averages import Averages
from .compiling import Compiling
from .data import Batch
from .failures import Exit
from .memory import if_it_fits, in_parts
from .metadata import thumbnail_of, training_info
from .prompts import SamplePrompt
from .ranks import Ranks
from .report import Report
from .sampling import draw, save_png
from .saving import Saver
from .states import lora_state
from .validation import Validation


class Stopped(Exception):
    """A TERM came while something long was going on."""


@dataclass
class Attempt(ABC):
    """What to train, where to write, whether a TERM came, and what a person asked for meanwhile."""

    folder: RunFolder
    config: RunConfig
    log: PatientLog
    resume_from: Path | None = None
    stopping: Callable[[], bool] = lambda: False
    wishes: Callable[[], set[str]] = set
    ranks: Ranks = field(default_factory=Ranks)
    started: float = field(default_factory=time.time)
    make_way: Callable[[], object] = lambda: None
    """Sets aside what lies beyond the resume point; called once the first step can be made."""

    # Filled by Training.run(), in this order.
    model: BaseModel = field(init=False)
    family: Family = field(init=False)
    prompts: list[SamplePrompt] = field(init=False)
    layout: Layout = field(init=False)
    device: torch.device = field(init=False)
    pipeline: Any = field(init=False)
    compiling: Compiling = field(init=False)
    embeddings: dict[str, PromptEmbedding] = field(default_factory=dict)
    averages: Averages | None = None
    validation: Validation | None = None
    measured: dict[int, float | None] = field(default_factory=dict)
    """The last validation loss, by its step: a save right after it takes it from here."""
    saved_step: int = 0
    """The step of the newest state, or the one that was resumed from."""

    def __post_init__(self) -> None:
        self.report = Report(self.log, self.heed_stop)
        self.saver = Saver(self.folder, self.config, self.report, self.log.attempt)

    @abstractmethod
    def losses(self, pipeline: Any, batch: Batch) -> torch.Tensor:
        """The loss of each sample (B,)."""

    def epoch_of(self, step: int) -> int:
        """The epoch (from 1) that a step belongs to; 0 before the first step."""
        return -(-step // self.layout.steps_per_epoch)

    def heed_stop(self) -> None:
        """Raise Stopped where a TERM came; called in all that lasts longer than a step, by all processes alike."""
        if self.ranks.any(self.stopping()):
            raise Stopped

    def shown(self) -> AbstractContextManager[None]:
        """Within it the network has the weights to be saved, drawn and measured."""
        return self.averages.shown() if self.averages else nullcontext()

    def validate(self, step: int) -> float | None:
        """Measure the loss on the held-out pictures, of the weights that a save would write; None without any."""
        if self.validation is None:
            return None
        if step in self.measured:  # at a save right after
            return self.measured[step]
        pipeline, validation = self.pipeline, self.validation
        pipeline.transformer.eval()
        try:
            with self.shown(), self.compiling.as_written():
                if self.ranks.count > 1:  # which all do the same, or wait for each other
                    loss = validation.measure(lambda batch: self.losses(pipeline, batch), self.heed_stop)
                else:
                    one = lambda batch: in_parts(lambda part: self.losses(pipeline, part), batch)
                    loss = if_it_fits(lambda: validation.measure(one, self.heed_stop))
        finally:
            pipeline.transformer.train()
        if loss is None:
            self.report.short_memory("validation", step, "this validation is left out")
            self.measured = {step: None}
            return None
        best = self.validation.note(loss, step)
        self.measured = {step: loss}
        self.report.validation(step, self.epoch_of(step), loss, self.validation, best)
        return loss

    def sample(self, step: int) -> None:
        """Draw every sample prompt with the LoRA as it is now."""
        if not self.prompts:
            return
        config = self.config
        self.report.phase("sample", total=len(self.prompts), unit="pictures")
        progress = self.report.progress("sample")
        with self.shown(), self.compiling.as_written():
            for index, prompt in enumerate(self.prompts):
                seed = config.seed + index if prompt.seed is None else prompt.seed
                drawn = self._drawn(prompt, seed)
                if drawn is None:
                    self.report.short_memory("sample", step, f"the sample of prompt {index + 1} is left out")
                else:
                    self._keep(drawn, prompt, index, seed, step)
                progress(index + 1, len(self.prompts))

    def _keep(self, drawn: Image.Image, prompt: SamplePrompt, index: int, seed: int, step: int) -> None:
        path = self.folder.sample(index, seed, step=step)
        if self.ranks.first:
            save_png(drawn, path, prompt.text)
        self.report.sample(step, self.epoch_of(step), index, prompt.text, seed, self.folder.relative(path))

    def _drawn(self, prompt: SamplePrompt, seed: int) -> Image.Image | None:
        """The prompt's picture; None where it does not fit into the memory. Several processes wait for each other
        in it, so there none goes on without the others."""

        def one() -> Image.Image:
            size = self.config.resolution
            return draw(self.family, self.pipeline, prompt, self.embeddings, size, seed, self.heed_stop)

        return one() if self.ranks.count > 1 else if_it_fits(one)

    def save(self, accelerator: Accelerator, weights: Path, state: Path, step: int, with_state: bool) -> None:
        """Write the LoRA, and the state with it where that is wanted."""
        try:
            loss = self.validate(step)
        except Stopped:  # a TERM saves a state anyway; here it only cuts the measuring short
            loss = None
        if not self.ranks.first:
            self.saved_step = step
            return
        epoch = self.epoch_of(step)
        self.report.phase("save")
        if with_state:
            self._save_state(accelerator, state, epoch, step)
        with self.shown():
            found = lora_state(self.pipeline.transformer)
            lora = {name: value.to("cpu", copy=True) for name, value in found.items()}  # what is shown is taken back
        info = training_info(self.config, self.model, self.layout, self.started, self._thumbnail())
        self.saver.weights(weights, lora, self.family, info, epoch, step, loss)

    def _thumbnail(self) -> str | None:
        """Of the newest sample of the first prompt with the LoRA in it, whichever attempt drew it."""
        name = glob.escape(self.folder.name)
        for path in sorted(self.folder.samples.glob(f"{name}_[0-9]*_00_*.png"), reverse=True):
            with suppress(OSError, ValueError), Image.open(path) as picture:  # one that is torn: the next
                return None if path.name.startswith(f"{self.folder.name}_000000_") else thumbnail_of(picture)
        return None

    def _save_state(self, accelerator: Accelerator, state: Path, epoch: int, step: int) -> None:
        self.saver.state(accelerator, state, epoch, step)
        self.saved_step = step

    def _stop(self, accelerator: Accelerator, step: int) -> Exit:
        if self.ranks.first and self.config.enable_checkpointing and step > self.saved_step:
            self.report.phase("save")
            self._save_state(accelerator, self.folder.step_state(step), self.epoch_of(step), step)
        print(f"stopped at step {step}", flush=True)
        return Exit.STOPPED

    def _report(self, step: int, loss: float, rate: float, grad_norm: float, seconds: float, images: int) -> None:
        self.report.step(
            step, self.layout.total_steps, self.epoch_of(step),
            loss=loss, rate=rate, grad_norm=grad_norm, seconds=seconds, images=images,
        )  # fmt: skip
