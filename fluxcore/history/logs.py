"""Which logs there are and which have changed, at two `stat`s a run: a thousand quiet runs cost milliseconds."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path

from fluxcore.log import Event, FolderReader, LogReader
from fluxcore.runs import entry_names

HEAD_BYTES = 200
SETTLED_SECONDS = 2.0
"""A folder that changed this recently may change again without a new time stamp: it is listed anew."""

Files = dict[str, tuple[int, int, int]]
"""Inode, size and time (ns) of each log file of a run, by name."""

Signature = list[tuple[str, str, int, int, int]]
"""Run, file, inode, size and time of every log, sorted."""


@dataclass
class RunLogs:
    """The log files of one run's folder: what of them was read, and what they looked like then."""

    folder: Path
    reader: FolderReader
    files: Files = field(default_factory=dict)
    heads: dict[str, bytes] = field(default_factory=dict)
    folder_mtime_ns: int = 0
    listed_at_ns: int = 0
    _names: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._path = os.fspath(self.folder)

    @classmethod
    def of(cls, folder: Path) -> RunLogs:
        """The logs of a run of which nothing was read yet."""
        return cls(folder, FolderReader(folder))

    def signature(self) -> Files:
        """Inode, size and time of every log file, as they are now; empty where there are none."""
        folder = self._path
        try:
            mtime = os.stat(folder).st_mtime_ns
            fresh = mtime > self.listed_at_ns - int(SETTLED_SECONDS * 1e9)
            if mtime != self.folder_mtime_ns or fresh:
                listed_at = time.time_ns()
                names = [name for name in os.listdir(folder) if name.startswith("events") and name.endswith(".jsonl")]
                self.folder_mtime_ns, self.listed_at_ns = mtime, listed_at
                self._names = sorted(names)
            found = {}
            for name in self._names:
                status = os.stat(f"{folder}/{name}")
                found[name] = (status.st_ino, status.st_size, status.st_mtime_ns)
            return found
        except (FileNotFoundError, NotADirectoryError):
            self.folder_mtime_ns = 0
            return {}

    def replaced(self, now: Files) -> bool:
        """Whether what was read before is no longer what lies there (cut, deleted, another run of the same name)."""
        for name, (inode, size, _) in self.files.items():
            if name not in now or now[name][0] != inode or now[name][1] < size:
                return True
            if now[name] != self.files[name] and self._head(name) != self.heads.get(name):
                return True
        return False

    def unread_bytes(self, now: Files) -> int:
        """How much came since the last look."""
        return sum(size - self.files.get(name, (0, 0, 0))[1] for name, (_, size, _) in now.items())

    def only_file(self, now: Files) -> LogReader | None:
        """The reader of the one file in which there is anything new; None where there are several to be merged."""
        return self.reader.of(next(iter(now))) if len(now) == 1 else None

    def read_new(self) -> list[Event]:
        """The events that came since."""
        return self.reader.read_new()

    def remember(self, now: Files) -> None:
        """Note what is about to be read."""
        for name in now:
            if name not in self.heads or len(self.heads[name]) < HEAD_BYTES:
                self.heads[name] = self._head(name)
        self.files = now

    def _head(self, name: str) -> bytes:
        """The first bytes of a log, as many as were remembered: an inode may be used again."""
        length = len(self.heads[name]) if name in self.heads else HEAD_BYTES
        try:
            with open(self.folder / name, "rb") as file:
                return file.read(length or HEAD_BYTES)
        except OSError:
            return b""


def log_signature(logs: dict[str, Files]) -> Signature:
    """Flat and sorted, so that equal logs give equal signatures."""
    return sorted((run, file, *stat) for run, files in logs.items() for file, stat in files.items())


def current_signature(outputs: Path) -> Signature:
    """The signature of an outputs folder's logs as they lie there now, without reading them."""
    found = dict[str, Files]()
    for name in entry_names(outputs):
        try:
            files = RunLogs.of(outputs / name).signature()
        except OSError:
            files = {"": (0, 0, 0)}  # like no copy's: as long as a run is left out, every question looks again
        if files:
            found[name] = files
    return log_signature(found)
