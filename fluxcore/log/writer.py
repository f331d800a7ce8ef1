"""Appending to an event log so that a kill, a full disk or a stopped neighbour loses no acknowledged event.

A write is not atomic against SIGKILL: what a killed writer leaves is a torn tail, and the next line would be
glued onto it and lost with it. So every append holds flock, looks whether the file ends in a newline and writes one
first if it does not; a short write (a disk that fills) is cut off again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fluxcore.atomic import sync_folder

from . import side
from .event import DURABLE_TYPES, VERSION, Event, TooLarge, encode, envelope, new_writer_id, utc_now

LOCK_DEADLINE_SECONDS = 2.0
LOOK_SECONDS = 0.1
"""How often an append looks whether the log was replaced or removed; one that waits for the disk always looks."""
NEVER_SPLIT = frozenset({"config.saved", "run.requested"})
"""Types of which the fold needs every word."""
_OPEN = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC
_TRY_LOCK = fcntl.LOCK_EX | fcntl.LOCK_NB
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
_new = tuple.__new__
"""Event(...) by its fields in order, at half the time: every append makes one."""


class EventLog:
    """One writer's door to one run's log. Every append either is in the file when it returns, or raises OSError.

    For one thread at a time.
    """

    def __init__(
        self,
        folder: Path,
        source: str,
        *,
        run: str | None = None,
        writer: str | None = None,
        attempt: int | None = None,
        stem: str = "events",
        now: Callable[[], str] = utc_now,
        lock_deadline: float = LOCK_DEADLINE_SECONDS,
    ) -> None:
        """Append to `folder/events.jsonl` as `run` (default: the folder's name); nothing is opened before it is needed.

        `attempt` goes onto every event that names none itself; `stem` is the file's name without `.jsonl`.
        """
        self.folder = folder
        self.run = folder.name if run is None else run
        self.source = source
        self.writer = writer or new_writer_id(source)
        self.attempt = attempt
        self.now = now
        self._lock_deadline = lock_deadline
        self._stem = stem
        self._path = os.path.join(folder, f"{stem}.jsonl")
        self._fd: int | None = None
        self._identity = (0, 0)
        self._end = -1
        """Where our last line ended: as long as the file does too, it ends in a newline."""
        self._look_at = float("-inf")
        """When to look at the path again."""
        self._alone = False
        self._kept_from_us = False
        """Whether the lock's holder let the deadline pass (it is stopped): until it lets go, nobody waits again."""
        self._n = 0
        self._envelopes: dict[tuple[str, int | None], dict[str, Any]] = {}

    def append(
        self,
        type: str,
        data: dict[str, Any] | None = None,
        *,
        attempt: int | None = None,
        durable: bool | None = None,
        ts: str | None = None,
    ) -> Event:
        """Append one event and return it. `durable` overrides whether it waits for the disk (see
        DURABLE_TYPES); `ts` is for an event that happened earlier.

        What does not fit into a line goes into a side file that the event names (see `side.py`), except a config.
        Raises EventError (a config too large, not JSON) or OSError (disk full, folder gone); then nothing was written
        and the event's number is free again.
        """
        if attempt is None:
            attempt = self.attempt
        event = _new(
            Event,
            (ts or self.now(), self.run, type, self.source, self.writer, self._n + 1, data or {}, attempt, VERSION),
        )
        durable = type in DURABLE_TYPES if durable is None else durable
        try:
            within = self._envelopes.get((type, attempt)) or self._envelope(type, attempt)
            line = encode(event, within)
        except TooLarge:
            if type in NEVER_SPLIT:
                raise
            with side.put_aside(self.folder, event) as event:
                self._write(encode(event), durable)
        else:
            self._write(line, durable)
        self._n += 1
        return event

    def _envelope(self, type: str, attempt: int | None) -> dict[str, Any]:
        made = self._envelopes[type, attempt] = envelope(self.run, type, self.source, self.writer, attempt)
        return made

    def close(self) -> None:
        """Close the file; a later append opens it again."""
        if self._fd is not None:
            fd, self._fd, self._end = self._fd, None, -1
            with contextlib.suppress(OSError):  # the descriptor is given back in any case
                os.close(fd)

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, line: bytes, durable: bool) -> None:
        """Lock, look, write, let go: in one function, since the trainer's loop waits for it at every step."""
        while True:
            fd = self._open() if self._fd is None else self._fd
            locked = False
            if not self._alone:
                try:
                    fcntl.flock(fd, _TRY_LOCK)
                    locked, self._kept_from_us = True, False
                except BlockingIOError:
                    locked = self._wait_for_lock(fd)
                except OSError as error:
                    if error.errno not in _NO_LOCKS:
                        raise
                    self._go_alone()
                    continue
            try:
                if not durable and time.monotonic() < self._look_at or self._is_there():
                    size = os.lseek(fd, 0, os.SEEK_END)
                    if not locked and not self._alone:
                        # The lock's holder is stopped: others may write now too, and nothing can be taken back.
                        line, size = b"\n" + line, -1
                    elif size != self._end and self._may_be_torn(fd, size):
                        line = b"\n" + line
                    self._end = -1
                    written = 0
                    try:
                        written = os.write(fd, line)
                        while written < len(line):  # a short write: the next one says why
                            written += self._write_more(fd, line[written:])
                        if durable:
                            os.fdatasync(fd)
                    except OSError:
                        if self._may_be_read(fd, line, size, written):
                            self._n += 1  # nobody was promised it, but its number is used
                        raise
                    if size >= 0:
                        self._end = size + written
                    return
            finally:
                if locked:
                    try:
                        fcntl.flock(fd, fcntl.LOCK_UN)
                    except OSError:
                        self.close()  # which gives the lock back too; what was written is written
            self.close()  # it was replaced or removed: never write into a file that nobody can see

    @staticmethod
    def _may_be_torn(fd: int, size: int) -> bool:
        """Whether a file of `size` bytes ends without a newline: what a killed writer left, to be closed by one."""
        return size > 0 and os.pread(fd, 1, size - 1) != b"\n"

    @staticmethod
    def _write_more(fd: int, rest: bytes) -> int:
        if more := os.write(fd, rest):
            return more
        raise OSError(errno.ENOSPC, "No space left on device")

    @staticmethod
    def _may_be_read(fd: int, line: bytes, size: int, written: int) -> bool:
        """Cut off what a failed append left, unless somebody who did not wait for the lock wrote behind it.

        `size` is what the file was before, -1 without the lock. True where the line stays whole, or that can't be told.
        """
        if size < 0:
            return written >= len(line) - 1
        try:
            left = os.pread(fd, len(line) + 1, size)
            if line.startswith(left):
                os.ftruncate(fd, size)
                return False
            return left.startswith(line)
        except OSError:
            return True

    def _wait_for_lock(self, fd: int) -> bool:
        """Take the lock that another has; False where it is kept past the deadline."""
        if self._kept_from_us:
            return False
        deadline = time.monotonic() + self._lock_deadline
        while time.monotonic() <= deadline:
            time.sleep(0.001)
            try:
                fcntl.flock(fd, _TRY_LOCK)
                return True
            except BlockingIOError:
                pass
        self._kept_from_us = True
        return False

    def _go_alone(self) -> None:
        """No locks here (some network file systems): go on in a file of this writer's own, which needs none."""
        self.close()
        self._alone = True
        self._path = os.path.join(self.folder, f"{self._stem}.{self.writer}.jsonl")

    def _open(self) -> int:
        if self._fd is None:
            try:
                self._fd = os.open(self._path, _OPEN)
            except FileNotFoundError:
                self._fd = os.open(self._path, _OPEN | os.O_CREAT, 0o644)
                with contextlib.suppress(OSError):  # so that a power cut keeps its name; not every file system can
                    sync_folder(self.folder)
            status = os.fstat(self._fd)
            self._identity = status.st_ino, status.st_dev
            self._look_at = float("-inf")
        return self._fd

    def _is_there(self) -> bool:
        """Whether our path still leads to the file that is open."""
        try:
            there = os.stat(self._path)
        except FileNotFoundError:
            return False
        self._look_at = time.monotonic() + LOOK_SECONDS
        return (there.st_ino, there.st_dev) == self._identity
