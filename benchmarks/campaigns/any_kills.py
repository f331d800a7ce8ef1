"""kill -9 of app, runner, shims and trainers in any order, also in mid-save: the next runner must find the truth."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from fluxcore.runs import RunError, RunState, request_resume, request_start, resume_choice
from fluxcore.runs.checkpoints import RunFolder
from fluxcore.runs.files import PROJECT_ROOT
from fluxcore.runs.processes import read_process
from fluxcore.runs.supervision import observed_state

from .faults import is_shim
from .newest import maker, newest_whole
from .report import Figure, Progress, none, rate
from .stage import STATES_OF_REST, Stage, stage
from .truth import ended_wrong, numbered_wrong, started_wrong, unanswered, untrue

SLOTS = 3
RUNS_AT_A_TIME = 4
ROUNDS_A_RUN = 12
SETTLE_SECONDS = 30.0


def run(count: int, seed: int = 1) -> tuple[list[Figure], list[str]]:
    """The campaign: `count` rounds of kills. Figures, and what went wrong in words."""
    chance = random.Random(seed)
    with stage(SLOTS) as place:
        massacre = Massacre(place, chance)
        progress = Progress("rounds of kills", count)
        for number in range(1, count + 1):
            massacre.round(number)
            progress.at(number)
        return massacre.report(count)


class App:
    """The process that asks, and what it was told is written."""

    def __init__(self, outputs: Path, seed: int) -> None:
        command = [sys.executable, "-m", "benchmarks.campaigns.app", str(outputs), str(seed)]
        self.process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, bufsize=0)
        self.said = b""
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        while chunk := self.process.stdout.read(65536):
            self.said += chunk

    def kill(self) -> set[tuple[str, str]]:
        """kill -9; the (run, event) pairs that were acknowledged (a half line was not)."""
        self.process.kill()
        self.process.wait()
        self._thread.join()
        return {(line.split()[0], line.split()[1]) for line in self.said.decode().split("\n")[:-1]}


class Massacre:
    """The rounds, and what is counted over them."""

    def __init__(self, place: Stage, chance: random.Random) -> None:
        self.place, self.chance = place, chance
        self.names: list[str] = []
        self.acknowledged: set[tuple[str, str]] = set()
        self.expected: dict[tuple[str, int], str | None] = {}
        """(run, attempt) → the state that must be resumed from when that attempt is over."""
        self.kills = {"app": 0, "runner": 0, "shim": 0, "trainer": 0}
        self.mid_save = self.true_rounds = self.choices = 0
        self.untrue: list[str] = []
        self.wrong_choices: list[str] = []

    def round(self, number: int) -> None:
        """Live for a moment, kill in any order, start a fresh runner, compare with what is."""
        chance, place = self.chance, self.place
        if (number - 1) % ROUNDS_A_RUN == 0:
            self.more_runs()
        app = App(place.outputs, chance.randrange(10**6))
        self.ask()
        if place.runner is None:
            place.start_runner()
        time.sleep(chance.uniform(0.3, 2.0))
        victims = ["app", *(["runner"] if chance.random() < 0.7 else [])]
        for name in self.names:
            victims += [f"{kind} {name}" for kind in ("shim", "trainer") if chance.random() < 0.5]
        chance.shuffle(victims)
        for victim in victims:
            if victim == "app":
                self.acknowledged |= app.kill()
                self.kills["app"] += 1
            elif victim == "runner":
                place.kill_runner()
                self.kills["runner"] += 1
            else:
                self.kill(*victim.split())
            time.sleep(chance.choice([0, 0, chance.uniform(0, 0.1)]))
        if place.runner is not None:
            place.kill_runner()
            self.kills["runner"] += 1
        place.serve()
        problems = self.settle()
        self.true_rounds += not problems
        self.untrue += [f"round {number}: {problem}" for problem in problems]
        for name in self.names[-RUNS_AT_A_TIME:]:
            self.look_at_choice(name, number)

    def more_runs(self) -> None:
        """A batch of fresh runs; the ones before rest."""
        for _ in range(RUNS_AT_A_TIME):
            name = f"run-{len(self.names) + 1:04d}"
            orders = {
                "steps": self.chance.choice([40, 150]),
                "step_seconds": 0.02,
                "save_every": 4,
                "save_seconds": 0.15,
            }
            config = {"auto_resume": self.chance.choice([0, 2]), "stop_grace_seconds": 1.0}
            self.place.make(name, config, in_place=self.chance.random() < 0.4, **orders)
            self.names.append(name)

    def ask(self) -> None:
        """Ask most of the resting runs to go on, so that there is something to kill."""
        for name in self.names[-RUNS_AT_A_TIME:]:
            if self.chance.random() < 0.8:
                with contextlib.suppress(RunError):
                    if self.place.state(name).attempts:
                        request_resume(self.place.outputs, name, "cli")
                    else:
                        request_start(self.place.outputs, name, "cli")

    def kill(self, kind: str, name: str) -> None:
        """kill -9 of a run's shim or trainer, where it lives."""
        for trainer in self.place.ledger(name).alive:
            row = read_process(trainer.pid)
            pid = trainer.pid if kind == "trainer" else row.parent if row else 0
            if kind == "shim" and not is_shim(pid):
                continue
            if kind == "trainer" and saving(self.place.outputs / name):
                self.mid_save += 1
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
            self.kills[kind] += 1

    def settle(self) -> list[str]:
        """Wait until the logs say what is; what still contradicts it after that time."""
        end = time.monotonic() + SETTLE_SECONDS
        while True:
            problems = []
            for name in self.names[-RUNS_AT_A_TIME:]:
                state = self.place.state(name)
                seen = observed_state(state, self.place.outputs)
                if seen in ("starting", "stopping", "lost") or state.must_be_killed:
                    problems.append(f"{name} stays {seen}")
                problems += untrue(self.place, name)
            if not problems or time.monotonic() > end:
                return problems
            time.sleep(0.1)

    def look_at_choice(self, name: str, number: int) -> None:
        """Compare the state that a resume would take now with the newest whole one, where the run rests."""
        state = self.place.state(name)
        if state.state not in STATES_OF_REST or state.attempt is None or state.requests or state.spawning:
            return
        wanted = newest_whole(self.place.outputs / name, state)
        self.choices += 1
        self.expected[name, state.attempt.number] = wanted
        choice = resume_choice(RunFolder(self.place.outputs / name), state)
        found = {"a resume": choice.name if choice else None}
        if state.state != "completed":
            found["the log"] = state.resume_checkpoint
        for who, what in found.items():
            if what != wanted:
                self.wrong_choices.append(
                    f"round {number}, {name}: {who} takes {what}, the newest whole one is {wanted}"
                )

    def report(self, count: int) -> tuple[list[Figure], list[str]]:
        """The campaign's figures, and what went wrong in words."""
        wrong: list[str] = []
        doubles: list[str] = []
        there: set[tuple[str, str]] = set()
        trainers = resumes = 0
        for name in self.names:
            events, ledger, state = self.place.events(name), self.place.ledger(name), self.place.state(name)
            there |= {(name, event.id) for event in events}
            trainers += len(ledger.starts)
            doubles += started_wrong(name, events, ledger)
            if state.state in STATES_OF_REST:
                wrong += ended_wrong(name, events)
            wrong += numbered_wrong(name, events)
            if not state.is_live:
                wrong += unanswered(name, events)
            wrong += self.resumed_wrong(name, state)
            resumes += sum(bool(attempt.resume_from) for attempt in state.attempts)
        lost = [f"{name}: the acknowledged event {event} is lost" for name, event in self.acknowledged - there]
        kills = ", ".join(f"{number} × {what}" for what, number in self.kills.items())
        figures = [
            Figure("kill -9", f"{kills}; {self.mid_save} of the trainers in mid-save"),
            rate("rounds after which every log says what is", self.true_rounds, count, f"{count}"),
            none(f"wrong choices of a checkpoint, in {self.choices} looks", self.wrong_choices),
            none(f"wrong resumes or ends, in {trainers} trainers, {resumes} of them resumed", wrong),
            none("duplicate spawns", doubles),
            none(f"lost events, of {len(self.acknowledged)} acknowledged to the app", lost),
        ]
        return figures, self.untrue + self.wrong_choices + wrong + doubles + lost

    def resumed_wrong(self, name: str, state: RunState) -> list[str]:
        """Attempts that began elsewhere than at the state that had been found newest, or at another step than its."""
        problems = []
        requests = {event.id: event.data for event in self.place.events(name) if event.type == "run.requested"}
        for before, attempt in zip(state.attempts, state.attempts[1:], strict=False):
            asked = requests.get(attempt.request, {}).get("resume_from")
            wanted = self.expected.get((name, before.number), attempt.resume_from)
            if asked == "latest" and attempt.resume_from != wanted:
                problems.append(f"{name}: attempt {attempt.number} resumed {attempt.resume_from} instead of {wanted}")
            if attempt.first_step is not None and attempt.first_step != (attempt.resume_step or 0) + 1:
                problems.append(f"{name}: attempt {attempt.number} began at step {attempt.first_step}")
        return problems


def saving(folder: Path) -> bool:
    """Whether a state is half there."""
    aside = any(folder.glob(".*-state.tmp"))
    return aside or any(maker(state) is None for state in folder.glob("*-state"))
