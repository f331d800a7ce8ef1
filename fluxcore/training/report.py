"""What an attempt tells of itself: events for the run's log, and lines on standard output, which is the train.log."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fluxcore.config import RunConfig
from fluxcore.log import PatientLog

from .states import Resumed
from .validation import Validation

LINE_SECONDS = 2.0
"""How often a step is told on standard output; the log has every one."""
PROGRESS_SECONDS = 0.5


class Report:
    """Tells of one attempt, in the log's terms and in a person's."""

    def __init__(self, log: PatientLog, heed_stop: Callable[[], None]) -> None:
        """`heed_stop` is called with all counted progress, and may raise: what is counted lasts longer than a step."""
        self._log, self._heed_stop = log, heed_stop
        self._last_line = 0.0
        self.current = "load"
        """The phase that is going on, by which an end for want of memory is explained."""

    def phase(self, name: str, total: float | None = None, unit: str | None = None) -> None:
        """Announce a phase; it lasts until the next one."""
        self.current = name
        self._log.append("phase.started", {"phase": name, "total": total, "unit": unit})
        print(f"phase: {name}", flush=True)

    def progress(self, phase: str) -> Callable[[float, float], None]:
        """A callback (done, total) that reports counted progress of `phase`, at most twice a second and at its end."""
        last = 0.0

        def report(done: float, total: float) -> None:
            nonlocal last
            self._heed_stop()
            if done >= total or time.monotonic() - last > PROGRESS_SECONDS:
                last = time.monotonic()
                self._log.append("phase.progress", {"phase": phase, "done": done, "total": total})

        return report

    def encoding(self, total: int, unit: str) -> Callable[[float, float], None]:
        """Announce that so many captions or pictures are encoded now; returns what each of them is reported to."""
        self.phase("cache", total=total, unit=unit)
        return self.progress("cache")

    def step(
        self,
        step: int,
        total: int,
        epoch: int,
        *,
        loss: float,
        rate: float,
        grad_norm: float,
        seconds: float,
        images: int,
    ) -> None:
        """An optimizer step of `images` samples in `seconds`."""
        self._log.append(
            "train.step",
            {
                "step": step,
                "total_steps": total,
                "epoch": epoch,
                "loss": loss,
                "lr": rate,
                "grad_norm": grad_norm,
                "step_seconds": seconds,
                "images_per_second": images / seconds if seconds > 0 else None,
                "memory_gib": _memory_gib(),
            },
        )
        if time.monotonic() - self._last_line > LINE_SECONDS or step == total:
            self._last_line = time.monotonic()
            pace = f"lr {rate:.2e}  {1 / seconds:.2f} it/s"
            print(f"step {step}/{total}  epoch {epoch}  loss {loss:.4f}  {pace}", flush=True)

    def sample(self, step: int, epoch: int, index: int, prompt: str, seed: int, path: str) -> None:
        """A picture of the prompt with that index was drawn; `path` relative to the run's folder."""
        data = {"step": step, "epoch": epoch, "index": index, "prompt": prompt, "seed": seed, "path": path}
        self._log.append("sample.saved", data)

    def checkpoint(self, step: int, epoch: int, path: str, kind: str, size: int, **more: Any) -> None:
        """A checkpoint is whole: `kind` state or weights, `size` in bytes, `path` relative to the run's folder."""
        data = {"step": step, "epoch": epoch, "path": path, "kind": kind, "bytes": size, **more}
        self._log.append("checkpoint.saved", data)

    def validation(self, step: int, epoch: int, loss: float, validation: Validation, best: bool) -> None:
        """The loss on the held-out pictures, and whether it is the lowest so far."""
        self._log.append(
            "validation.measured",
            {
                "step": step,
                "epoch": epoch,
                "loss": loss,
                "pictures": validation.pictures,
                "best": best,
                "best_loss": validation.best_loss,
                "best_step": validation.best_step,
            },
        )
        print(f"validation at step {step}: {loss:.4f}{' (the lowest so far)' if best else ''}", flush=True)

    def adapted(self, found: Resumed, state: Path) -> None:
        """Where the checkpoint could not be taken over as it was; nothing where it could."""
        if not (found.theirs or found.notices):
            return
        source = "sd-scripts" if found.theirs else "fluxgym"
        self._log.append(
            "resume.adapted",
            {
                "step": found.step,
                "checkpoint": state.name,
                "source": source,
                "optimizer": "fresh" if found.fresh else "kept",
                "notices": list(found.notices),
            },
        )
        told = "; ".join((f"resumed from {source}' state" if found.theirs else "resumed", *found.notices))
        print(f"{state.name}: {told}", flush=True)

    def continued(self, notice: str) -> None:
        """A LoRA (`network_weights`) was taken over; `notice` is what is to be told of it, or ""."""
        if notice:
            self._log.append("weights.adapted", {"notice": notice})
            print(notice, flush=True)

    def other_data(self, state: Path, step: int, pictures: int, config: RunConfig, batches_before: int) -> None:
        """Pictures, captions, their settings or a step's batches aren't those that the checkpoint was trained with."""
        if batches_before != config.batches_per_step:
            change = f"The batches of a step were {batches_before} at {state.name} and are {config.batches_per_step}"
            accumulated, over = divmod(batches_before, config.processes)
            mend = f"gradient_accumulation_steps={accumulated}" if not over else f"{batches_before} processes"
        else:
            change = f"The pictures, captions or dataset settings have changed since {state.name}"
            mend = "the old ones"
        notice = f"{change}: the training goes on as they are now."
        hint = f"To go on as if it had never stopped, resume from there with {mend}."
        data = {"step": step, "checkpoint": state.name, "pictures": pictures, "notice": notice, "hint": hint}
        self._log.append("dataset.changed", data)
        print(f"{notice} {hint}", flush=True)

    def compiling(self, type: str, data: dict[str, Any]) -> None:
        """What Compiling decided, as an event's type and data."""
        self._log.append(type, data)
        what = f"can't be compiled, they run as written ({data['reason']})" if "reason" in data else "are compiled now"
        print(f"the transformer's blocks {what}", flush=True)

    def short_memory(self, phase: str, step: int, instead: str, **changed: Any) -> None:
        """The GPU was full at `step` in what `phase` says; `instead`: what is done; `changed`: settings from now on."""
        where = f" at step {step}" if step else ""
        advice = " (set train_batch_size and gradient_checkpointing so)" if changed else ""
        data = {"phase": phase, "step": step, "instead": instead, "batch": None, "gradient_checkpointing": None}
        data["notice"] = f"The GPU's memory was full{where} ({phase}): {instead}{advice}."
        self._log.append("memory.short", data | changed)
        print(data["notice"], flush=True)


def _memory_gib() -> float:
    """Peak memory of the GPU, or of this process where there is none, in GiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
