"""How a training can fail, and the exit code by which the runner knows why."""

from __future__ import annotations

import errno

from fluxcore.config import ConfigError
from fluxcore.dataset import PictureError
from fluxcore.errors import UserError
from fluxcore.models.errors import DownloadError
from fluxcore.models.registry import ModelNotFound
from fluxcore.runs.exits import TOO_SHORT_FOR
from fluxcore.runs.exits import Exit as Exit


class TrainingError(UserError):
    """An expected failure with its exit code; the message is a sentence for a person."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


_TOO_SHORT = {
    "load": "the base model: set fp8_base=true or quantize_base, raise blocks_to_swap, or choose a smaller preset",
    "cache": "encoding pictures and captions: set encode_on_cpu=true or lower resolution",
    "update": "the optimizer's moments: set optimizer_type=adamw8bit or adafactor, or lower network_dim",
    "sample": "drawing a sample: ask for smaller ones (--w, --h) or set sample_every_n_steps=0",
    "save": "a save: lower train_batch_size or resolution, or choose a smaller preset",
}


def out_of_memory(phase: str) -> TrainingError:
    """The failure of a GPU that is full in `phase`, or in the optimizer's `update`, and what to change."""
    if phase not in _TOO_SHORT:
        advice = "lower train_batch_size or resolution, or choose a smaller preset"
        return TrainingError(Exit.OOM_GPU, f"the GPU's memory is full: {advice}")
    return TrainingError(Exit.OOM_GPU, f"{TOO_SHORT_FOR} {_TOO_SHORT[phase]}")


def explain(error: BaseException) -> TrainingError | None:
    """`error` as an expected failure, or None where it is a bug."""
    # Imported here, because importing torch takes seconds and this module is light.
    import torch

    if isinstance(error, TrainingError):
        return error
    if isinstance(error, DownloadError):
        return TrainingError(Exit.DOWNLOAD, str(error))
    if isinstance(error, PictureError):
        return TrainingError(Exit.BAD_DATA, str(error))
    if isinstance(error, ConfigError | ModelNotFound):
        return TrainingError(Exit.BAD_CONFIG, str(error))
    if isinstance(error, torch.OutOfMemoryError):
        return out_of_memory("train")
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error)):
        advice = "lower workers and train_batch_size, close other programs or take a larger machine, then resume"
        return TrainingError(Exit.OOM_HOST, f"the machine's memory is full: {advice}")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TrainingError(Exit.DISK_FULL, "the disk is full: make room, then resume")
    if isinstance(error, UserError):
        return TrainingError(Exit.BAD_CONFIG, str(error))
    return None
