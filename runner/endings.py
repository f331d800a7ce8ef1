"""What an exit means: a reason, a sentence of what to do, the last lines of the trainer's output."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from fluxcore.runs.exits import FAILED, REASONS, RESUME_WITH, TOO_SHORT_FOR
from fluxcore.tail import last_lines
from fluxcore.trainers import SAVE_NOTHING_ON_TERM

from .executor import Exit
from .hints import ANOTHER_PROGRAM, Facts, gpu_trouble, lower_memory, lower_rate, tight_memory
from .signs import Sign, find_sign, last_error

TAIL_LINES = 20
TAIL_BYTES = 4000
LOOK_LINES = 80
LOOK_BYTES = 16_000
"""What is looked through for the cause: a launcher's own traceback may stand below the one that tells."""

HINTS = {
    "oom_gpu": "The GPU's memory was too small: choose a smaller memory preset, a lower resolution, batch size 1 or "
    "gradient checkpointing, then {again}.",
    "oom_host": "The machine ran out of memory and ended the trainer: lower workers and batch size, close other "
    "programs or rent more RAM.",
    "disk_full": "The disk is full: delete old runs or checkpoints (fluxgym prune), then {again}.",
    "bad_config": "A setting can't be used; the last line of the log names it. Change it, then {again}.",
    "bad_data": "A picture or caption can't be used; the last line of the log names it. Mend or remove it, then "
    "{again}.",
    "download": "The base model could not be fetched: check the connection, and for a gated model its licence and "
    "HF_TOKEN, then {again}.",
    "nan_loss": "The loss is no longer a number: lower the learning rate (a half or a tenth), then resume from an "
    "earlier checkpoint.",
    "killed": "Something outside FluxGym ended the trainer{detail}; if nobody did so on purpose, look at the machine's "
    "limits on time and memory.",
    "crash": "The trainer broke off with an error that FluxGym doesn't know{detail}; where that comes again, look at "
    "the last lines of the log.",
    "lost": "The trainer went away while nobody watched (the machine restarted, or its parent process was killed), so "
    "its exit code is not known; where that comes again, look at what ends processes on this machine.",
}
"""By reason. Of those after which a run may resume by itself none ends in "then resume": what follows says who does."""

STOP_HINTS = {
    "disk_low": "The disk was nearly full, so the training was stopped while its state could still be saved: delete "
    "old runs or checkpoints (fluxgym prune), or keep fewer states (save_last_n_epochs_state), then resume.",
    "shutdown": "Everything was stopped (--stop-all, or the machine was shut down); resume to go on from the last "
    "checkpoint.",
}
"""What to do after a stop that the runner asked for itself."""

NOTHING_SAVED = {
    "disk_low": "The disk was nearly full, so the training was stopped; {trainer} save nothing when stopped, so what "
    "came after the last checkpoint is lost: delete old runs or checkpoints (fluxgym prune), or keep fewer states "
    "(save_last_n_epochs_state), then {again}.",
}
"""The same for a trainer that saves nothing on a TERM."""

SAID = {
    "bad_config": "A setting can't be used: {sentence}. Once that is set right, {again}.",
    "bad_data": "The pictures can't be used: {sentence}. Once that is mended, {again}.",
    "download": "The base model can't be used: {sentence}. Once that is mended, {again}.",
}
"""Hints made of the trainer's own sentence, which may say what is wrong or also what to do."""

NO_WEIGHTS = "The trainer ended without an error, but its LoRA file is missing or cut short: {again} to write it anew."

KILLERS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGXCPU", "SIGXFSZ")
BREAKDOWNS = {
    "SIGSEGV": "a library or the GPU's driver reached into memory that is not its own",
    "SIGBUS": "a file or shared memory that it had open went away, or the disk gave an error",
    "SIGILL": "this processor lacks an instruction that an installed package uses",
    "SIGABRT": "a library gave up",
    "SIGFPE": "a library divided by zero",
}


@dataclass(frozen=True)
class Ending:
    """`ok` for a completed training; else a reason of the contract and its hint."""

    ok: bool
    reason: str = ""
    hint: str = ""


def explain(ended: Exit, weights_whole: bool, text: str, all_steps_done: bool, facts: Facts | None = None) -> Ending:
    """What an exit that nobody here asked for means. `text`: the end of what the trainer printed."""
    facts = facts or Facts()
    if ended.exit_code is None:
        return Ending(True) if weights_whole and all_steps_done else _failed("lost", facts)
    if ended.exit_code == 0:
        return Ending(True) if weights_whole else Ending(False, "crash", NO_WEIGHTS.format(again=facts.again))
    oom_kills = ended.oom_kills if facts.oom_kills is None else facts.oom_kills
    if ended.signal == "SIGKILL" and oom_kills:
        return _failed("oom_host", facts)
    if ended.signal in KILLERS or ended.exit_code in (130, 143):
        by = f" ({ended.signal})" if ended.signal else ""
        return _failed("killed", facts, by + (tight_memory(facts) if ended.signal == "SIGKILL" else ""))
    if ended.exit_code in REASONS:
        return _said(REASONS[ended.exit_code], text, facts)  # type: ignore[index]
    trouble = gpu_trouble({uuid: gpu for uuid, gpu in facts.gpus.items() if gpu.problem != "no_answer"})
    found = find_sign(text)
    if found is not None and not (trouble and found[0].reason == "crash"):
        return _told(*found, text, facts)
    if trouble:
        return Ending(False, "crash", f"{trouble}, then {facts.again}.")
    if oom_kills:  # not the trainer itself, but something that it needed
        return _failed("oom_host", facts)
    if ended.signal in BREAKDOWNS:
        return _failed("crash", facts, f" ({ended.signal}: {BREAKDOWNS[ended.signal]})")
    quoted = last_error(text)
    return _failed("crash", facts, f" (“{quoted}”)" if quoted else "")


def stop_hint(reason: str, trainer: str, again: str) -> str:
    """What to do after a stop for `reason` of a run that `trainer` trained; "" after a person's."""
    hint = STOP_HINTS.get(reason, "")
    if trainer in SAVE_NOTHING_ON_TERM:
        hint = NOTHING_SAVED.get(reason, hint)
    return hint.format(trainer=trainer, again=again)


def was_stopped(ended: Exit, asked_here: bool) -> bool:
    """Whether an exit, after a stop was requested, is that stop's doing rather than a failure just before it."""
    return asked_here or ended.signal in ("SIGTERM", "SIGKILL") or ended.exit_code in (143, None)


def read_tail(path: Path, offset: int = 0, lines: int = TAIL_LINES, most_bytes: int = TAIL_BYTES) -> str:
    """The last lines of a log from `offset` on, at most 20 lines and 4000 bytes; "" where there is none."""
    found = last_lines(path, most_bytes, offset=offset, most_bytes=most_bytes)
    return "\n".join([line for line in found if line][-lines:])


def _said(reason: str, text: str, facts: Facts) -> Ending:
    """A failure that our trainer names itself: its exit code is the reason, its last sentence the detail."""
    if reason == "nan_loss":
        return Ending(False, reason, lower_rate(facts))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    sentence = next((line.removeprefix(FAILED) for line in reversed(lines) if line.startswith(FAILED)), "")
    if reason == "oom_gpu":
        hint = lower_memory(facts, text)
        if not sentence.startswith(TOO_SHORT_FOR) or hint.startswith(ANOTHER_PROGRAM):
            return Ending(False, reason, hint)
        return Ending(False, reason, f"{sentence[0].upper()}{sentence[1:]}, then {facts.again}.")
    if not sentence:
        found = find_sign(text, reason)
        return _told(*found, text, facts) if found else _failed(reason, facts)
    if reason not in SAID:
        return _failed(reason, facts)
    said = SAID[reason].partition("{sentence}.")[0] + "{sentence}." if RESUME_WITH in sentence else SAID[reason]
    return Ending(False, reason, said.format(sentence=sentence.rstrip("."), again=facts.again))


def _told(sign: Sign, groups: dict[str, str], line: str, text: str, facts: Facts) -> Ending:
    """A failure that the log tells of."""
    if sign.reason == "oom_gpu":
        return Ending(False, sign.reason, lower_memory(facts, line))
    if not sign.hint:
        return _failed(sign.reason, facts)
    return Ending(False, sign.reason, sign.hint.format_map(defaultdict(lambda: "it", groups, again=facts.again)))


def _failed(reason: str, facts: Facts, detail: str = "") -> Ending:
    return Ending(False, reason, HINTS[reason].format(again=facts.again, detail=detail))
