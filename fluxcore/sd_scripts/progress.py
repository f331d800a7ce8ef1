"""What sd-scripts prints, read: its progress bars, and the lines that tell what it is at. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ENDS = re.compile(rb"[\r\n]+")
_BAR = re.compile(r"(?:(?P<label>[^|%]*?):)?\s*\d+%\|[^|]*\|\s*(?P<done>\d+)/(?P<total>\d+) \[(?P<rest>.*)\]")
_LOSS = re.compile(r"avr_loss=(?P<loss>[^,\]\s]+)")
_PHASES = (
    ("import network module", "load"),
    ("caching latents", "cache"),
    ("caching text encoder outputs", "cache"),
    ("generating sample images", "sample"),
    ("saving checkpoint", "save"),
    ("saving state", "save"),
    ("saving last state", "save"),
)
MOST_PENDING = 64 * 1024


@dataclass(frozen=True)
class Bar:
    """A progress bar as last drawn. `label` is "steps" for the training's; `loss` is what its postfix says."""

    label: str
    done: int
    total: int
    loss: float | None = None


@dataclass(frozen=True)
class Phase:
    """A line that tells which phase (of the contract's) begins."""

    name: str


class Reader:
    """Bytes of a log in, what they say out. A bar redraws its line behind a carriage return."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, data: bytes) -> list[Bar | Phase]:
        """What `data` adds. A bar counts as soon as it is drawn whole, though its line goes on."""
        *lines, pending = _ENDS.split(self._pending + data)
        self._pending = pending[-MOST_PENDING:]
        found = [read_line(line.decode("utf-8", "replace")) for line in lines]
        drawn = read_line(pending.decode("utf-8", "replace"))
        return [item for item in found if item] + ([drawn] if isinstance(drawn, Bar) else [])


def read_line(line: str) -> Bar | Phase | None:
    """One line, or one drawing of a bar; None where it tells nothing."""
    bar = _BAR.search(line)
    if bar:
        return Bar((bar["label"] or "").strip(), int(bar["done"]), int(bar["total"]), _loss(bar["rest"]))
    lowered = line.lower()
    return next((Phase(name) for text, name in _PHASES if text in lowered), None)


def _loss(postfix: str) -> float | None:
    found = _LOSS.search(postfix)
    try:
        return float(found["loss"]) if found else None
    except ValueError:
        return None
