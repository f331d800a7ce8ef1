"""An attempt's checkpoints: state folders and LoRA files, written whole, told of, and old states let go."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator

from fluxcore.config import RunConfig
from fluxcore.models.family import Family
from fluxcore.runs.files import RunFolder
from fluxcore.runs.retention import prune_states
from fluxcore.runs.state_files import file_hash

from .lora_file import save_network
from .lora_metadata import TrainingInfo, sd_scripts_metadata
from .network import DTYPES, network_settings, network_tensors
from .report import Report
from .states import save_state


@dataclass
class Saver:
    """Writes the checkpoints of `attempt` into its run's folder. Raises OSError with nothing torn left over."""

    folder: RunFolder
    config: RunConfig
    report: Report
    attempt: int | None
    parts: list[Callable[[Path], None]] = field(default_factory=list)
    """What writes files of its own into each state, beside accelerate's."""
    base: str = ""
    """The base model as states tell it."""

    def state(self, accelerator: Accelerator, target: Path, epoch: int, step: int) -> None:
        """Write a state folder; older states go as the config says."""
        size = save_state(
            accelerator,
            self.folder,
            target,
            epoch,
            step,
            self.attempt,
            self.parts,
            self.base,
            network_settings(self.config),
        )
        self.report.checkpoint(step, epoch, self.folder.relative(target), "state", size)
        prune_states(self.folder, self.config.save_last_n_epochs_state, self.config.save_last_n_steps_state, step)

    def weights(
        self,
        target: Path,
        lora: Mapping[str, torch.Tensor],
        family: Family,
        info: TrainingInfo,
        epoch: int,
        step: int,
        validation_loss: float | None,
    ) -> None:
        """Write a LoRA file. `lora`: the adapter by peft's names, on the CPU; `info`: what the file says of the run."""
        tensors = network_tensors(lora, self.config, family, DTYPES[self.config.save_precision])
        save_network(target, tensors, sd_scripts_metadata(info, steps=step, epoch=epoch, finished_at=time.time()))
        more = {} if validation_loss is None else {"validation_loss": validation_loss}
        path, size = self.folder.relative(target), target.stat().st_size
        self.report.checkpoint(step, epoch, path, "weights", size, sha256=file_hash(target), **more)
