"""How a trainer says why it ended, and the runner understands: an exit code, and a sentence on standard error."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of `python -m fluxcore.training`; 128 + 15 is a TERM that was obeyed."""

    DONE = 0
    CRASH = 1
    BAD_CONFIG = 2
    BAD_DATA = 3
    DOWNLOAD = 4
    NAN_LOSS = 5
    OOM_GPU = 6
    DISK_FULL = 7
    OOM_HOST = 8
    STOPPED = 143


REASONS = {
    Exit.BAD_CONFIG: "bad_config",
    Exit.BAD_DATA: "bad_data",
    Exit.DOWNLOAD: "download",
    Exit.NAN_LOSS: "nan_loss",
    Exit.OOM_GPU: "oom_gpu",
    Exit.DISK_FULL: "disk_full",
    Exit.OOM_HOST: "oom_host",
}
"""What `run.failed` calls them."""

FAILED = "training failed: "
"""Begins the line of standard error whose rest is the sentence for a person; more noise may follow it."""

RESUME_WITH = "resume with"
"""In a trainer's sentence: it names the resume that works, so nothing more of that is said behind it."""

TOO_SHORT_FOR = "the GPU's memory is too short for"
"""Begins the sentence of a trainer whose GPU is full elsewhere than in a step, which says what to do. (Of a step the
runner knows better what the config can lower.)"""

CHECKPOINT_DAMAGED = "checkpoint {name} is damaged"
"""Begins the sentence of a trainer that can't go on from there, but perhaps from an older one."""

END_RUNNER = "end the runner (its pid is in .runner.json; trainings go on), whose environment all trainers get"
"""What has to follow a change of an environment variable that trainers read, for a person."""
