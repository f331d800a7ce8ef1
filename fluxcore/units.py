"""Numbers in plain words, the same in the app and on the command line. What is not known says so."""

from __future__ import annotations

import math

UNKNOWN = "not known"


def duration(seconds: float | None, *, unknown: str = UNKNOWN) -> str:
    """`42 s`, `7 min 05 s`, `18 min`, `2 h 05 min`, `3 d 4 h`."""
    if seconds is None or not math.isfinite(seconds):
        return unknown
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" if whole >= 600 or not whole % 60 else f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def pace(seconds_per_step: float | None) -> str:
    """`2.4 it/s`, or `3.1 s/it` where a step takes longer than a second."""
    if not seconds_per_step:
        return UNKNOWN
    return f"{1 / seconds_per_step:.3g} it/s" if seconds_per_step < 1 else f"{seconds_per_step:.3g} s/it"


def loss(value: float | None) -> str:
    """A loss with three significant digits; a diverged one says `nan`."""
    if value is None:
        return "–"
    return f"{value:.3g}" if math.isfinite(value) else str(value)


def size(count: float) -> str:
    """Bytes: `812 B`, `38.2 MB`, `1.5 GB`."""
    if count < 1000:
        return f"{int(count)} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.5:
            return f"{count:.3g} {unit}"
    return f"{count / 1000:.3g} TB"


def plural(count: int, what: str) -> str:
    """`1 picture`, `1,200 pictures`."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def gib(count: float) -> str:
    """Bytes as disks and GPUs are spoken of here: `72 MiB`, `0.25 GiB`, `1.3 GiB`, `41 GiB`."""
    value = count / 2**30
    if value < 0.1:
        return f"{count / 2**20:.0f} MiB"
    return f"{value:.0f} GiB" if value >= 10 else f"{value:.1f} GiB" if value >= 1 else f"{value:.2f} GiB"
