"""How a training can fail, and the exit code by which the runner knows why."""

from __future__ import annotations

import errno

from fluxcore.config import ConfigError
from fluxcore.dataset import PictureError
from fluxcore.errors import UserError
from fluxcore.models.errors import DownloadError
from fluxcore.models.registry import ModelNotFound
from fluxcore.runs.exits import Exit as Exit


class TrainingError(UserError):
    """An expected failure with its exit code; the message is a sentence for a person."""

    def __init__(self, code: Exit, message: str) -> None:
        super().__init__(message)
        self.code = code


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
        return TrainingError(
            Exit.OOM_GPU, "the GPU's memory is full: lower train_batch_size or resolution, or choose a smaller preset"
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TrainingError(Exit.DISK_FULL, "the disk is full: make room, then resume")
    if isinstance(error, UserError):
        return TrainingError(Exit.BAD_CONFIG, str(error))
    return None
