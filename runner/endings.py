"""What an exit means: a reason, a sentence of what to do, the last lines of the trainer's output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fluxcore.tail import last_lines

from .executor import Exit

TAIL_LINES = 20
TAIL_BYTES = 4000

REASON_OF_EXIT = {2: "bad_config", 3: "bad_data", 4: "download", 5: "nan_loss", 6: "oom_gpu", 7: "disk_full"}

HINTS = {
    "oom_gpu": "The GPU's memory was too small: choose a smaller memory preset, a lower resolution, batch size 1 or "
    "gradient checkpointing, then resume.",
    "oom_host": "The machine ran out of memory and ended the trainer: lower workers and batch size, close other "
    "programs or rent more RAM, then resume.",
    "disk_full": "The disk is full: delete old runs or checkpoints (fluxgym prune), then resume.",
    "bad_config": "A setting can't be used; the last line of the log names it. Change it, then start again.",
    "bad_data": "A picture or caption can't be used; the last line of the log names it. Mend or remove it, then start "
    "again.",
    "download": "The base model could not be fetched: check the connection, and for a gated model its licence and "
    "HF_TOKEN, then start again.",
    "nan_loss": "The loss is no longer a number: lower the learning rate (a half or a tenth), then resume from an "
    "earlier checkpoint.",
    "killed": "Something outside FluxGym ended the trainer; if nobody did so on purpose, look at the machine's limits "
    "on time and memory, then resume.",
    "crash": "The trainer broke off with an error that FluxGym doesn't know; the last lines of the log say where. "
    "Resume to go on from the last checkpoint.",
    "lost": "The trainer went away while nobody watched (the machine restarted, or its parent process was killed), so "
    "its exit code is not known. Resume to go on from the last checkpoint.",
}

STOP_HINTS = {
    "disk_low": "The disk was nearly full, so the training was stopped while its state could still be saved: delete "
    "old runs or checkpoints (fluxgym prune), or keep fewer states (save_last_n_epochs_state), then resume.",
    "shutdown": "The machine was shut down; resume to go on from the last checkpoint.",
}
"""What to do after a stop that the runner asked for itself."""

# What a trainer of another make says before it ends with a code of its own.
_TEXTS = {
    "oom_gpu": ("cuda out of memory", "torch.outofmemoryerror", "cuda error: out of memory"),
    "disk_full": ("no space left on device",),
    "download": ("gatedrepoerror", "repositorynotfounderror", "localentrynotfounderror"),
}


@dataclass(frozen=True)
class Ending:
    """`ok` for a completed training; else a reason of the contract and its hint."""

    ok: bool
    reason: str = ""
    hint: str = ""


def explain(ended: Exit, weights_whole: bool, tail: str, all_steps_done: bool) -> Ending:
    """What an exit that nobody here asked for means."""
    if ended.exit_code is None:
        return Ending(True) if weights_whole and all_steps_done else _failed("lost")
    if ended.exit_code == 0:
        if weights_whole:
            return Ending(True)
        return Ending(False, "crash", "The trainer ended without an error, but its LoRA file is missing or cut short.")
    if ended.signal == "SIGKILL" and ended.oom_kills:
        return _failed("oom_host")
    if ended.signal in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGXCPU") or ended.exit_code in (
        130,
        143,
    ):
        return _failed("killed")
    if ended.exit_code in REASON_OF_EXIT:
        return _failed(REASON_OF_EXIT[ended.exit_code])
    lowered = tail.lower()
    for reason, texts in _TEXTS.items():
        if any(text in lowered for text in texts):
            return _failed(reason)
    return _failed("crash")


def was_stopped(ended: Exit, asked_here: bool) -> bool:
    """Whether an exit, after a stop was requested, is that stop's doing rather than a failure just before it."""
    return asked_here or ended.signal in ("SIGTERM", "SIGKILL") or ended.exit_code in (143, None)


def read_tail(path: Path, offset: int = 0) -> str:
    """The last lines of a log from `offset` on, at most 20 lines and 4000 bytes; "" where there is none."""
    lines = last_lines(path, TAIL_BYTES, offset=offset, most_bytes=TAIL_BYTES)
    return "\n".join([line for line in lines if line][-TAIL_LINES:])


def _failed(reason: str) -> Ending:
    return Ending(False, reason, HINTS[reason])
