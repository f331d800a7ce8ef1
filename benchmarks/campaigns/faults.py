"""The faults of the night. What they take away they give back after a while: a disk's room, a GPU, the runner."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from fluxcore.runs import request_stop
from fluxcore.runs.files import RunError
from fluxcore.runs.processes import read_process

from .stage import Stage, Start

FILLER = ".filler"
Live = list[tuple[str, Start]]
"""The runs whose trainer lives, and that trainer."""


class Faults:
    """Strikes, remembers what it did, and keeps a runner alive as the app would."""

    def __init__(self, place: Stage, chance: random.Random) -> None:
        self.place, self.chance = place, chance
        self.done: list[str] = []
        self.missing: list[str] = []
        self.shims_killed: set[tuple[str, int]] = set()
        self._later: list[tuple[float, Callable[[], object]]] = []
        self._runner_at = 0.0
        self._stopped: dict[Start, str] = {}
        self._kinds: dict[str, tuple[int, Callable[[Live], bool]]] = {
            "kill runner": (4, lambda live: self.kill_runner()),
            "end runner": (1, lambda live: self.end_runner()),
            "stop runner for a while": (1, lambda live: self.stop_runner()),
            "kill trainer": (3, lambda live: self.kill(self.one(live), "trainer")),
            "kill shim": (2, lambda live: self.kill(self.one(live), "shim")),
            "kill shim and trainer": (2, lambda live: self.kill(self.one(live), "shim", "trainer")),
            "kill all": (1, lambda live: self.kill_runner() | self.kill(live, "shim", "trainer")),
            "stop trainer": (3, lambda live: self.stop_trainer(self.one(live))),
            "torn line": (2, lambda live: self.append(live, b'{"v":1,"ts":"2026-11-23T20:01:15.1')),
            "bad lines": (1, lambda live: self.append(live, b'\n{"v":1,"type":"run.completed"}\nnonsense\n[]\n')),
            "delete newest state": (1, lambda live: self.spoil(live, shutil.rmtree)),
            "empty newest state's optimizer": (1, lambda live: self.spoil(live, empty_optimizer)),
            "delete derived files": (1, lambda live: self.delete_derived(live)),
            "stop by a person": (1, lambda live: self.stop_run(self.one(live))),
        }
        if place.small_disk:
            self._kinds["full disk"] = (2, lambda live: self.fill_disk())
        else:
            self.missing.append("full disk (only root may mount a small one)")
        if place.gpus is not None:
            self._kinds["lost GPU"] = (1, lambda live: self.spoil_gpu("lost"))
            self._kinds["driver that hangs"] = (1, lambda live: self.spoil_gpu("hang"))
            self._kinds["driver gone"] = (1, lambda live: self.lose_driver())
        else:
            self.missing.append("GPUs (there is no C compiler)")

    def strike(self, names: list[str]) -> None:
        """One fault, on the runs `names` or what serves them."""
        live = [(name, trainer) for name in names for trainer in self.place.ledger(name).alive]
        what = self.chance.choices(list(self._kinds), [weight for weight, _ in self._kinds.values()])[0]
        if self._kinds[what][1](live):
            self.done.append(what)

    def tend(self) -> None:
        """Give back what is due; start a runner where none lives (the app does so when somebody looks)."""
        now = time.monotonic()
        due = [item for item in self._later if item[0] <= now]
        self._later = [item for item in self._later if item[0] > now]
        for _, give_back in due:
            give_back()
        runner = self.place.runner
        if runner is not None and runner.poll() is not None:
            self.place.runner, self._runner_at = None, max(self._runner_at, now + 1.0)
        if self.place.runner is None and now >= self._runner_at:
            self.place.start_runner()
        self._tell_idle()

    def end(self) -> None:
        """Give everything back now."""
        for _, give_back in self._later:
            give_back()
        self._later, self._runner_at = [], 0.0

    def one(self, live: Live) -> Live:
        """One of them; none of none."""
        return [self.chance.choice(live)] if live else []

    def _in(self, least: float, most: float, give_back: Callable[[], object]) -> None:
        self._later.append((time.monotonic() + self.chance.uniform(least, most), give_back))

    def _tell_idle(self) -> None:
        """The GPU of a trainer that was stopped idles."""
        gpus = self.place.gpus
        if gpus is None or not (self._stopped or gpus.idle):
            return
        self._stopped = {trainer: name for trainer, name in self._stopped.items() if trainer.alive}
        attempts = [self.place.state(name).live_attempt for name in self._stopped.values()]
        idle = {uuid for attempt in attempts if attempt for uuid in attempt.gpus}
        if idle != gpus.idle:
            gpus.idle = idle
            gpus.tell()

    # -- each fault; False where there was nothing to strike at -------------------------------------------------------

    def kill_runner(self) -> bool:
        """kill -9; it is missed at once, or after a while."""
        self._runner_at = time.monotonic() + self.chance.choice([0.0, self.chance.uniform(0, 8)])
        return bool(self.place.kill_runner())

    def end_runner(self) -> bool:
        """TERM, as a shutdown of the service sends."""
        if self.place.runner is not None:
            self.place.runner.terminate()
        return self.place.runner is not None

    def stop_runner(self) -> bool:
        """SIGSTOP, as a suspended machine looks to everybody else."""
        runner = self.place.runner
        if runner is None:
            return False
        runner.send_signal(signal.SIGSTOP)
        self._in(2, 15, lambda: runner.send_signal(signal.SIGCONT))
        return True

    def kill(self, live: Live, *whom: str) -> bool:
        """kill -9 of these runs' shims, trainers, or both, in any order."""
        struck = False
        for name, trainer in live:
            row = read_process(trainer.pid)
            pids = {"trainer": trainer.pid, "shim": row.parent if row else 0}
            for which in self.chance.sample(whom, len(whom)):
                if which == "shim":
                    if not is_shim(pids["shim"]):
                        continue
                    self.shims_killed.add((name, trainer.attempt))
                try:
                    os.kill(pids[which], signal.SIGKILL)
                    struck = True
                except ProcessLookupError:
                    pass
        return struck

    def stop_trainer(self, live: Live) -> bool:
        """SIGSTOP for ever: a stall."""
        for name, trainer in live:
            os.kill(trainer.pid, signal.SIGSTOP)
            self._stopped[trainer] = name
        return bool(live)

    def append(self, live: Live, what: bytes) -> bool:
        """What a killed writer or a broken program leaves in the log."""
        for name, _ in self.one(live):
            try:
                with open(self.place.outputs / name / "events.jsonl", "ab", buffering=0) as log:
                    log.write(what)
            except OSError:
                return False
        return bool(live)

    def spoil(self, live: Live, how: Callable[[Path], object]) -> bool:
        """Take the newest state away, or a part of it."""
        for name, _ in self.one(live):
            states = sorted((self.place.outputs / name).glob("*-state"), key=lambda path: path.stat().st_mtime)
            if states:
                how(states[-1])
                return True
        return False

    def delete_derived(self, live: Live) -> bool:
        """What may be deleted at any time."""
        for name, _ in live:
            for file in ("ui_state.json", "monitor.pid", "monitor.log"):
                (self.place.outputs / name / file).unlink(missing_ok=True)
        return bool(live)

    def stop_run(self, live: Live) -> bool:
        """A person's stop."""
        try:
            for name, _ in live:
                request_stop(self.place.outputs, name, "app")
        except RunError:
            return False
        return bool(live)

    def fill_disk(self) -> bool:
        """Not a byte is left, for a while."""
        filler = self.place.outputs / FILLER
        try:
            with open(filler, "ab", buffering=0) as file:
                while file.write(bytes(1 << 20)):
                    pass
        except OSError:
            pass
        self._in(2, 10, lambda: filler.unlink(missing_ok=True))
        return True

    def spoil_gpu(self, how: str) -> bool:
        """One GPU falls off the bus, or what is asked of it doesn't return, for a while."""
        gpus = self.place.gpus
        assert gpus is not None
        gpus.sick = {self.chance.choice(gpus.uuids): how}
        gpus.tell()

        def give_back() -> None:
            gpus.sick = {}
            gpus.tell()

        self._in(2, 10, give_back)
        return True

    def lose_driver(self) -> bool:
        """The driver does not answer, for a while."""
        gpus = self.place.gpus
        assert gpus is not None
        gpus.file.unlink(missing_ok=True)
        self._in(2, 10, gpus.tell)
        return True


def is_shim(pid: int) -> bool:
    """Whether that process is a shim."""
    try:
        return b"shim.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def empty_optimizer(state: Path) -> None:
    """What a disk leaves that was switched off too early."""
    (state / "optimizer.bin").write_bytes(b"")
