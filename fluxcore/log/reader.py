"""Reading event logs: whole lines only, by offset, bad lines counted and never fatal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .event import Event, EventError, decode

_CHUNK = 8 * 1024 * 1024


class LogReader:
    """Follows one log file. A live writer's last line may be half there: what has no newline yet is left for later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bad_lines = 0
        self._offset = 0
        self._inode: int | None = None

    def read_new(self) -> list[Event]:
        """The events that came since the last call; a file that was replaced or cut is read from its start."""
        return list(self._new())

    def _new(self) -> Iterator[Event]:
        try:
            file = open(self.path, "rb")  # noqa: SIM115
        except (FileNotFoundError, NotADirectoryError):
            return
        with file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._offset, self._inode, self.bad_lines = 0, status.st_ino, 0
            if status.st_size == self._offset:
                return
            file.seek(self._offset)
            rest = b""
            while chunk := file.read(_CHUNK):
                lines = (rest + chunk).split(b"\n")
                rest = lines.pop()
                self._offset += len(chunk)
                for line in lines:
                    try:
                        if line.strip(b"\0 \r\t"):
                            # A crashed file system may leave NUL bytes before a good line.
                            yield decode(line.lstrip(b"\0"))
                    except EventError:
                        self.bad_lines += 1
            self._offset -= len(rest)


class FolderReader:
    """Follows every `events*.jsonl` of a run's folder: file order within a file; ts, writer, n across files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._readers: dict[Path, LogReader] = {}

    @property
    def bad_lines(self) -> int:
        """How many lines did not parse so far."""
        return sum(reader.bad_lines for reader in self._readers.values())

    def read_new(self) -> list[Event]:
        """The events that came since the last call."""
        batches: list[list[Event]] = []
        for path in sorted(self.folder.glob("events*.jsonl")):
            reader = self._readers.setdefault(path, LogReader(path))
            batch = reader.read_new()
            if batch:
                batches.append(batch)
        return batches[0] if len(batches) == 1 else merge(batches)


def merge(batches: list[list[Event]]) -> list[Event]:
    """Merge several files' events by (ts, writer, n) without reordering within a file."""
    heads = [0] * len(batches)
    merged: list[Event] = []
    for _ in range(sum(map(len, batches))):
        open_files = [i for i, head in enumerate(heads) if head < len(batches[i])]
        first = min(open_files, key=lambda i: _order(batches[i][heads[i]]))
        merged.append(batches[first][heads[first]])
        heads[first] += 1
    return merged


def _order(event: Event) -> tuple[str, str, int]:
    return event.ts, event.writer, event.n


def read_events(folder: Path) -> list[Event]:
    """All events of a run's folder, in order."""
    return FolderReader(folder).read_new()
