"""`./fluxgym bench faults-log`: a fault at every system call of an append, and what is read back afterwards.

Every call of FluxGym's writer into the kernel fails once in turn (and four in a row), in each of the ways below. Beside
that the two faults that need a real machine: a neighbour that is stopped while it holds the lock, and a disk that is
full (a tmpfs of a few KiB, where this process may mount one).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fluxcore import atomic
from fluxcore.log import EventLog, FolderReader, PatientLog, side_data, writer

CALLS = ("open", "fstat", "stat", "lseek", "pread", "write", "fdatasync", "ftruncate", "close", "flock")
FAULTS = ("ENOSPC", "EIO", "EINTR", "ENOLCK", "short", "all but the newline")
DISK_BYTES = 64 * 1024

HOLDER = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o644)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


LONG = "frame " * 50_000
"""More than fits into a line."""


@dataclass
class Outcome:
    """What one campaign found. `doubled`: an event's number that two events have."""

    faults: int = 0
    acknowledged: int = 0
    lost: int = 0
    doubled: int = 0
    raised: int = 0
    """Exceptions out of the trainer's log."""
    not_recovered: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Whether nothing went wrong, and something was tried."""
        return bool(self.faults and self.acknowledged) and not (
            self.lost or self.doubled or self.raised or self.not_recovered
        )


class Faulty:
    """A module whose calls in CALLS are counted over all such modules; those in `at` fail with `fault`."""

    count = 0
    failed = 0

    def __init__(self, module: Any, at: range, fault: str) -> None:
        self._module, self._at, self._fault = module, at, fault

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._module, name)
        return self._watched(name, real) if name in CALLS else real

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            """The real call, or the fault where its turn has come."""
            index = Faulty.count
            Faulty.count += 1
            if index not in self._at:
                return real(*arguments)
            Faulty.failed += 1
            if self._fault == "short":
                if name != "write":
                    return real(*arguments)
                return real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            if self._fault == "all but the newline":
                if name == "write":
                    real(arguments[0], arguments[1][:-1])
                    raise OSError(errno.EIO, "Input/output error")  # a network file system may say so late
                return real(*arguments)
            if name == "close":
                real(*arguments)  # the kernel closes it in any case
            raise OSError(getattr(errno, self._fault), os.strerror(getattr(errno, self._fault)))

        return call


@contextmanager
def faults(at: range, fault: str) -> Iterator[None]:
    """The calls `at` of the writer, and of what writes its side files, fail with `fault`."""
    Faulty.count = Faulty.failed = 0
    modules = writer.os, writer.fcntl, atomic.os
    faulty = Faulty(os, at, fault)
    writer.os, writer.fcntl, atomic.os = faulty, Faulty(fcntl, at, fault), faulty  # type: ignore[assignment]
    try:
        yield
    finally:
        writer.os, writer.fcntl, atomic.os = modules  # type: ignore[assignment]


def some_appends(append: Callable[[int], None], folder: Path) -> None:
    """Five appends, with a torn tail before the third."""
    for i in range(5):
        if i == 2:
            with open(folder / "events.jsonl", "ab") as file:
                file.write(b'{"v":1,"ts":"2026')
        append(i)


def every_call(place: Path, fault: str, lasting: int) -> Outcome:
    """`lasting` failures from each call on, in turn, until no call is left that has had its fault."""
    outcome = Outcome()
    for first in range(500):
        folder = place / f"run-{fault.replace(' ', '-')}-{lasting}-{first}"
        folder.mkdir()
        log = EventLog(folder, "cli", lock_deadline=0)
        acknowledged: list[tuple[str, int]] = []

        def append(i: int, log: EventLog = log, acknowledged: list[tuple[str, int]] = acknowledged) -> None:
            with contextlib.suppress(OSError):
                long = {"evidence": LONG} if i == 3 else {}  # which goes into a side file
                event = log.append("run.noted", {"note": i, **long}, durable=i % 2 == 0)
                acknowledged.append((event.id, i))

        with faults(range(first, first + lasting), fault):
            some_appends(append, folder)
            failed, calls = Faulty.failed, Faulty.count
        append(98)
        append(99)
        log.close()
        events = FolderReader(folder).read_new()
        found = [(event.id, event.data["note"]) for event in events]
        where = f"{fault} at call {first}"
        aside = [side_data(folder, event.data["side_file"]) for event in events if "side_file" in event.data]
        _note(outcome, "lost", sum(data.get("evidence") != LONG for data in aside), f"{where}: a side file")
        outcome.faults += failed
        outcome.acknowledged += len(acknowledged)
        _note(outcome, "lost", len(set(acknowledged) - set(found)), where)
        _note(outcome, "doubled", len(found) - len({id for id, _ in found}), where)
        _note(outcome, "not_recovered", int([note for _, note in acknowledged][-2:] != [98, 99]), where)
        if not failed:
            if first < calls:
                _note(outcome, "not_recovered", 1, f"{where}: not every call had its fault")
            return outcome
    raise AssertionError("more calls than expected")


def trainers_log(place: Path, fault: str) -> Outcome:
    """The same under the trainer's patient log: it never raises, keeps the order, and catches up."""
    outcome = Outcome()
    for first in range(60):
        folder = place / f"patient-{fault.replace(' ', '-')}-{first}"
        folder.mkdir()
        now = [0.0]
        patient = PatientLog(EventLog(folder, "trainer", lock_deadline=0), clock=lambda now=now: now[0])

        def append(i: int, patient: PatientLog = patient, now: list[float] = now) -> None:
            now[0] += 0.5
            try:
                patient.append("train.step", {"step": i})
            except Exception:
                outcome.raised += 1

        with faults(range(first, first + 6), fault):
            some_appends(append, folder)
            outcome.faults += Faulty.failed
        now[0] += 10
        append(5)
        found = [event.data["step"] for event in FolderReader(folder).read_new()]
        where = f"{fault} from call {first}"
        outcome.acknowledged += 6
        _note(outcome, "lost", len(set(range(6)) - set(found)), where)
        _note(outcome, "not_recovered", int(bool(patient.waiting or patient.dropped)), where)
        if list(dict.fromkeys(found)) != sorted(set(found)):
            _note(outcome, "not_recovered", 1, f"{where}: out of order")
    return outcome


def stopped_holder(place: Path, deadline: float = 0.2) -> Outcome:
    """A process that holds the lock is stopped: appends go on without it, and repair what it left when it is killed."""
    outcome = Outcome(faults=1)
    folder = place / "stopped"
    folder.mkdir()
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder / "events.jsonl")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.send_signal(signal.SIGSTOP)
        log = EventLog(folder, "cli", lock_deadline=deadline)
        started = time.monotonic()
        sent = [log.append("run.noted", {"note": i}, durable=False) for i in range(3)]
        if time.monotonic() - started > 3 * deadline + 2:
            _note(outcome, "not_recovered", 1, "it waited too long for the lock")
    finally:
        holder.kill()
        holder.communicate()
    sent.append(log.append("run.noted", {"note": 3}))
    _compare(outcome, folder, sent, "lock held by a stopped process")
    return outcome


def full_disk(folder: Path, free: Callable[[], None]) -> Outcome:
    """Append to `folder`, on a small disk, until it is full and beyond; `free` makes room; then append again."""
    outcome = Outcome()
    with EventLog(folder, "cli") as log:
        sent = []
        for i in range(2000):
            try:
                sent.append(log.append("run.noted", {"note": f"{i} " + "x" * (i % 700)}))
            except OSError as error:
                assert error.errno == errno.ENOSPC, error
                outcome.faults += 1
                if outcome.faults > 20:
                    break
        free()
        sent += [log.append("run.noted", {"note": "room again"}) for _ in range(3)]
    _compare(outcome, folder, sent, "disk full")
    return outcome


@contextmanager
def small_disk(bytes: int = DISK_BYTES) -> Iterator[Path | None]:
    """A tmpfs of that size; None where this process may not mount one."""
    with tempfile.TemporaryDirectory(prefix="fluxgym-disk-") as place:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={bytes}", "fluxgym-test", place], capture_output=True
        )
        if mounted.returncode:
            yield None
            return
        try:
            yield Path(place)
        finally:
            subprocess.run(["umount", place], check=True)


def on_a_full_disk() -> Outcome | None:
    """`full_disk` on a tmpfs, where there is one."""
    with small_disk() as disk:
        if disk is None:
            return None
        folder, ballast = disk / "run", disk / "ballast"
        folder.mkdir()
        ballast.write_bytes(b"x" * (DISK_BYTES // 4))
        return full_disk(folder, ballast.unlink)


def _compare(outcome: Outcome, folder: Path, sent: list[Any], where: str) -> None:
    found = FolderReader(folder).read_new()
    ids = [event.id for event in found]
    outcome.acknowledged += len(sent)
    _note(outcome, "lost", len([event for event in sent if event not in found]), where)
    _note(outcome, "doubled", len(ids) - len(set(ids)), where)


def _note(outcome: Outcome, what: str, count: int, where: str) -> None:
    if count:
        setattr(outcome, what, getattr(outcome, what) + count)
        outcome.problems.append(f"{where}: {what} {count}")


def main() -> int:
    """The command. Returns 1 where a fault lost or doubled an event, or was not recovered from."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    logging.disable()  # the trainer's log says that it can't be written, as it should
    table = Table(title="A fault at every system call of an append")
    for column in ("fault", "faults", "acknowledged", "lost", "numbered twice", "raised", "not recovered"):
        table.add_column(column, justify="left" if column == "fault" else "right")
    clean = True

    def add(title: str, found: Outcome | None) -> None:
        nonlocal clean
        if found is None:
            table.add_row(f"{title}: not tried, no tmpfs can be mounted here")
            return
        clean = clean and found.clean
        counts = (found.faults, found.acknowledged, found.lost, found.doubled, found.raised, found.not_recovered)
        table.add_row(title, *(f"{count:,}" for count in counts))
        for problem in found.problems:
            print(problem, file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="fluxgym-bench-") as place:
        for fault in FAULTS:
            for lasting in (1, 4):
                add(f"{fault}, {lasting} in a row", every_call(Path(place), fault, lasting))
        for fault in FAULTS:
            add(f"{fault}, in the trainer's loop", trainers_log(Path(place), fault))
        add("lock held by a stopped process", stopped_holder(Path(place)))
    add("disk full (tmpfs)", on_a_full_disk())
    Console(width=120).print(table)
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
