"""Which checkpoint a resume must take, found without the product's own check: by the bytes that a stub's state has."""

from __future__ import annotations

import re
from pathlib import Path

from fluxcore.runs import RunState
from tests.stub_trainer import state_files


def maker(state: Path) -> tuple[int, int] | None:
    """(attempt, step) of a stub's state folder where it is whole to the byte; else None."""
    try:
        match = re.match(rb"optimizer attempt (\d+) step (\d+) ", (state / "optimizer.bin").read_bytes())
        if match is None:
            return None
        attempt, step = int(match[1]), int(match[2])
        whole = all((state / name).read_bytes() == data for name, data in state_files(step, 1, attempt).items())
    except OSError:
        return None
    return (attempt, step) if whole else None


def newest_whole(folder: Path, state: RunState) -> str | None:
    """The whole state with the highest step in the lineage of the newest attempt; None where there is none."""
    made = {path.name: found for path in folder.glob("*-state") if (found := maker(path))}
    resumed_from = {attempt.number: attempt.resume_from for attempt in state.attempts}
    best: tuple[int, str] | None = None
    attempt, limit = (state.attempt.number if state.attempt else 0), float("inf")
    while attempt:
        for name, (by, step) in made.items():
            if by == attempt and step <= limit and (best is None or step > best[0]):
                best = (step, name)
        parent = made.get(resumed_from.get(attempt) or "")
        attempt, limit = parent if parent else (0, 0)
    return best[1] if best else None
