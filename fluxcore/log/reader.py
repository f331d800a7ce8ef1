"""Reading event logs: whole lines only, by offset, bad lines counted and never fatal."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .event import Event, EventError, decode
from .seen import Seen

CHUNK_BYTES = 8 * 1024 * 1024
_HEAD_BYTES = 200
"""So much of a log's beginning says which log it is: a file system gives a deleted one's inode to the next at once."""


class LogReader:
    """Follows one log file. A live writer's last line may be half there: what has no newline yet is left for later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bad_lines = 0
        self.offset = 0
        """Bytes that were handed out, always whole lines."""
        self.behind = False
        """Whether the file went on behind what the last `read_lines` handed out."""
        self.restarts = 0
        """How often the file turned out to be another than it was, and was read from its start."""
        self._inode: int | None = None
        self._size = 0
        self._head = b""

    def read_new(self) -> list[Event]:
        """The events that came since the last call; a file that was replaced or cut is read from its start."""
        return list(self)

    def __iter__(self) -> Iterator[Event]:
        """The same one by one, for a million events of which few are kept.

        What is written meanwhile is left for later: writers may be faster than any reader.
        """
        end: int | None = None
        while lines := self.read_lines():
            for line in lines.split(b"\n"):
                if event := self.decode(line):
                    yield event
            end = self._size if end is None else end
            if not self.behind or self.offset >= end:
                break

    def read_lines(self, most: int = CHUNK_BYTES) -> bytes:
        """The next whole lines as they lie there, about `most` bytes (a longer line comes whole); b"" if none came."""
        try:
            file = open(self.path, "rb", buffering=0)  # noqa: SIM115
        except (FileNotFoundError, NotADirectoryError):
            self.behind = False
            return b""
        with file:
            status = os.fstat(file.fileno())
            if self._is_another(file.fileno()):
                self.restarts += self.offset > 0
                self.offset, self._inode, self.bad_lines = 0, status.st_ino, 0
            file.seek(self.offset)
            lines = file.read(min(most, status.st_size - self.offset)) or b""
            while not (end := lines.rfind(b"\n") + 1) and (more := file.read(most)):
                lines += more
            if not self.offset:
                self._head = lines[: min(end, _HEAD_BYTES)]
            self.offset += end
            self.behind, self._size = self.offset < status.st_size, status.st_size
            return lines if end == len(lines) else lines[:end]

    def _is_another(self, fd: int) -> bool:
        status = os.fstat(fd)
        if status.st_ino != self._inode or status.st_size < self.offset:
            return True
        return os.pread(fd, len(self._head), 0) != self._head

    def decode(self, line: bytes) -> Event | None:
        """One line's event; None for a blank line, and for a bad one, which is counted."""
        try:
            if line.strip(b"\0 \r\t"):
                return decode(line.lstrip(b"\0"))  # a crashed file system may leave NUL bytes before a good line
        except EventError:
            self.bad_lines += 1
        return None


class FolderReader:
    """Follows every `events*.jsonl` of a run's folder: file order within a file; ts, writer, n across files.

    Where there are several, an event counts once: a synchronised folder leaves copies such as `events (1).jsonl`.
    """

    def __init__(self, folder: Path, stem: str = "events") -> None:
        """`stem`: the files' name without `.jsonl` (`.events` for the installation's in an outputs folder)."""
        self.folder = folder
        self.stem = stem
        self._readers: dict[str, LogReader] = {}
        self._seen: Seen | None = None
        """Needed, and therefore kept, only while there are several files."""

    @property
    def bad_lines(self) -> int:
        """How many lines did not parse so far."""
        return sum(reader.bad_lines for reader in self._readers.values())

    @property
    def restarts(self) -> int:
        """How often one of the files turned out to be another than it was, and was read from its start."""
        return sum(reader.restarts for reader in self._readers.values())

    def of(self, name: str) -> LogReader:
        """The reader of one file of the folder."""
        return self._readers.setdefault(name, LogReader(self.folder / name))

    def files(self) -> list[LogReader]:
        """The readers of the files that are there now."""
        return [self.of(name) for name in self._names()]

    def read_new(self) -> list[Event]:
        """The events that came since the last call."""
        names = self._names()
        if len(names) > 1 and self._seen is None:
            self._seen = self._read_before()
        batches: list[list[Event]] = []
        for name in names:
            batch = self.of(name).read_new()
            if self._seen is not None:
                batch = [event for event in batch if self._seen.add(event)]
            if batch:
                batches.append(batch)
        return batches[0] if len(batches) == 1 else merge(batches)

    def __iter__(self) -> Iterator[Event]:
        """The same one by one."""
        names = self._names()
        if len(names) == 1 and self._seen is None:
            return iter(self.of(names[0]))
        return iter(self.read_new())

    def _names(self) -> list[str]:
        try:
            there = os.listdir(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in there if name.startswith(self.stem) and name.endswith(".jsonl"))

    def _read_before(self) -> Seen:
        """What was handed out while there was one file: that is in no memory, so the file is read again so far."""
        seen = Seen()
        for reader in self._readers.values():
            again, end = LogReader(reader.path), reader.offset
            while again.offset < end and (lines := again.read_lines(min(CHUNK_BYTES, end - again.offset))):
                for line in lines.split(b"\n"):
                    if event := again.decode(line):
                        seen.add(event)
        return seen


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
