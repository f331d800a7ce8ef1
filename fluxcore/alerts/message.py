"""What an alert says: which run, what happened at which step, what to do, where to go on from, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fluxcore import units
from fluxcore.log import number
from fluxcore.runs import RunFolder, RunState
from fluxcore.runs.news import News
from fluxcore.runs.outlook import at_step, command, fitting_hint, going_on, stall_words

LOOKS = {"completed": "success", "failed": "failure", "stalled": "failure", "resumed": "info"}
"""Apprise's kind of message by ours; the others are warnings."""


@dataclass(frozen=True)
class Message:
    """A title, plain sentences one a line, and which of Apprise's four kinds it is."""

    title: str
    body: str
    look: str = "info"


class DeliveryError(Exception):
    """A message that was not delivered: why, in words without an address. `final`: no later try can help."""

    def __init__(self, why: str, *, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


def compose(state: RunState, news: News, folder: RunFolder, host: str) -> Message:
    """The message about one event of a run. `state`: the log up to now; `host`: the machine's name."""
    title, lines = _WORDS[news.kind](state, news, folder)
    name = f"{state.title} ({state.name})" if state.title else state.name
    return Message(f"{name} {title}", "\n".join([*lines, f"Machine: {host}"]), LOOKS.get(news.kind, "warning"))


def trial_message(target: str, host: str) -> Message:
    """What "send a test" sends."""
    return Message("FluxGym: a test", f"The alert target {target!r} works.\nMachine: {host}")


def _completed(state: RunState, news: News, folder: RunFolder) -> tuple[str, list[str]]:
    data = news.data
    loss = number(data.get("final_loss"))
    took = f"{units.plural(news.step, 'step')} in {units.duration(number(data.get('seconds')))}"
    lines = [took + (f", final loss {units.loss(loss)}." if loss is not None else ".")]
    return "is finished", [*lines, f"The LoRA: {folder.path.absolute() / str(data.get('weights') or '')}"]


def _failed(state: RunState, news: News, folder: RunFolder) -> tuple[str, list[str]]:
    reason = str(news.data.get("reason") or "crash")
    if "request" in news.data:  # the resume was refused
        why = f"It was to resume by itself and can't: {reason}."
        return f"does not go on by itself {_at(news)}", [why, *going_on(state, folder, attempt=news.attempt, why=False)]
    return f"failed {_at(news)} ({reason})", [
        fitting_hint(state, str(news.data.get("hint") or "")),
        *_going_on(state, news, folder),
    ]


def _stalled(state: RunState, news: News, folder: RunFolder) -> tuple[str, list[str]]:
    evidence = news.data.get("evidence")
    evidence = evidence if isinstance(evidence, dict) else {}
    what = stall_words(str(news.data.get("verdict") or ""), evidence)
    return f"was stuck {_at(news)}", [what, *_going_on(state, news, folder)]


def _resumed(state: RunState, news: News, folder: RunFolder) -> tuple[str, list[str]]:
    data = news.data
    where = f"Attempt {news.attempt} began from {data.get('resume_from')}."
    return f"goes on by itself from step {data.get('resume_step')}", [where, f"To stop it: {command('stop', folder)}"]


def _stopped(state: RunState, news: News, folder: RunFolder) -> tuple[str, list[str]]:
    reason = str(news.data.get("reason"))
    why = {"disk_low": "the disk is almost full", "shutdown": "the machine shuts down"}.get(reason, reason)
    hint = str(news.data.get("hint") or (_MAKE_ROOM if reason == "disk_low" else ""))
    return f"was stopped {_at(news)}: {why}", [*([hint] if hint else []), *_going_on(state, news, folder)]


def _disk(state: RunState, news: News, folder: RunFolder) -> tuple[str, list[str]]:
    free = number(news.data.get("free_gib"))
    left = f"{units.gib((free or 0) * 2**30)} are left; with less than a checkpoint needs it will be stopped."
    return f"may run out of disk {_at(news)}", [*([left] if free is not None else []), _MAKE_ROOM]


_MAKE_ROOM = "Make room: delete old runs (./fluxgym prune --older-than 30d) or checkpoints that you don't need."
_WORDS: dict[str, Any] = {
    "completed": _completed,
    "failed": _failed,
    "stalled": _stalled,
    "resumed": _resumed,
    "stopped": _stopped,
    "disk": _disk,
}


def _at(news: News) -> str:
    return at_step(news.step, news.total_steps)


def _going_on(state: RunState, news: News, folder: RunFolder) -> list[str]:
    """Where it can go on from, and by whom: as it is now, since a message may come late."""
    return going_on(state, folder, attempt=news.attempt)
