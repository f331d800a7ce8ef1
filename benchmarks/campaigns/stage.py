"""A temporary outputs folder whose runner can be killed, and what the stub trainers say that they did there."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fluxcore.atomic import write_atomic
from fluxcore.log import Event, read_events
from fluxcore.runs.processes import read_process
from fluxcore.runs.supervision import runner_alive, start_runner
from tests.place import STUB, Place, build_driver, wait_until

STATES_OF_REST = frozenset({"draft", "completed", "failed", "stopped", "stalled"})


@dataclass(frozen=True)
class Start:
    """A trainer process that began, by its own word. `at`: seconds since boot, at its first line."""

    attempt: int
    pid: int
    ticks: int
    at: float
    resume_from: str | None

    @property
    def alive(self) -> bool:
        """Whether exactly this process lives."""
        row = read_process(self.pid)
        return row is not None and not row.zombie and row.start_ticks == self.ticks


@dataclass
class Ledger:
    """All that the stub trainers of one run wrote down."""

    starts: list[Start] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)
    """Attempt → exit code, where the trainer ended by itself."""
    suicides: dict[int, int] = field(default_factory=dict)
    """Attempt → the signal that the trainer sent itself."""

    @property
    def alive(self) -> list[Start]:
        return [start for start in self.starts if start.alive]


class Stage(Place):
    """A Place with a runner of its own, started and killed by this process."""

    def __init__(self, outputs: Path, ledgers: Path) -> None:
        super().__init__(outputs)
        self.ledgers = ledgers
        self.runner: subprocess.Popen[bytes] | None = None
        self.runner_starts: dict[int, float] = {}
        """pid → epoch seconds at which that runner was started."""
        self.gpus: Gpus | None = None
        self.small_disk = False

    def start_runner(self) -> int:
        """Start a runner and return at once; its pid."""
        begun = time.time()
        self.runner = start_runner(self.outputs)
        self.runner_starts[self.runner.pid] = begun
        return self.runner.pid

    def serve(self, seconds: float = 20) -> int:
        """Start a runner and wait until it serves; its pid."""
        pid = self.start_runner()
        wait_until(lambda: (found := runner_alive(self.outputs)) is not None and found.pid == pid, seconds)
        return pid

    def kill_runner(self) -> int:
        """kill -9; harmless where none runs."""
        if self.runner is None:
            return 0
        pid = self.runner.pid
        self.runner.kill()
        self.runner.wait()
        self.runner = None
        return pid

    def ledger(self, name: str) -> Ledger:
        """What the trainers of a run did, by their own word; a last line cut short by a kill is left out."""
        found = Ledger()
        try:
            lines = (self.ledgers / f"{name}.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return found
        for line in lines:
            with contextlib.suppress(ValueError):
                said: dict[str, Any] = json.loads(line)
                if said["what"] == "start":
                    start = Start(said["attempt"], said["pid"], said["start_ticks"], said["at"], said["resume_from"])
                    found.starts.append(start)
                elif said["what"] == "end":
                    found.ends[said["attempt"]] = said["code"]
                elif said["what"] == "suicide":
                    found.suicides[said["attempt"]] = said["signal"]
        return found

    def events(self, name: str) -> list[Event]:
        """A run's log."""
        return read_events(self.outputs / name)

    def names(self) -> list[str]:
        """Every run."""
        return sorted(path.name for path in self.outputs.iterdir() if path.is_dir() and not path.name.startswith("."))

    def marked(self, name: str) -> list[int]:
        """Live processes that carry the run's mark in their environment, by a look of our own."""
        mark, found = f"FLUXGYM_RUN={self.outputs / name}".encode(), []
        for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    if mark not in file.read().split(b"\0"):
                        continue
            except OSError:
                continue
            row = read_process(pid)
            if row is not None and not row.zombie:
                found.append(pid)
        return found

    def close(self) -> None:
        """Kill all that is left."""
        self.kill_runner()
        self.clear()


@contextlib.contextmanager
def stage(slots: int, *, disk_mib: int = 0, gpus: int = 0, **environment: str) -> Iterator[Stage]:
    """A stage in a temporary folder, with the stub trainer and `slots` slots.

    `disk_mib`: the outputs lie on a disk of their own of that size, where this process may mount one (`small_disk`
    tells). `gpus`: so many GPUs by a driver of our own, where there is a C compiler. `environment` goes to the runner
    and all below it; it is put back at the end.
    """
    with contextlib.ExitStack() as cleanup:
        root = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="fluxgym-bench-")))
        ledgers, outputs = root / "ledgers", root / "outputs"
        ledgers.mkdir()
        outputs.mkdir()
        before = dict(os.environ)

        def restore() -> None:
            os.environ.clear()
            os.environ.update(before)

        cleanup.callback(restore)
        for key in ("FLUXGYM_RUN", "FLUXGYM_ATTEMPT", "STUB"):
            os.environ.pop(key, None)
        os.environ |= {"FLUXGYM_TRAINER": STUB, "FLUXGYM_CPU_SLOTS": str(slots), "STUB_LEDGER": str(ledgers)}
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # no GPU of this machine may take a part in it
        made = Stage(outputs, ledgers)
        if gpus and build_driver(root):
            made.gpus = Gpus(root / "gpus", [f"GPU-{number}" for number in range(gpus)])
            os.environ |= {"LD_LIBRARY_PATH": str(root), "FAKE_NVML": str(root / "gpus")}
            del os.environ["CUDA_VISIBLE_DEVICES"]
        if disk_mib and mount_disk(outputs, disk_mib):
            made.small_disk = True
            cleanup.callback(subprocess.run, ["umount", "--lazy", str(outputs)], check=False)
        os.environ |= environment
        cleanup.callback(made.close)
        yield made


class Gpus:
    """The driver's GPUs: `use` percent busy, but for those that are `idle` or `sick`."""

    def __init__(self, file: Path, uuids: list[str]) -> None:
        self.file, self.uuids = file, uuids
        self.use = 93
        self.idle: set[str] = set()
        self.sick: dict[str, str] = {}
        """GPU → one of the driver's states other than ok (fake_nvml.c): lost, gone, hang …"""
        self.tell()

    def tell(self) -> None:
        """Write what the driver is to say from now on."""
        lines = []
        for uuid in self.uuids:
            use = 0 if uuid in self.idle else self.use
            power = 280_000 if use else 30_000
            lines.append(f"{uuid} {use} 18000 24576 {power} {self.sick.get(uuid, 'ok')}\n")
        write_atomic(self.file, "".join(lines).encode())


def mount_disk(folder: Path, mib: int) -> bool:
    """Put a small disk over `folder`; False where this process may not."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "fluxgym-bench", str(folder)]
    try:
        return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
    except OSError:
        return False
