"""What a picture looks like, as far as a person should know before training on it: its size, and which are near twins.

A look decodes the whole picture (a tenth of a second for 4 MB), so it is kept for as long as the file stays the same.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from .buckets import Size
from .layout import picture_size
from .pictures import PictureError, decoded

HASH_SIDE = 8
TWIN_BITS = 6
"""Two pictures are near twins where their fingerprints differ in at most so many of 2 × HASH_SIDE² bits and their mean
colours by at most TWIN_COLOUR (of 255, each channel): rescaled, recompressed or slightly cropped copies do."""
TWIN_COLOUR = 10
CLEARLY = 3
"""Of 255: where two cells are as good as equal (a plain background) noise must not decide."""
KEPT = 2000
DRAFT = 128
"""Pixels of a side that suffice: a JPEG is decoded at an eighth, in a tenth of the time."""


@dataclass(frozen=True)
class Look:
    """Width and height as people see them; or why the file can't be read. `fingerprint` and `colour` tell twins."""

    size: Size = (0, 0)
    problem: str = ""
    fingerprint: int = 0
    colour: tuple[int, int, int] = (0, 0, 0)


class Looks:
    """Looks at pictures, the newest KEPT of them in memory. Safe to share between threads."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, int, int], Look] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, paths: Iterable[Path], seconds: float) -> dict[Path, Look]:
        """The looks of `paths`, as many of those not known yet as `seconds` allow (at least one)."""
        found: dict[Path, Look] = {}
        deadline, fresh = time.monotonic() + seconds, 0
        for path in paths:
            key = _key(path)
            if key is None:
                continue
            with self._lock:
                look = self._kept.get(key)
            if look is None and (fresh == 0 or time.monotonic() < deadline):
                look, fresh = look_at(path), fresh + 1
                self._keep(key, look)
            if look is not None:
                found[path] = look
        return found

    def _keep(self, key: tuple[str, int, int], look: Look) -> None:
        with self._lock:
            self._kept[key] = look
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)


def _key(path: Path) -> tuple[str, int, int] | None:
    try:
        about = path.stat()
    except OSError:
        return None
    return str(path), about.st_mtime_ns, about.st_size


def look_at(path: Path) -> Look:
    """Decode a picture and describe it."""
    try:
        size = picture_size(path)
        with decoded(path, draft=DRAFT) as image:
            seen = ImageOps.exif_transpose(image)
            return Look(size, "", _fingerprint(seen), _colour(seen))
    except PictureError as error:
        return Look(problem=str(error))


def _fingerprint(image: Image.Image) -> int:
    """A difference hash (is each cell brighter than the next one?) along both axes, 2 × HASH_SIDE² bits."""
    grey = image.convert("L")
    wide = grey.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.BOX, reducing_gap=2.0).tobytes()
    high = grey.resize((HASH_SIDE, HASH_SIDE + 1), Image.Resampling.BOX, reducing_gap=2.0).tobytes()
    bits = 0
    for row in range(HASH_SIDE):
        for column in range(HASH_SIDE):
            at = row * (HASH_SIDE + 1) + column
            bits = bits << 1 | (wide[at] > wide[at + 1] + CLEARLY)
    for at in range(HASH_SIDE * HASH_SIDE):
        bits = bits << 1 | (high[at] > high[at + HASH_SIDE] + CLEARLY)
    return bits


def _colour(image: Image.Image) -> tuple[int, int, int]:
    red, green, blue = image.convert("RGB").resize((1, 1), Image.Resampling.BOX, reducing_gap=2.0).tobytes()
    return red, green, blue


def near_twins(looks: Mapping[Path, Look]) -> dict[Path, Path]:
    """Each picture that is nearly the same as an earlier one, with that one."""
    firsts: list[tuple[Path, Look]] = []
    twins: dict[Path, Path] = {}
    for path, look in looks.items():
        if look.problem:
            continue
        for other, seen in firsts:
            apart = (look.fingerprint ^ seen.fingerprint).bit_count()
            near = all(abs(a - b) <= TWIN_COLOUR for a, b in zip(look.colour, seen.colour, strict=True))
            if apart <= TWIN_BITS and near:
                twins[path] = other
                break
        else:
            firsts.append((path, look))
    return twins
