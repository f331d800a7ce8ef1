"""The disk guard: no start where it can't fit, a warning in time, and a stop while the last state can still be saved.

The stop is a `stop.requested` in the run's log, so that a runner killed in the midst of it is followed by one that goes
on with it, and nothing resumes the run before a person does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, Any

from fluxcore.config import parse_saved
from fluxcore.dataset import list_pictures
from fluxcore.errors import UserError
from fluxcore.models.lora_size import caption_values, lora_size
from fluxcore.models.registry import find_model
from fluxcore.runs import list_checkpoints
from fluxcore.runs.disk import (
    MARGIN,
    DiskNeeds,
    disk_verdict,
    estimate_disk,
    needed_bytes,
    start_problem,
)
from fluxcore.runs.files import parse_checkpoint_name
from fluxcore.units import gib

from .run import Run
from .watch import LONGEST_GAP_SECONDS

if TYPE_CHECKING:
    from .loop import Runner

GIB = 2**30
LOOK_SECONDS = 5.0
TREND_LOOKS = 12
SAVE_PHASES = frozenset({"save", "export"})


class DiskGuard:
    """What is remembered between two looks: how much was free at the last ones."""

    def __init__(self) -> None:
        self._readings: deque[tuple[float, int]] = deque(maxlen=TREND_LOOKS + 1)

    def look(self, runner: Runner, running: Sequence[Run]) -> None:
        """Every few seconds: warn of a disk that gets full, stop one run where the next checkpoints won't fit.

        One at a time, the youngest first: once it is gone the others may have room enough. What is in the midst of a
        save is not judged: half of its checkpoint is on the disk already; until it is done no warning is taken back.
        """
        now = runner.clock.monotonic()
        if not running or (self._readings and now - self._readings[-1][0] < LOOK_SECONDS):
            return
        free_gib = runner.host.disk_free_gib(runner.outputs)
        if free_gib is None:
            return
        free = int(free_gib * GIB)
        if self._readings and now - self._readings[-1][0] > LONGEST_GAP_SECONDS:
            self._readings.clear()
        self._readings.append((now, free))
        judged = [run for run in running if run.state.phase not in SAVE_PHASES]
        nobody_saves = len(judged) == len(running)
        next_saves = sum(next_save(run) for run in judged)
        falling = falling_by(self._readings)
        verdict = disk_verdict(free, falling, next_saves)
        data = {"free_gib": round(free / GIB, 3), "needed_gib": round(needed_bytes(next_saves) / GIB, 3)}
        for run in judged:
            if verdict != "ok":
                _warn(run, data)
            elif nobody_saves and run.state.disk_low and disk_verdict(int(free / MARGIN), falling, next_saves) == "ok":
                _append(run, "disk.cleared", data)
        if verdict == "stop" and not any(run.state.stop_requested for run in running):
            _stop_youngest(judged, data)


def falling_by(readings: Sequence[tuple[float, int]]) -> float:
    """Bytes a second by which the disk fills, lately and steadily, out of (seconds, free bytes); 0 where it doesn't.

    The median between two looks: one large file, or one checkpoint, is no trend.
    """
    if len(readings) <= TREND_LOOKS // 2:
        return 0.0
    rates = [(before - after) / (now - then) for (then, before), (now, after) in pairwise(readings)]
    return max(0.0, median(rates))


def check_start(runner: Runner, run: Run, config: dict[str, Any], from_step: int | None) -> str:
    """Why the run can't be started on this disk, or "". Where it is tight, monitor.log says so."""
    free = runner.host.disk_free_gib(run.folder.path)
    if free is None:
        return ""
    may_start, sentence = start_problem(run.name, needs(run, config, from_step or 0), int(free * GIB))
    if may_start and sentence:
        run.note(sentence, "WARNING")
    return "" if may_start else sentence


def needs(run: Run, config: dict[str, Any], from_step: int = 0) -> DiskNeeds:
    """What a training of `config` will write, as far as it can be told; the trainer itself says what is wrong in it."""
    try:
        parsed = parse_saved(config)
        model = find_model(parsed.base_model)
        size = lora_size(model, parsed.trainer)
        pictures = len(list_pictures(run.folder.dataset))
        found = list_checkpoints(run.folder) if from_step else []
    except (UserError, OSError):
        return DiskNeeds()
    kinds = [
        parse_checkpoint_name(run.name, one.name)
        for one in found
        if one.kind == "state" and one.complete and one.step is not None and one.step <= from_step
    ]
    by_epoch = sum(1 for kind in kinds if kind and kind[1] is not None)
    by_step = sum(1 for kind in kinds if kind and kind[2] is not None)
    return estimate_disk(
        parsed,
        pictures,
        size,
        from_step=from_step,
        epoch_states=by_epoch,
        step_states=by_step,
        caption_values=caption_values(model),
    )


def next_save(run: Run) -> int:
    """Bytes of the run's next checkpoint: as large as this attempt's last one, before the first as estimated."""
    attempt = run.state.attempt
    assert attempt is not None
    if run.needs is None or run.needs[0] != attempt.number:
        run.needs = attempt.number, needs(run, run.state.served_config(attempt))
    saves = [saved for saved in run.state.checkpoints.values() if saved.bytes]
    before = {saved.kind: saved.bytes for saved in saves}
    now = {saved.kind: saved.bytes for saved in saves if saved.attempt == attempt.number}
    expected = run.needs[1]
    state = now.get("state", before.get("state") if expected.state is None else expected.state)
    weights = now.get("weights", before.get("weights") if expected.weights is None else expected.weights)
    return DiskNeeds(state, weights).next_save


def _warn(run: Run, data: dict[str, Any]) -> None:
    if run.state.disk_low is None and not run.state.stop_requested and _append(run, "disk.low", data):
        run.note(
            f"the disk gets full: {gib(data['free_gib'] * GIB)} free, about {gib(data['needed_gib'] * GIB)} are needed "
            "for the next checkpoint",
            "WARNING",
        )


def _stop_youngest(judged: Sequence[Run], data: dict[str, Any]) -> None:
    """Monitoring switched off means that a person wants no interference: then there is only the warning."""
    stoppable = [run for run in judged if run.state.monitoring and run.kill is None and run.state.live_attempt]
    if not stoppable:
        return
    run = max(stoppable, key=lambda run: run.state.attempts[-1].started)
    if _append(run, "stop.requested", {"reason": "disk_low"}):
        run.note(
            f"the disk is nearly full ({gib(data['free_gib'] * GIB)} free): stopping before it is",
            "ERROR",
        )


def _append(run: Run, type: str, data: dict[str, Any]) -> bool:
    return run.append(type, data, attempt=run.state.last_attempt)
