"""A machine in memory for the runner: clock, processes, GPUs and disk that a test moves by hand."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fluxcore.config import parse_config
from fluxcore.log import Event, EventLog, format_ts, read_events
from fluxcore.runs import RunFolder, RunState, fold
from fluxcore.runs.processes import Identity
from runner.alerts import Alerts, Sender
from runner.executor import Activity, Exit, Launch, Record
from runner.loop import Runner
from tests.stub_trainer import save_state, tiny_safetensors

BOOT = "boot-1"


class FakeClock:
    """Time stands still until `advance`."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.start = datetime(2026, 11, 23, 20, 0, tzinfo=UTC)

    def now(self) -> datetime:
        return self.start + timedelta(seconds=self.seconds - 1000.0)

    def monotonic(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


@dataclass
class FakeTrainer:
    """One attempt's processes. `ignores_term`: only KILL ends it; `children`: pids that outlive it."""

    launch: Launch
    record: Record
    log: EventLog
    ignores_term: bool = False
    shim_alive: bool = True
    alive: bool = True
    children: set[int] = field(default_factory=set)
    cpu_seconds: float = 0.0
    moved_bytes: int = 0
    output_deleted: bool = False
    """Whether its train.log was deleted under it."""
    signals: list[tuple[int, int]] = field(default_factory=list)

    def exit(self, code: int | None, signal_name: str | None = None, oom_kills: int = 0) -> None:
        self.alive = False
        if self.shim_alive:
            self.record = replace(self.record, exit=Exit(code, signal_name, 12.0, oom_kills))


class FakeExecutor:
    """Spawns FakeTrainers. `broken_shims`: how many spawns claim the attempt and die before there is a trainer."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.trainers: dict[tuple[str, int], FakeTrainer] = {}
        self.claims: dict[tuple[str, int], Record] = {}
        self.spawns: list[tuple[str, int]] = []
        self.broken_shims = 0
        self.lost_spawns = 0
        self.late_claim = False
        """A lost spawn's shim comes to life just when the runner gives its attempt up."""
        self.dies_unseen = False
        self.ignore_term = False
        self.unkillable = False
        """Nothing ends a trainer: it sits in the kernel."""
        self.children_of_next: set[int] = set()
        self.copies: set[str] = set()
        """Runs whose folders are copies of others' that live."""
        self._pid = 100

    def spawn(self, launch: Launch) -> None:
        key = (launch.folder.name, launch.attempt)
        self.spawns.append(key)
        if key in self.claims or key in self.trainers:
            return
        if self.lost_spawns:
            self.lost_spawns -= 1
            return
        self._pid += 2
        shim, trainer = Identity(self._pid, 1.0, BOOT, 7), Identity(self._pid + 1, 1.0, BOOT, 7)
        if self.broken_shims:
            self.broken_shims -= 1
            self.claims[key] = Record(claimed=True, claimed_by=shim)
            return
        log = EventLog(launch.folder.path, "trainer", attempt=launch.attempt, now=lambda: format_ts(self.clock.now()))
        record = Record(True, shim, trainer, shim)
        made = FakeTrainer(launch, record, log, ignores_term=self.ignore_term, children=set(self.children_of_next))
        self.trainers[key] = made

    def give_up(self, folder: RunFolder, attempt: int) -> bool:
        key = (folder.name, attempt)
        if self.late_claim:
            self.late_claim = False
            self.spawn(Launch(folder, attempt, []))
        if key in self.trainers or (key in self.claims and not self.claims[key].given_up):
            return False
        self.claims[key] = Record(claimed=True, given_up=True)
        return True

    def look(self, folder: RunFolder, attempt: int) -> Record:
        key = (folder.name, attempt)
        if self.dies_unseen:  # all that a short attempt leaves comes between this look and the next
            self.dies_unseen = False
            return Record(claimed=True, claimed_by=Identity(99999, 1.0, BOOT, 7))
        trainer = self.trainers.get(key)
        return trainer.record if trainer else self.claims.get(key, Record())

    def alive(self, identity: Identity | None) -> bool:
        for trainer in self.trainers.values():
            if identity == trainer.record.trainer:
                return trainer.alive
            if identity == trainer.record.shim:
                return trainer.shim_alive and trainer.record.exit is None
        return False

    def tree(self, folder: RunFolder, record: Record) -> list[Identity]:
        found = next((one for one in self.trainers.values() if one.record.trainer == record.trainer), None)
        if found is None:
            return []
        main = [found.record.trainer] if found.alive and found.record.trainer else []
        return [*main, *(Identity(pid, 1.0, BOOT, 7) for pid in sorted(found.children))]

    def is_of_another(self, folder: RunFolder, attempt: int, record: Record) -> bool:
        return folder.name in self.copies

    def output_is_deleted(self, record: Record) -> bool:
        return any(one.alive and one.output_deleted for one in self.trainers.values() if one.record == record)

    def forget(self, folder: RunFolder, attempt: int) -> None:
        self.rename(folder.name, f"{folder.name} (gone)")

    def rename(self, name: str, new: str) -> None:
        """A run's folder got another name, with all that is recorded in it."""
        self.trainers = {(new if run == name else run, n): one for (run, n), one in self.trainers.items()}

    def activity(self, folder: RunFolder, attempt: int, record: Record) -> Activity | None:
        trainer = self.trainers[(folder.name, attempt)]
        return Activity(trainer.cpu_seconds, 2**30, trainer.moved_bytes, 0) if trainer.alive else None

    def signal(self, identity: Identity, number: int) -> bool:
        for trainer in self.trainers.values():
            if identity.pid in trainer.children:
                trainer.signals.append((identity.pid, number))
                if number == signal.SIGKILL:
                    trainer.children.discard(identity.pid)
                return True
            if identity == trainer.record.trainer and trainer.alive:
                trainer.signals.append((identity.pid, number))
                if self.unkillable:
                    return True
                if number == signal.SIGKILL:
                    trainer.exit(137, "SIGKILL")
                elif number == signal.SIGTERM and not trainer.ignores_term:
                    trainer.exit(143)
                return True
        return False

    def reap(self) -> None:
        pass


class FakeGpus:
    """GPUs by uuid with a utilisation each; None is not known.

    `more`: further fields of a GPU's samples; a GPU with a `problem` is offered to nobody. `answers` off: a driver that
    hangs; `late`: how many readings are not there at once.
    """

    def __init__(self, **uses: int | None) -> None:
        self.uses: dict[str, int | None] = dict(uses)
        self.more: dict[str, dict[str, Any]] = {}
        self.answers = True
        self.late = 0

    def by_index(self) -> dict[int, str] | None:
        found = {i: uuid for i, uuid in enumerate(self.uses) if not self.more.get(uuid, {}).get("problem")}
        return found if self.answers and (found or not self.uses) else None

    def sample(self) -> list[dict[str, Any]] | None:
        if self.late:
            self.late -= 1
            return None
        return [
            {"index": index, "uuid": uuid, "utilization_percent": use, **self.more.get(uuid, {})}
            for index, (uuid, use) in enumerate(self.uses.items())
        ]


class FakeHost:
    """A disk with so many GiB free; None is not known."""

    def __init__(self) -> None:
        self.free_gib: float | None = 50.0

    def disk_free_gib(self, path: Path) -> float | None:
        return self.free_gib

    def memory_available_gib(self) -> float | None:
        return 8.0


class World:
    """An outputs folder, a runner on a fake machine, and shorthand for what tests do."""

    def __init__(
        self, outputs: Path, *, gpus: FakeGpus | None = None, cpu_slots: int = 1, sender: Sender | None = None
    ) -> None:
        self.outputs = outputs
        self.clock = FakeClock()
        self.sender = sender
        self.executor = FakeExecutor(self.clock)
        self.gpus = gpus or FakeGpus()
        self.host = FakeHost()
        self.cpu_slots = cpu_slots
        self.runner = self.new_runner()

    def new_runner(self) -> Runner:
        """A runner as after kill -9 of the last one: nothing in memory."""
        self.runner = Runner(
            self.outputs,
            executor=self.executor,
            gpus=self.gpus,
            host=self.host,
            clock=self.clock,
            cpu_slots=self.cpu_slots,
            alerts=Alerts(self.outputs, self.sender, self.clock) if self.sender else None,
        )
        return self.runner

    def person(self, name: str) -> EventLog:
        return EventLog(self.outputs / name, "cli", now=lambda: format_ts(self.clock.now()))

    def make(self, name: str, **config: Any) -> RunFolder:
        folder = RunFolder(self.outputs / name)
        folder.path.mkdir(parents=True)
        values = parse_config({"lora_name": name, **config}).model_dump()
        self.person(name).append("config.saved", {"config": values})
        return folder

    def ask(self, name: str, resume_from: str | None = None, reason: str = "start") -> Event:
        data = {"config": self.state(name).config_id, "resume_from": resume_from, "reason": reason}
        return self.person(name).append("run.requested", data)

    def stop(self, name: str) -> None:
        self.person(name).append("stop.requested", {"reason": "user"})

    def turns(self, count: int = 3, seconds: float = 0.0) -> None:
        """`count` turns of the runner, `seconds` apart; each looks at every run, as a poll would."""
        for _ in range(count):
            self.clock.advance(seconds)
            self.runner._polled_at = float("-inf")
            self.runner.turn()

    def start(self, name: str, **config: Any) -> FakeTrainer:
        """A run whose trainer runs."""
        self.make(name, **config)
        self.ask(name)
        self.turns()
        return self.trainer(name)

    def trainer(self, name: str) -> FakeTrainer:
        """The newest attempt's trainer."""
        return self.executor.trainers[max(key for key in self.executor.trainers if key[0] == name)]

    def step(self, name: str, step: int, total: int = 1000, seconds: float = 1.0) -> None:
        data = {"step": step, "total_steps": total, "epoch": 1, "loss": 0.5, "step_seconds": seconds}
        self.trainer(name).log.append("train.step", data)

    def train(self, name: str, first: int, last: int) -> None:
        """Steps a second apart, the runner turning."""
        self.trainer(name).log.append("phase.started", {"phase": "train", "total": 1000, "unit": "steps"})
        for step in range(first, last + 1):
            self.step(name, step)
            self.turns(1, 1.0)

    def checkpoint(self, name: str, step: int) -> str:
        state = f"{name}-step{step:08d}-state"
        save_state(self.outputs / name, state, step)
        self.trainer(name).log.append("checkpoint.saved", {"step": step, "epoch": 1, "path": state, "kind": "state"})
        return state

    def complete(self, name: str) -> None:
        tiny_safetensors(self.outputs / name / f"{name}.safetensors")
        self.trainer(name).exit(0)
        self.turns()

    def state(self, name: str) -> RunState:
        return fold(name, self.events(name))

    def events(self, name: str) -> list[Event]:
        return read_events(self.outputs / name)

    def types(self, name: str, *prefixes: str) -> list[str]:
        """The types of a run's events that begin so, in order, samples left out."""
        found = [event.type for event in self.events(name)]
        return [type for type in found if type.startswith(prefixes or ("run.", "stall.", "request.refused"))]

    def last(self, name: str, type: str) -> Event:
        return [event for event in self.events(name) if event.type == type][-1]
