"""The figures of each step out of TensorBoard's event files, which sd-scripts flushes after every step.

A record is its length, a checksum of that, the data, a checksum of those; the data are a protobuf `Event` of which a
few fields matter here. TensorBoard's own reader would bring twenty packages into FluxGym's environment for that.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PATTERN = "events.out.tfevents.*"
MOST_RECORD = 1 << 24


@dataclass(frozen=True)
class Step:
    """A finished step as sd-scripts counts it, in this attempt; `wall_time` in epoch seconds."""

    step: int
    loss: float
    lr: float | None
    wall_time: float


class StepFile:
    """The event file below a logging folder, read as it grows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path: Path | None = None
        self._offset = 0
        self._step: Step | None = None

    @property
    def exists(self) -> bool:
        """Whether sd-scripts write one: not where its environment lacks tensorboard."""
        if self._path is None:
            self._path = min(self._folder.rglob(PATTERN), default=None)
        return self._path is not None

    def read_new(self) -> list[Step]:
        """The steps that were finished since, in order. A step counts once its learning rate stands behind its loss."""
        steps = []
        for wall_time, step, tag, value in self._scalars():
            if tag == "loss/current":
                self._step = Step(step, value, None, wall_time)
            elif tag.startswith("lr/") and self._step is not None and self._step.step == step:
                steps.append(Step(step, self._step.loss, value, self._step.wall_time))
                self._step = None
        return steps

    def _scalars(self) -> Iterator[tuple[float, int, str, float]]:
        if not self.exists or self._path is None:
            return
        with open(self._path, "rb") as file:
            file.seek(self._offset)
            data = file.read()
        at = 0
        while at + 12 <= len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            end = at + 12 + length + 4
            if length > MOST_RECORD or end > len(data):
                break  # still being written (or no event file at all)
            yield from read_event(data[at + 12 : at + 12 + length])
            at = end
        self._offset += at


def read_event(data: bytes) -> Iterator[tuple[float, int, str, float]]:
    """`(wall time, step, tag, value)` of each scalar in an encoded `Event`."""
    wall_time, step, summaries = 0.0, 0, []
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes) and len(value) == 8:
            (wall_time,) = struct.unpack("<d", value)
        elif number == 2 and isinstance(value, int):
            step = value
        elif number == 5 and isinstance(value, bytes):
            summaries.append(value)
    for summary in summaries:
        for number, value in _fields(summary):
            if number == 1 and isinstance(value, bytes):
                parts = dict(_fields(value))
                tag, scalar = parts.get(1), parts.get(2)
                if isinstance(tag, bytes) and isinstance(scalar, bytes) and len(scalar) == 4:
                    # 32-bit floats: 0.0008 is written for 0.0008000000379979611
                    value32 = float(f"{struct.unpack('<f', scalar)[0]:.7g}")
                    yield wall_time, step, tag.decode("utf-8", "replace"), value32


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protobuf message: numbers as int, all else as bytes. Ends at what it can't read."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if kind == 2:
            length, at = _varint(data, at)
        else:
            length = {1: 8, 5: 4}.get(kind, len(data))
        if at + length > len(data):
            return
        yield key >> 3, data[at : at + length]
        at += length


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
    return value, len(data)
