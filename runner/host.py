"""Readings of the machine beside the GPUs: disk, memory."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Protocol

GIB = 2**30
CGROUPS, OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
MEMORY_SECONDS = 1.0
UNLIMITED = 2**60
"""From here on a limit is none (version 1 writes a number near 2⁶³)."""


class Host(Protocol):
    """The machine's disk and memory."""

    def disk_free_gib(self, path: Path) -> float | None:
        """Free space where `path` lies; None where not known."""

    def memory_available_gib(self) -> float | None:
        """Memory that programs here can still take, container limits included; None where not known."""


class LocalHost:
    """This machine. Memory is read once a second at the most: all runs of a round of samples get the same."""

    def __init__(self) -> None:
        self._memory: tuple[float, float | None] = (float("-inf"), None)

    def disk_free_gib(self, path: Path) -> float | None:
        try:
            return round(shutil.disk_usage(path).free / GIB, 3)
        except OSError:
            return None

    def memory_available_gib(self) -> float | None:
        now = time.monotonic()
        if now - self._memory[0] >= MEMORY_SECONDS:
            self._memory = now, _memory_available_gib()
        return self._memory[1]


def _memory_available_gib() -> float | None:
    import psutil

    try:
        found = [psutil.virtual_memory().available, *cgroup_available()]
        return round(min(found) / GIB, 3)
    except (OSError, psutil.Error):
        return None


def cgroup_available(mounted: Path = CGROUPS, own: Path = OWN_CGROUPS) -> list[int]:
    """Bytes that each control group around this process leaves it (a container's limit); none where none limits it."""
    found: list[int] = []
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if not controllers:
            root, names = mounted, ("memory.max", "memory.current", "inactive_file ")
        elif "memory" in controllers.split(","):
            root, names = mounted / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
        else:
            continue
        place = root / path.strip("/")
        # A container that sees its own group as the top one has another path here than in the mount.
        groups = [place, *place.parents] if place.is_dir() else [root]
        found += [left for group in groups if group.is_relative_to(root) and (left := _left(group, *names)) is not None]
    return found


def _left(group: Path, limit: str, used: str, cached: str) -> int | None:
    try:
        most = (group / limit).read_text().strip()
        if not most.isdigit() or int(most) >= UNLIMITED:
            return None
        taken = int((group / used).read_text())
        # Pages of files that nobody needs go first.
        stat = (group / "memory.stat").read_text().splitlines()
        free = next((int(line.split()[1]) for line in stat if line.startswith(cached)), 0)
        return max(0, int(most) - taken + free)
    except (OSError, ValueError, IndexError):
        return None
