"""What was read of sd-scripts, said in FluxGym's events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

from fluxcore.config import RunConfig
from fluxcore.log import PatientLog
from fluxcore.runs import RunFolder
from fluxcore.training.failures import Exit, TrainingError

from .collect import Checkpoint, Sample
from .command import Plan, sample_prompts
from .progress import Bar, Phase
from .scalars import Step

STEPS = "steps"


class Report:
    """The events of one attempt. `done`: steps finished with a loss that is a number, in sd-scripts' count."""

    def __init__(
        self,
        log: PatientLog,
        folder: RunFolder,
        config: RunConfig,
        plan: Plan,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._log, self._folder, self._config, self._plan, self._clock = log, folder, config, plan, clock
        self._prompts = sample_prompts(config)
        self._phase = ""
        self._counted: tuple[int, int] | None = None
        self._since: float | None = None
        self.done = 0

    def phase(self, name: str, total: float | None = None, unit: str | None = None) -> None:
        """Announce a phase, unless it is the one that goes on."""
        if name != self._phase:
            self._phase, self._counted = name, None
            self._log.append("phase.started", {"phase": name, "total": total, "unit": unit})

    def heard(self, items: Iterable[Bar | Phase], *, steps_too: bool) -> None:
        """Report what the log said. `steps_too`: no better source tells the steps; else the bar's are left out."""
        for item in items:
            if isinstance(item, Phase):
                drawing = item.name == "sample"
                self.phase(item.name, len(self._prompts) if drawing else None, "pictures" if drawing else None)
                if self._phase in ("sample", "save"):
                    self._since = None  # the step that this falls into takes longer for it
            elif item.label == STEPS:
                self._train()
                if steps_too and item.loss is not None and item.done > self.done:
                    self.step(Step(item.done, item.loss, None, self._clock()))
            elif self._phase == "cache":
                self._count(item)

    def step(self, step: Step) -> None:
        """Report finished steps, up to this one. Raises TrainingError where its loss is no number any more."""
        if step.step <= self.done:
            return
        if self._phase not in ("sample", "save"):  # these begin with the step's end, and are heard of before its loss
            self._train()
        seconds = None if self._since is None else max(0.0, step.wall_time - self._since) / (step.step - self.done)
        number = self._plan.first + step.step
        self._log.append(
            "train.step",
            {
                "step": number,
                "total_steps": self._plan.total,
                "epoch": self._plan.epoch(number),
                "loss": step.loss,
                "lr": step.lr,
                "grad_norm": None,
                "step_seconds": seconds,
                "images_per_second": self._config.train_batch_size / seconds if seconds else None,
                "memory_gib": None,
            },
        )
        if not math.isfinite(step.loss):
            raise TrainingError(
                Exit.NAN_LOSS, f"the loss is {step.loss} at step {number}: lower the learning rate, then resume"
            )
        self.done, self._since = step.step, step.wall_time

    def checkpoint(self, saved: Checkpoint) -> None:
        """Report a state or a LoRA that lies whole in the run's folder."""
        data = {
            "step": saved.step,
            "epoch": self._plan.epoch(saved.step),
            "path": self._folder.relative(saved.path),
            "kind": saved.kind,
            "bytes": saved.bytes,
        }
        self._log.append("checkpoint.saved", data | ({"sha256": saved.sha256} if saved.sha256 else {}))

    def sample(self, drawn: Sample) -> None:
        """Report a picture."""
        prompt, seed = self._prompts[drawn.index] if drawn.index < len(self._prompts) else (None, 0)
        self._log.append(
            "sample.saved",
            {
                "step": drawn.step,
                "epoch": self._plan.epoch(drawn.step) if drawn.step else 0,
                "index": drawn.index,
                "prompt": prompt.text if prompt else "",
                "seed": seed,
                "path": self._folder.relative(drawn.path),
            },
        )

    def _train(self) -> None:
        if self._phase != "train":
            if not self.done and self._since is None:
                self._since = self._clock()
            self.phase("train", self._plan.total, STEPS)

    def _count(self, bar: Bar) -> None:
        """Counted progress while sd-scripts encodes pictures, then captions, each with a bar of its own."""
        if self._counted is not None and (bar.total != self._counted[1] or bar.done < self._counted[0]):
            self._phase = ""
            self.phase("cache", bar.total)
        if (bar.done, bar.total) != self._counted:
            self._counted = bar.done, bar.total
            self._log.append("phase.progress", {"phase": "cache", "done": bar.done, "total": bar.total})
