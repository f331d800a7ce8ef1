"""Readings of the machine beside the GPUs: disk, memory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Protocol

GIB = 2**30


class Host(Protocol):
    """The machine's disk and memory."""

    def disk_free_gib(self, path: Path) -> float | None:
        """Free space where `path` lies; None where not known."""

    def memory_available_gib(self) -> float | None:
        """Memory that programs can still take; None where not known."""


class LocalHost:
    """This machine."""

    def disk_free_gib(self, path: Path) -> float | None:
        try:
            return round(shutil.disk_usage(path).free / GIB, 3)
        except OSError:
            return None

    def memory_available_gib(self) -> float | None:
        import psutil

        try:
            return round(psutil.virtual_memory().available / GIB, 3)
        except (OSError, psutil.Error):
            return None
