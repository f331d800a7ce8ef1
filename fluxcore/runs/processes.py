"""Who a process is. A pid alone means nothing after a while: it is reused, soon where pid_max is 32768.

A process is its pid, the time it was created and the boot in which it runs. The creation time in seconds moves when
the wall clock is set; the kernel's own count of clock ticks since boot does not, so that is what is compared.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_CREATE_TIME_TOLERANCE = 2.0
MOST_LOOKS = 50
"""How often the list of processes is read for one answer, where new ones come all the time."""


@dataclass(frozen=True)
class Identity:
    """One process of this machine. `create_time` is epoch seconds, `start_ticks` ticks since boot (0: unknown)."""

    pid: int
    create_time: float
    boot_id: str
    start_ticks: int = 0

    @classmethod
    def parse(cls, data: dict[str, Any]) -> Identity | None:
        """From a JSON object with these names; None where it is none."""
        try:
            pid, created = int(data["pid"]), float(data.get("create_time") or 0)
            return cls(pid, created, str(data.get("boot_id") or ""), int(data.get("start_ticks") or 0))
        except (KeyError, TypeError, ValueError):
            return None


@dataclass(frozen=True)
class ProcessRow:
    """One line of the process table. `cpu_seconds` is user and system time, `rss_bytes` resident memory."""

    pid: int
    parent: int
    start_ticks: int
    zombie: bool
    stopped: bool
    cpu_seconds: float
    rss_bytes: int


@cache
def boot_id() -> str:
    """This boot's id; "" where the kernel doesn't tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def read_process(pid: int) -> ProcessRow | None:
    """The process of that pid now, zombies included; None where there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name, in brackets, may hold blanks and brackets itself.
            fields = file.read().rpartition(b")")[2].split()
        cpu = (int(fields[11]) + int(fields[12])) / _TICKS
        state = fields[0]
        zombie, stopped = state in (b"Z", b"X"), state in (b"T", b"t")
        return ProcessRow(pid, int(fields[1]), int(fields[19]), zombie, stopped, cpu, int(fields[21]) * _PAGE)
    except (OSError, IndexError, ValueError):
        return None


def process_table() -> dict[int, ProcessRow]:
    """Every process that can be seen, by pid."""
    rows = (read_process(pid) for pid in _pids())
    return {row.pid: row for row in rows if row is not None}


def processes_with(entry: str) -> tuple[dict[int, ProcessRow], set[int]]:
    """Every process, and the pids of those that were started with `NAME=value` in their environment.

    Looks until no process is new: one that has forked on and ended while it was read is not overlooked.
    """
    table: dict[int, ProcessRow] = {}
    found: set[int] = set()
    seen: set[int] = set()
    for _ in range(MOST_LOOKS):
        new = _pids() - seen
        if not new:
            break
        seen |= new
        for pid in new:
            row = read_process(pid)
            if row is not None:
                table[pid] = row
                if environment_has(pid, entry):
                    found.add(pid)
    return table, found


def _pids() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def descendants(pids: set[int], table: dict[int, ProcessRow]) -> set[int]:
    """All children of `pids`, their children and so on, without `pids` themselves."""
    children: dict[int, list[int]] = {}
    for row in table.values():
        children.setdefault(row.parent, []).append(row.pid)
    found: set[int] = set()
    waiting = list(pids)
    while waiting:
        for child in children.get(waiting.pop(), []):
            if child not in found:
                found.add(child)
                waiting.append(child)
    return found - pids


def identify(pid: int) -> Identity | None:
    """The identity of the live process `pid`; None where there is none, or a zombie."""
    row = read_process(pid)
    if row is None or row.zombie:
        return None
    return Identity(pid, boot_time() + row.start_ticks / _TICKS, boot_id(), row.start_ticks)


def boot_time() -> float:
    """When this machine started, epoch seconds."""
    try:
        with open("/proc/stat") as file:
            return float(next(line.split()[1] for line in file if line.startswith("btime")))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0.0


def is_alive(identity: Identity) -> bool:
    """Whether exactly this process lives (a zombie does not)."""
    if identity.pid <= 0 or (identity.boot_id and identity.boot_id != boot_id()):
        return False
    row = read_process(identity.pid)
    if row is None or row.zombie:
        return False
    if identity.start_ticks:
        return row.start_ticks == identity.start_ticks
    return abs(boot_time() + row.start_ticks / _TICKS - identity.create_time) <= _CREATE_TIME_TOLERANCE


def environment_has(pid: int, entry: str) -> bool:
    """Whether the process was started with `NAME=value` in its environment; False where that can't be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return os.fsencode(entry) in file.read().split(b"\0")
    except OSError:
        return False


def environment_value(pid: int, name: str) -> str | None:
    """What the process was started with as `name` in its environment; None where that is not set, or can't be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            values = dict(entry.partition(b"=")[::2] for entry in file.read().split(b"\0"))
    except OSError:
        return None
    found = values.get(os.fsencode(name))
    return None if found is None else os.fsdecode(found)
