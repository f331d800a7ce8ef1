"""The end of a text file of any length, read from its end."""

from __future__ import annotations

import os
from pathlib import Path

TAIL_BYTES = 64 * 1024


def last_lines(path: Path, count: int, *, offset: int = 0, most_bytes: int = TAIL_BYTES) -> list[str]:
    """The last `count` lines that lie behind byte `offset`, within the last `most_bytes`; none where there is no file.

    A progress bar rewrites its line with carriage returns: only what it said last stays.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(min(offset, size), size - most_bytes))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    lines = text.replace("\r\n", "\n").rstrip("\r\n").split("\n")
    return [line.rpartition("\r")[2].rstrip() for line in lines][-count:] if text and count > 0 else []


def last_line(path: Path, most_characters: int = 300) -> str:
    """The last line that says something, for a sentence of an error; "" where there is none."""
    return next((line for line in reversed(last_lines(path, 100)) if line), "")[:most_characters]
