"""Stops of process trees that try to get away, among strangers that look just like them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field

from fluxcore.log import parse_ts
from fluxcore.runs import request_start, request_stop
from fluxcore.runs.files import PROJECT_ROOT
from fluxcore.runs.processes import Identity, descendants, identify, is_alive, process_table, read_process
from tests.place import wait_until
from tests.stub_children import KINDS, SCRIPT

from .report import Figure, Progress, at_most, none
from .stage import Stage, stage
from .truth import ended_wrong

AT_ONCE = 3
GRACE_SECONDS = 1.0
GROW_SECONDS = 0.4
"""How long a tree grows before its stop."""


@dataclass
class Tree:
    """One run whose processes are to end."""

    name: str
    kinds: list[str]
    deaf: bool
    stopped: bool
    strangers: list[Stranger]
    ready_at: float = 0.0
    stop_asked: bool = False
    seen: set[Identity] = field(default_factory=set)


class Stranger:
    """A process of somebody else's: same command, same folder, a run's name that begins alike.

    Ends at a TERM; where it is `asleep` it has been stopped, and a CONT would wake it.
    """

    def __init__(self, run: str, asleep: bool) -> None:
        self.asleep = asleep
        environment = {**os.environ, "FLUXGYM_RUN": run, "FLUXGYM_ATTEMPT": "1"}
        command = [sys.executable, "-I", "-S", SCRIPT, "stranger"]
        self.process = subprocess.Popen(command, cwd=PROJECT_ROOT, env=environment)
        if asleep:
            self.process.send_signal(signal.SIGSTOP)
            wait_until(lambda: (row := read_process(self.process.pid)) is not None and row.stopped)

    @property
    def untouched(self) -> bool:
        """Whether it lives as it was left."""
        row = read_process(self.process.pid)
        return self.process.poll() is None and row is not None and row.stopped == self.asleep

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()


def run(count: int, seed: int = 1) -> tuple[list[Figure], list[str]]:
    """The campaign: `count` trees. Figures, and what went wrong in words."""
    chance = random.Random(seed)
    with stage(AT_ONCE + 1) as place:
        place.serve()
        place.make(
            "neighbour", {"stop_grace_seconds": GRACE_SECONDS}, steps=10**6, step_seconds=0.5, children=["setsid"]
        )
        request_start(place.outputs, "neighbour", "cli")
        place.until("neighbour", lambda state: state.step >= 1)
        neighbours = {found for pid in place.marked("neighbour") if (found := identify(pid))}
        forest = Forest(place, chance)
        progress = Progress("trees stopped", count)
        deadline = time.monotonic() + 60 + 10 * count
        while len(forest.done) < count and time.monotonic() < deadline:
            forest.plant(count)
            forest.tend()
            progress.at(len(forest.done))
            time.sleep(0.02)
        touched = [f"neighbour: its process {one.pid} is gone" for one in neighbours if not is_alive(one)]
        return forest.report(count, touched, len(neighbours))


class Forest:
    """The trees that grow and fall."""

    def __init__(self, place: Stage, chance: random.Random) -> None:
        self.place, self.chance = place, chance
        self.growing: list[Tree] = []
        self.done: list[Tree] = []
        self.ended_after: list[float] = []
        self.survivors: list[str] = []
        self.touched: list[str] = []
        self.wrong: list[str] = []
        self.processes = 0

    def plant(self, count: int) -> None:
        """Start trees until enough grow at a time."""
        chance = self.chance
        while len(self.growing) < AT_ONCE and len(self.growing) + len(self.done) < count:
            name = f"tree-{len(self.growing) + len(self.done) + 1:04d}"
            while (self.place.outputs / name).exists():
                name += "x"
            kinds = chance.choices(KINDS, k=chance.randint(1, 5))
            deaf = chance.random() < 0.5
            orders = {"children": kinds, "ignore_term": deaf, "save_every": 5, "save_seconds": chance.choice([0, 0.2])}
            self.place.make(name, {"stop_grace_seconds": GRACE_SECONDS}, steps=10**6, step_seconds=0.05, **orders)
            alike = f"{self.place.outputs / name}-2"
            strangers = [Stranger(alike, asleep=False)]  # pids before and behind the trainer's
            request_start(self.place.outputs, name, "cli")
            self.growing.append(Tree(name, kinds, deaf, chance.random() < 0.3, strangers))

    def tend(self) -> None:
        """Bring every tree a step on: grown, asked to stop, looked at when it has ended."""
        for tree in list(self.growing):
            state = self.place.state(tree.name)
            if not tree.ready_at and state.step >= 1:
                tree.strangers.append(Stranger(f"{self.place.outputs / tree.name}-2", asleep=True))
                tree.ready_at = time.monotonic() + GROW_SECONDS
            elif tree.ready_at and not tree.stop_asked and time.monotonic() >= tree.ready_at:
                self.stop(tree)
            elif state.state in ("stopped", "failed", "completed", "stalled"):
                self.look_back(tree)
                self.growing.remove(tree)
                self.done.append(tree)

    def stop(self, tree: Tree) -> None:
        """Remember who belongs to the tree, and ask for its end."""
        state = self.place.state(tree.name)
        attempt = state.live_attempt
        assert attempt is not None, f"{tree.name} is {state.state}"
        pids = set(self.place.marked(tree.name)) | (descendants({attempt.shim_pid}, process_table()))
        tree.seen = {found for pid in pids if (found := identify(pid))}
        if tree.stopped:
            os.kill(attempt.pid, signal.SIGSTOP)
        request_stop(self.place.outputs, tree.name, "cli")
        tree.stop_asked = True

    def look_back(self, tree: Tree) -> None:
        """After the end: who is left, who was touched, how long it took."""
        left = [one.pid for one in tree.seen if is_alive(one)] + self.place.marked(tree.name)
        what = (
            f"{tree.name} ({', '.join(tree.kinds)}{', deaf' if tree.deaf else ''}{', stopped' if tree.stopped else ''})"
        )
        if left:
            self.survivors.append(f"{what}: {sorted(set(left))} survived")
        for stranger in tree.strangers:
            if not stranger.untouched:
                self.touched.append(f"{what}: the stranger {stranger.process.pid} was touched")
            stranger.end()
        self.processes += len(tree.seen)
        events = self.place.events(tree.name)
        asked = next(parse_ts(event.ts) for event in events if event.type == "stop.requested")
        ended = next((parse_ts(event.ts) for event in events if event.type == "run.stopped"), None)
        self.wrong += ended_wrong(tree.name, events)
        if ended is None:
            self.wrong.append(f"{what} is {self.place.state(tree.name).state} instead of stopped")
        else:
            self.ended_after.append((ended - asked).total_seconds())

    def report(self, count: int, touched: list[str], neighbours: int) -> tuple[list[Figure], list[str]]:
        """The campaign's figures, and what went wrong in words."""
        for tree in self.growing:
            self.wrong.append(f"{tree.name} did not end: {self.place.state(tree.name).state}")
            for stranger in tree.strangers:
                stranger.end()
        kinds = Counter(kind for tree in self.done for kind in tree.kinds)
        made_of = ", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items()))
        deaf, asleep = sum(tree.deaf for tree in self.done), sum(tree.stopped for tree in self.done)
        strangers = sum(len(tree.strangers) for tree in self.done) + neighbours
        limit, what = GRACE_SECONDS + 1, "stop.requested → run.stopped, nothing left"
        figures = [
            Figure("trees stopped", f"{len(self.done)} of {count}", str(count), len(self.done) == count),
            Figure("of them", f"{deaf} deaf to TERM, {asleep} with their trainer SIGSTOPped; {made_of}"),
            none(f"survivors among {self.processes} processes", self.survivors),
            none(f"strangers and neighbours touched, of {strangers}", self.touched + touched),
            none("attempts without exactly one end, or another one", self.wrong),
            at_most(what, self.ended_after, 0.5, limit),
            at_most(what, self.ended_after, 0.95, limit),
            at_most(what, self.ended_after, 1.0, 2 * limit),
        ]
        return figures, self.survivors + self.touched + touched + self.wrong
