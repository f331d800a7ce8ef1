"""How the runner reaches a machine: spawn, look, alive, activity, tree, signal. Everything else is above this."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fluxcore.runs.files import PROJECT_ROOT, RunFolder
from fluxcore.runs.processes import (
    Identity,
    ProcessRow,
    descendants,
    environment_value,
    is_alive,
    process_table,
    processes_with,
    read_process,
)
from fluxcore.trainers import DEFAULT_TRAINER, TRAINERS

from .shim import claim, oom_kills

TABLE_SECONDS = 1.0
"""How old the process table may be that tells which processes are a run's; several runs share one look.

What each of these used is read anew, and kills look anew.
"""

SHIM = Path(__file__).with_name("shim.py")


@dataclass(frozen=True)
class Launch:
    """An attempt to be started: the trainer's command line and what goes into its environment."""

    folder: RunFolder
    attempt: int
    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Exit:
    """How a trainer ended. `exit_code` None: not known. `signal` is a name such as SIGKILL.

    `oom_kills`: processes of its control group that the kernel killed for want of memory while it ran; `oom_total`: up
    to its end, None where not known.
    """

    exit_code: int | None
    signal: str | None = None
    seconds: float | None = None
    oom_kills: int = 0
    oom_total: int | None = None


@dataclass(frozen=True)
class Record:
    """What the shim left about an attempt; None for what is not there (yet). `given_up`: no shim can have it more."""

    claimed: bool = False
    claimed_by: Identity | None = None
    trainer: Identity | None = None
    shim: Identity | None = None
    log_offset: int = 0
    exit: Exit | None = None
    given_up: bool = False


@dataclass(frozen=True)
class Activity:
    """What an attempt's process tree used so far (CPU seconds, bytes) and holds now (`rss_bytes`).

    `oom_kills`: what its control group counts up to now; None where not known. `stopped`: the trainer is held, by a
    SIGSTOP or a debugger.
    """

    cpu_seconds: float
    rss_bytes: int
    read_bytes: int
    write_bytes: int
    oom_kills: int | None = None
    stopped: bool = False


class Executor(Protocol):
    """A machine on which trainers run."""

    def spawn(self, launch: Launch) -> None:
        """Start the attempt's shim and return at once. Harmless where a shim has claimed the attempt already."""

    def give_up(self, folder: RunFolder, attempt: int) -> bool:
        """Take an attempt so that no late shim can; False where one has it."""

    def look(self, folder: RunFolder, attempt: int) -> Record:
        """What is recorded of an attempt."""

    def alive(self, identity: Identity | None) -> bool:
        """Whether exactly this process lives."""

    def tree(self, folder: RunFolder, record: Record) -> list[Identity]:
        """Every live process of the run's attempt, whatever session it moved to, without the shim."""

    def is_of_another(self, folder: RunFolder, attempt: int, record: Record) -> bool:
        """Whether the live trainer was started for another folder that is still there: this one is a copy of that."""

    def output_is_deleted(self, record: Record) -> bool:
        """Whether the file that the live trainer prints into was deleted: nobody can put its folder back."""

    def forget(self, folder: RunFolder, attempt: int) -> None:
        """Remember nothing of an attempt: its folder is gone, another run may take its name."""

    def activity(self, folder: RunFolder, attempt: int, record: Record) -> Activity | None:
        """CPU, memory and I/O of the attempt's processes; None where nothing can be seen."""

    def signal(self, identity: Identity, number: int) -> bool:
        """Send a signal to exactly this process; False where it is gone."""

    def reap(self) -> None:
        """Collect shims that ended."""


def trainer_command(name: str = DEFAULT_TRAINER) -> list[str]:
    """The command line of the trainer that a config names, without its options: $FLUXGYM_TRAINER where set, else ours.

    One that this version does not know is served by the default one, which says what is wrong with the config.
    """
    given = os.environ.get("FLUXGYM_TRAINER")
    return shlex.split(given) if given else [sys.executable, "-m", TRAINERS.get(name, TRAINERS[DEFAULT_TRAINER])]


class LocalExecutor:
    """This machine's processes."""

    def __init__(self) -> None:
        self._shims: list[subprocess.Popen[bytes]] = []
        self._usage: dict[tuple[Path, int], _Usage] = {}
        self._started: dict[tuple[Path, int], _Started] = {}
        self._table: dict[int, ProcessRow] = {}
        self._table_at = float("-inf")

    def spawn(self, launch: Launch) -> None:
        """A shim in a session of its own: it outlives the runner."""
        attempt_folder = launch.folder.attempt(launch.attempt)
        attempt_folder.mkdir(parents=True, exist_ok=True)
        order = {
            "folder": str(attempt_folder),
            "argv": launch.argv,
            "cwd": str(PROJECT_ROOT),
            "env": {
                **launch.env,
                "FLUXGYM_RUN": str(launch.folder.path.absolute()),
                "FLUXGYM_ATTEMPT": str(launch.attempt),
                "PYTHONUNBUFFERED": "1",
            },
            "log": str(launch.folder.train_log),
        }
        # The shim itself carries no mark of the run: the sweep for the run's processes must not find it. A trainer has
        # no business with the secrets of the alerts.
        hidden = ("FLUXGYM_RUN", "FLUXGYM_ALERTS")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
        with open(launch.folder.train_log, "ab") as log:  # a file, never a pipe: an undrained pipe stops its writer
            shim = subprocess.Popen(
                [sys.executable, "-I", "-S", str(SHIM), json.dumps(order)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=environment,
                start_new_session=True,
            )
        self._shims.append(shim)

    def give_up(self, folder: RunFolder, attempt: int) -> bool:
        """The claim that a shim would make."""
        return claim(folder.attempt(attempt), {"given_up": True}) or self.look(folder, attempt).given_up

    def look(self, folder: RunFolder, attempt: int) -> Record:
        """From the attempt's three small files; of one whose trainer is known only its end is looked for."""
        known = self._started.get((folder.path, attempt))
        if known is not None and not os.path.exists(known.exit_file):
            return known.record  # nothing else can change once the trainer is written down
        place = folder.attempt(attempt)
        process, ended = _read(place / "process.json"), _read(place / "exit.json")
        claimed = (place / "claim.json").exists()  # before it is read: one that comes in between is the next look's
        owner = _read(place / "claim.json") if claimed else {}
        shim = process.get("shim")
        found = Record(
            claimed=claimed,
            claimed_by=Identity.parse(owner),
            given_up=bool(owner.get("given_up")),
            trainer=Identity.parse(process),
            shim=Identity.parse(shim) if isinstance(shim, dict) else None,
            log_offset=int(process.get("log_offset") or 0),
            exit=_exit(ended) if ended else None,
        )
        if found.exit is not None:
            self._started.pop((folder.path, attempt), None)
            self._usage.pop((folder.path, attempt), None)
        elif found.trainer is not None:
            self._started[folder.path, attempt] = _Started(found, os.path.join(place, "exit.json"))
        return found

    def alive(self, identity: Identity | None) -> bool:
        return identity is not None and is_alive(identity)

    def tree(self, folder: RunFolder, record: Record) -> list[Identity]:
        roots = {known.pid for known in (record.shim, record.trainer) if known and is_alive(known)}
        table, marked = processes_with(f"FLUXGYM_RUN={folder.path.absolute()}")
        pids = roots | marked
        pids |= descendants(pids, table)
        pids -= {os.getpid(), 1} | {shim.pid for shim in (record.shim, record.claimed_by) if shim}
        boot = next((known.boot_id for known in (record.trainer, record.shim) if known), "")
        rows = [table[pid] for pid in sorted(pids) if pid in table and not table[pid].zombie]
        return [Identity(row.pid, 0.0, boot, row.start_ticks) for row in rows]

    def is_of_another(self, folder: RunFolder, attempt: int, record: Record) -> bool:
        for process in (record.trainer, record.shim):
            if process is not None and is_alive(process):
                home = environment_value(process.pid, "FLUXGYM_RUN")
                try:
                    if not home or not os.path.isdir(home) or os.path.samefile(home, folder.path):
                        continue
                except OSError:
                    continue
                if Identity.parse(_read(RunFolder(Path(home)).attempt(attempt) / "process.json")) == record.trainer:
                    return True  # else it was renamed, and another run has its name
        return False

    def output_is_deleted(self, record: Record) -> bool:
        for process in (record.trainer, record.shim):
            if process is not None and is_alive(process):
                try:
                    return os.readlink(f"/proc/{process.pid}/fd/1").endswith("/train.log (deleted)")
                except OSError:
                    continue
        return False

    def forget(self, folder: RunFolder, attempt: int) -> None:
        """What was read of it, and what its processes used."""
        self._started.pop((folder.path, attempt), None)
        self._usage.pop((folder.path, attempt), None)

    def activity(self, folder: RunFolder, attempt: int, record: Record) -> Activity | None:
        """Over all that descends from shim and trainer, the shim itself left out."""
        roots = {known.pid for known in (record.shim, record.trainer) if known and is_alive(known)}
        if not roots or record.exit is not None:  # what it used is forgotten with its exit
            return None
        now = time.monotonic()
        if now - self._table_at > TABLE_SECONDS or not roots <= set(self._table):
            self._table, self._table_at = process_table(), now
        table = self._table
        pids = (roots | descendants(roots, table)) - ({record.shim.pid} if record.shim else set())
        usage = self._usage.setdefault((folder.path, attempt), _Usage())
        rss, stopped = 0, False
        for pid in pids:
            known, row = table.get(pid), read_process(pid)
            same = known is not None and row is not None and known.start_ticks == row.start_ticks
            if same and row is not None and not row.zombie:
                rss += row.rss_bytes
                stopped |= row.stopped and record.trainer is not None and pid == record.trainer.pid
                usage.add((pid, row.start_ticks), row.cpu_seconds, *_io_bytes(pid))
        return Activity(usage.cpu_seconds, rss, usage.read_bytes, usage.write_bytes, oom_kills(min(roots)), stopped)

    def signal(self, identity: Identity, number: int) -> bool:
        try:
            handle = os.pidfd_open(identity.pid)  # pins the process: the pid can't pass to another one from here on
        except OSError:
            return False
        try:
            if not is_alive(identity):
                return False
            signal.pidfd_send_signal(handle, number)
            return True
        except OSError:
            return False
        finally:
            os.close(handle)

    def reap(self) -> None:
        self._shims = [shim for shim in self._shims if shim.poll() is None]
        if os.getpid() == 1:  # in a container without init, orphans end up here
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass


@dataclass(frozen=True)
class _Started:
    """A trainer that was written down, and where its exit will be, ready to be asked for in every turn."""

    record: Record
    exit_file: str


class _Usage:
    """Sums over processes that come and go: what an ended one used stays counted."""

    def __init__(self) -> None:
        self.cpu_seconds, self.read_bytes, self.write_bytes = 0.0, 0, 0
        self._last: dict[tuple[int, int], tuple[float, int, int]] = {}

    def add(self, process: tuple[int, int], cpu: float, read: int, written: int) -> None:
        before = self._last.get(process, (0.0, 0, 0))
        self.cpu_seconds += max(0.0, cpu - before[0])
        self.read_bytes += max(0, read - before[1])
        self.write_bytes += max(0, written - before[2])
        self._last[process] = (cpu, read, written)


def _io_bytes(pid: int) -> tuple[int, int]:
    """Bytes read and written by a process, page cache included; (0, 0) where that can't be read."""
    try:
        with open(f"/proc/{pid}/io") as file:
            values = dict(line.split(": ") for line in file.read().splitlines())
        return int(values["rchar"]), int(values["wchar"])
    except (OSError, ValueError, KeyError):
        return 0, 0


def _exit(data: dict[str, Any]) -> Exit:
    total = data.get("oom_total")
    return Exit(
        data.get("exit_code"),
        data.get("signal"),
        data.get("seconds"),
        int(data.get("oom_kills") or 0),
        total if isinstance(total, int) else None,
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
