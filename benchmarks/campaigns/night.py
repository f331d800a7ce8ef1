"""A night of rented GPU, ten times as fast, with a fault every minute of it: does every run end, and honestly?

A queue of runs on two GPUs, nobody awake. Limits are a tenth of the defaults (stall 30 s, grace 6 s, a sample each
0.5 s); the pause before an automatic resume is not scaled. The faults are in `faults.py`.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from typing import Any

from fluxcore.runs import RunError, request_start, resume_choice
from fluxcore.runs.auto_resume import auto_resume_follows
from fluxcore.runs.checkpoints import RunFolder

from .faults import Faults
from .newest import newest_whole
from .report import Figure, Progress, none, rate
from .stage import STATES_OF_REST, Stage, stage
from .truth import ended_wrong, started_wrong, unanswered, untrue

GPUS = 2
WAITING = 3
DISK_MIB = 512
CONFIG = {"stall_seconds": 30, "stop_grace_seconds": 6, "sample_gpu_seconds": 0.5, "auto_resume": 2}
LAST_SHARE = 0.85
"""After this share of the night no more runs are queued."""
MORNING_SECONDS = 900.0
"""How long the runs that are still there at the end have, without faults."""


def run(minutes: float, every: float, seed: int = 1) -> tuple[list[Figure], list[str]]:
    """The night: `minutes` by this machine's clock, a fault each `every` seconds. Figures, and what went wrong."""
    chance = random.Random(seed)
    with stage(GPUS, disk_mib=DISK_MIB, gpus=GPUS) as place:
        night = Night(place, chance)
        faults = Faults(place, chance)
        begun = time.monotonic()
        progress = Progress("seconds of the night", round(60 * minutes), every=60)
        next_fault = begun + every
        while (now := time.monotonic()) - begun < 60 * minutes:
            if now - begun < 60 * minutes * LAST_SHARE:
                night.fill_queue()
            if now >= next_fault:
                next_fault += every
                faults.strike(night.open)
            faults.tend()
            night.look()
            progress.at(round(now - begun), night.summary())
            time.sleep(0.1)
        faults.end()
        while night.open and time.monotonic() - begun < 60 * minutes + MORNING_SECONDS:
            faults.tend()
            night.look()
            time.sleep(0.2)
        return night.report(faults)


class Night:
    """The runs of the night."""

    def __init__(self, place: Stage, chance: random.Random) -> None:
        self.place, self.chance = place, chance
        self.names: list[str] = []
        self.open: list[str] = []

    def fill_queue(self) -> None:
        """Keep as many runs as there are GPUs, and some that wait."""
        while len(self.open) < GPUS + WAITING:
            name = f"night-{len(self.names) + 1:04d}"
            try:
                self.place.make(name, CONFIG, **draw_orders(self.chance))
                request_start(self.place.outputs, name, "app")
            except (RunError, OSError):  # a full disk: a person would try again
                return
            finally:
                if name in self.place.names():
                    self.names.append(name)
                    self.open.append(name)

    def look(self) -> None:
        """See which runs are over: at rest, and nobody is going to resume them."""
        for name in list(self.open):
            state = self.place.state(name)
            if state.state == "draft":  # refused (no room, say): a person asks again
                with contextlib.suppress(RunError):
                    request_start(self.place.outputs, name, "app")
            elif state.state in STATES_OF_REST and not state.is_busy and not auto_resume_follows(state):
                self.open.remove(name)

    def summary(self) -> str:
        """The states so far, in a line."""
        states = Counter(self.place.state(name).state for name in self.names)
        return ", ".join(f"{number} {state}" for state, number in sorted(states.items()))

    def report(self, faults: Faults) -> tuple[list[Figure], list[str]]:
        """The night's figures, and what went wrong in words."""
        open_ended, wrong, dishonest, doubles = [], [], [], []
        outcomes: Counter[str] = Counter()
        attempts = resumed = 0
        for name in self.names:
            state, events, ledger = self.place.state(name), self.place.events(name), self.place.ledger(name)
            reason = f" ({state.reason})" if state.reason else ""
            outcomes[state.state + reason] += 1
            attempts += len(state.attempts)
            resumed += sum(attempt.is_automatic for attempt in state.attempts)
            if name in self.open:
                open_ended.append(f"{name} is still {state.state} in the morning")
                continue
            wrong += ended_wrong(name, events) + unanswered(name, events) + untrue(self.place, name)
            doubles += started_wrong(name, events, ledger)
            dishonest += ends_dishonest(self.place, name, faults.shims_killed)
        ends = ", ".join(f"{number} {what}" for what, number in outcomes.most_common())
        figures = [
            Figure(
                f"faults ({len(faults.done)})", ", ".join(f"{n} × {what}" for what, n in Counter(faults.done).items())
            ),
            Figure("left out on this machine", ", ".join(faults.missing) or "nothing"),
            rate("runs that ended", len(self.names) - len(open_ended), len(self.names), "all"),
            Figure("how", f"{ends}; {attempts} attempts, {resumed} of them by themselves"),
            none("ends that are not what happened, or don't say what to do", dishonest),
            none("attempts without exactly one end, lost requests, untrue states", wrong),
            none("duplicate spawns", doubles),
        ]
        return figures, open_ended + dishonest + wrong + doubles


def draw_orders(chance: random.Random) -> dict[str, Any]:
    """How a run's trainer behaves: most train to the end, some break or hang by themselves, once or always."""
    steps = chance.randint(60, 200)
    orders: dict[str, Any] = {
        "steps": steps,
        "step_seconds": chance.uniform(0.1, 0.3),
        "before": [["load", 3, 0.4], ["cache", 10, 0.1]],
        "save_every": 15,
        "save_seconds": 0.3,
        "sample_every": 40,
        "sample_seconds": 1.0,
        "in_place": chance.random() < 0.2,
    }
    at = chance.randint(1, steps - 1)
    trouble = chance.choices(["none", "crash", "nan_loss", "oom_gpu", "hang", "spin"], [12, 2, 1, 1, 2, 2])[0]
    bad: dict[str, Any] = {
        "none": {},
        "crash": {"exit_at": at, "exit_code": 1, "say": "RuntimeError: as told"},
        "nan_loss": {"exit_at": at, "exit_code": 5, "say": "the loss is nan"},
        "oom_gpu": {"exit_at": 0, "exit_code": 6, "say": "CUDA out of memory"},
        "hang": {"hang_at": at},
        "spin": {"spin_at": at, "ignore_term": True},
    }[trouble]
    if chance.random() < 0.6:  # it does so once; else whenever it gets there
        return {**orders, "attempts": {"1": bad}}
    return {**orders, **bad}


def ends_dishonest(place: Stage, name: str, shims_killed: set[tuple[str, int]]) -> list[str]:
    """Where the log's end of an attempt is not what the trainer did, or a failure has no reason and no advice."""
    ledger, problems = place.ledger(name), []
    for event in place.events(name):
        number, data = event.attempt, event.data
        if number is None or event.type not in ("run.completed", "run.failed", "run.stopped", "run.stalled"):
            continue
        code, lost = ledger.ends.get(number), (name, number) in shims_killed
        if event.type == "run.completed" and code not in (0, None):
            problems.append(f"{name}: attempt {number} completed, but its trainer ended with {code}")
        if event.type == "run.failed":
            if not data.get("reason") or not data.get("hint"):
                problems.append(f"{name}: attempt {number} failed without a reason or advice")
            told = data.get("exit_code")
            if code is not None and told != code and not (lost and told is None):
                problems.append(f"{name}: attempt {number} ended with {code}, the log says {told} ({data['reason']})")
    state = place.state(name)
    wanted, choice = newest_whole(place.outputs / name, state), resume_choice(RunFolder(place.outputs / name), state)
    if (choice.name if choice else None) != wanted:
        problems.append(f"{name}: a resume takes {choice and choice.name}, the newest whole state is {wanted}")
    return problems
