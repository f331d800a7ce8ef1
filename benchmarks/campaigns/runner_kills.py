"""kill -9 of the runner at random moments, over runs that end in every way: nobody else may notice."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from fluxcore.log import parse_ts
from fluxcore.runs import ENDED_STATES, request_start, request_stop

from .report import Figure, Progress, at_most, none, rate
from .stage import Stage, Start, stage
from .truth import ended_wrong, numbered_wrong, started_wrong, unanswered, untrue

SLOTS = 4
ADOPTION_SECONDS = 2.0
REASONS = {
    1: "crash",
    2: "bad_config",
    3: "bad_data",
    4: "download",
    5: "nan_loss",
    6: "oom_gpu",
    7: "disk_full",
    9: "crash",
}
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)


@dataclass(frozen=True)
class Fate:
    """How a run is going to end: `way`, the exit code or signal where there is one, the step at which."""

    way: str
    number: int = 0
    step: int = 0


def draw_fate(chance: random.Random) -> tuple[Fate, dict[str, Any], dict[str, Any]]:
    """A fate, with the stub's orders and the config that bring it about."""
    steps, pace = chance.randint(15, 90), chance.uniform(0.01, 0.04)
    orders: dict[str, Any] = {"steps": steps, "step_seconds": pace, "save_every": 10}
    at = chance.randint(1, steps - 1)
    way = chance.choice(["completes", "completes", "exits", "exits", "signal", "stopped", "stopped", "stalls"])
    config: dict[str, Any] = {"auto_resume": 0, "stop_grace_seconds": 1.0}
    if way == "exits":
        code = chance.choice(list(REASONS))
        return Fate(way, code, at), {**orders, "exit_at": at, "exit_code": code, "say": "as told"}, config
    if way == "signal":
        number = int(chance.choice(SIGNALS))
        return Fate(way, number, at), {**orders, "kill_at": at, "kill_signal": number}, config
    if way == "stopped":
        deaf = chance.random() < 0.3
        return Fate(way, 0, at), {**orders, "steps": 100_000, "ignore_term": deaf, "children": ["setsid"]}, config
    if way == "stalls":
        return Fate(way, 0, at), {**orders, "spin_at": at}, {**config, "stall_seconds": 1.5}
    return Fate(way, 0, steps), orders, config


def run(count: int, seed: int = 1) -> tuple[list[Figure], list[str]]:
    """The campaign: `count` kills. Figures, and what went wrong in words."""
    chance = random.Random(seed)
    with stage(SLOTS) as place:
        crowd = Crowd(place, chance)
        progress = Progress("kills of the runner", count)
        for kills in range(1, count + 1):
            place.start_runner()
            # Some die while they still start, most within seconds, a few live long enough to find what is stuck.
            crowd.tend(
                chance.choices([chance.uniform(0, 0.4), chance.uniform(0.4, 2), chance.uniform(2, 5)], [3, 6, 1])[0]
            )
            crowd.kill_runner()
            progress.at(kills)
            if chance.random() < 0.4:
                crowd.tend(chance.uniform(0, 1.5))
        place.start_runner()
        crowd.finish(60 + 3 * len(crowd.fates))
        return crowd.report(count)


class Crowd:
    """The runs of the campaign: kept coming, stopped where that is their fate, looked at around each kill."""

    def __init__(self, place: Stage, chance: random.Random) -> None:
        self.place, self.chance = place, chance
        self.fates: dict[str, Fate] = {}
        self.open: set[str] = set()
        """Runs that have not ended."""
        self.stops_asked: set[str] = set()
        self.kills = self.kills_without_harm = self.trainers_seen = 0
        self.harmed: list[str] = []

    def tend(self, seconds: float) -> None:
        """What people do for `seconds`: keep the queue filled, ask for stops."""
        end = time.monotonic() + seconds
        while True:
            self.look()
            while len(self.open) < SLOTS + 2:
                name = f"run-{len(self.fates) + 1:04d}"
                self.fates[name], orders, config = draw_fate(self.chance)
                self.place.make(name, config, **orders)
                request_start(self.place.outputs, name, "cli")
                self.open.add(name)
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, 0.05))

    def look(self) -> None:
        """See which runs have ended, and ask those to stop whose time has come."""
        for name in list(self.open):
            state, fate = self.place.state(name), self.fates[name]
            if state.state in ENDED_STATES and not state.must_be_killed:
                self.open.remove(name)
            elif fate.way == "stopped" and name not in self.stops_asked and state.step >= fate.step:
                request_stop(self.place.outputs, name, "cli")
                self.stops_asked.add(name)

    def kill_runner(self) -> None:
        """One kill, and a look at every trainer that lived before it."""
        before = [(name, trainer) for name in sorted(self.open) for trainer in self.place.ledger(name).alive]
        self.place.kill_runner()
        time.sleep(0.02)
        harmed = [
            f"{name}: trainer {one.pid} died with the runner" for name, one in before if self.is_harmed(name, one)
        ]
        self.kills += 1
        self.kills_without_harm += not harmed
        self.trainers_seen += len(before)
        self.harmed += harmed

    def is_harmed(self, name: str, trainer: Start) -> bool:
        """Whether the trainer is gone, and neither by itself nor because it was being ended already."""
        if trainer.alive or self.fates[name].way in ("stopped", "stalls"):
            return False
        ledger = self.place.ledger(name)
        return trainer.attempt not in ledger.ends and trainer.attempt not in ledger.suicides

    def finish(self, seconds: float) -> None:
        """Until every run has ended, or the time is over (then the checks say so)."""
        end = time.monotonic() + seconds
        while self.open and time.monotonic() < end:
            self.look()
            time.sleep(0.2)

    def report(self, count: int) -> tuple[list[Figure], list[str]]:
        """The campaign's figures, and what went wrong in words."""
        doubles: list[str] = []
        wrong: list[str] = []
        unknown: list[str] = []
        for name, fate in self.fates.items():
            events, ledger = self.place.events(name), self.place.ledger(name)
            doubles += started_wrong(name, events, ledger)
            wrong += ended_wrong(name, events) + unanswered(name, events) + numbered_wrong(name, events)
            wrong += untrue(self.place, name)
            unknown += end_problem(self.place, name, fate)
        ways = ", ".join(f"{number} {way}" for way, number in Counter(f.way for f in self.fates.values()).items())
        starts = sum(len(self.place.ledger(name).starts) for name in self.fates)
        adoptions = adoption_seconds(self.place, list(self.fates))
        what = "start of a runner → trainer adopted"
        figures = [
            rate("kill -9 of the runner, all live trainers unharmed", self.kills_without_harm, self.kills, f"{count}"),
            Figure("trainers that lived through a kill", str(self.trainers_seen)),
            rate(
                f"runs with the end that was their fate ({ways})",
                len(self.fates) - len(unknown),
                len(self.fates),
                "all",
            ),
            none(f"duplicate spawns, in {starts} trainers", doubles),
            none("attempts without exactly one end, lost requests, untrue states", wrong),
            at_most(what, adoptions, 0.5, ADOPTION_SECONDS),
            at_most(what, adoptions, 0.99, ADOPTION_SECONDS),
        ]
        return figures, self.harmed + doubles + wrong + unknown


def end_problem(place: Stage, name: str, fate: Fate) -> list[str]:
    """Why the log's end is not the fate's, in a list of one; empty where it is."""
    state = place.state(name)
    found: tuple[Any, ...] = (state.state,)
    wanted: tuple[Any, ...] = ("completed" if fate.way == "completes" else fate.way,)
    if fate.way == "stalls":
        wanted, found = ("stalled", "no_progress"), (state.state, state.verdict)
    elif fate.way in ("exits", "signal"):
        failed = next((event.data for event in place.events(name) if event.type == "run.failed"), {})
        found = (state.state, state.reason, failed.get("exit_code"), failed.get("signal"))
        wanted = ("failed", REASONS.get(fate.number), fate.number, None)
        if fate.way == "signal":
            named = signal.Signals(fate.number).name
            wanted = ("failed", "killed" if named == "SIGKILL" else "crash", 128 + fate.number, named)
    return [] if found == wanted else [f"{name}: {fate} should end as {wanted}, the log says {found}"]


def adoption_seconds(place: Stage, names: list[str]) -> list[float]:
    """From a runner's start to each `run.adopted` that it wrote, process start included."""
    found = []
    for name in names:
        for event in place.events(name):
            begun = place.runner_starts.get(int(event.data.get("runner_pid") or 0))
            if event.type == "run.adopted" and begun is not None:
                found.append(parse_ts(event.ts).timestamp() - begun)
    return found
