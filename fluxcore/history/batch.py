"""Lines of several logs put together for one reading."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, cast

import pyarrow as pa
import pyarrow.compute as pc

from fluxcore.log import LogReader

BATCH_BYTES = 32 * 1024 * 1024
_READ_BYTES = 1024 * 1024
_TRAILING_COMMA = r",\s*[}\]]"
"""DuckDB's JSON reader takes it, the standard (and so `decode`) does not; it may also stand in a text."""


@dataclass
class Piece:
    """Whole lines of one run's log, in order, as a part of a batch."""

    run: str
    reader: LogReader
    start: int
    size: int = 0
    lines: int = 0
    doubtful: list[int] = field(default_factory=list)
    """Numbers of lines to be decoded one by one."""


class Batch:
    """Whole lines of several logs under a path that DuckDB can open: in memory where the system has that.

    It is made once and filled again and again: fresh memory costs more than parsing what lies in it.
    """

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self._file: IO[bytes]
        if hasattr(os, "memfd_create"):
            self._file = os.fdopen(os.memfd_create("fluxgym"), "r+b", 0)
            self.path = f"/proc/self/fd/{self._file.fileno()}"
        else:
            self._file = cast(IO[bytes], tempfile.NamedTemporaryFile())  # noqa: SIM115  closed by `close`
            self.path = self._file.name

    def fill(self, run: str, reader: LogReader) -> bool:
        """Take what is new in a log, as much as there is room for; False where more is left for the next batch."""
        piece = Piece(run, reader, self.size)
        self.pieces.append(piece)
        while self.size < BATCH_BYTES:
            lines = reader.read_lines(_READ_BYTES)
            os.pwrite(self._file.fileno(), lines, self.size)
            piece.doubtful += [piece.lines + number for number in _with_trailing_comma(lines)]
            piece.size += len(lines)
            piece.lines += lines.count(b"\n")
            if not lines or not reader.behind:
                return True
        return False

    @property
    def size(self) -> int:
        """Bytes of all pieces."""
        return self.pieces[-1].start + self.pieces[-1].size if self.pieces else 0

    @property
    def is_full(self) -> bool:
        """Whether it is time to load it."""
        return self.size >= BATCH_BYTES

    def drop_last(self) -> None:
        """Leave out the piece that was taken last: its log can't be read on."""
        self.pieces.pop()

    def seal(self) -> None:
        """Cut off what an earlier, larger filling left."""
        os.ftruncate(self._file.fileno(), self.size)

    def lines(self, piece: Piece) -> list[bytes]:
        """A piece's lines, without their ends."""
        return os.pread(self._file.fileno(), piece.size, piece.start).split(b"\n")[:-1]

    def clear(self) -> None:
        """Make room for the next filling."""
        self.pieces = []

    def close(self) -> None:
        """Give the memory back."""
        self._file.close()


def _with_trailing_comma(lines: bytes) -> Iterator[int]:
    found = pc.match_substring_regex(pa.array([lines], pa.large_binary()), pattern=_TRAILING_COMMA)
    if found[0].as_py():  # RE2 looks ten times as fast as `re` does, but can't say where
        for match in re.finditer(_TRAILING_COMMA.encode(), lines):
            yield lines.count(b"\n", 0, match.start())
