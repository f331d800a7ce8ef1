"""What there is to give to waiting runs, and the giving: the loop's side of the line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from . import spawning
from .clock import Clock
from .waiting import Machine, Turn, line_up

if TYPE_CHECKING:
    from .loop import Runner

GPU_PATIENCE_SECONDS = 90.0
"""How long a run that needs GPUs waits on a machine that shows none: after a restart the driver may come late."""


class Queue:
    """The line of one outputs folder, with what its machine has shown so far."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._no_gpu_since: float | None = None
        self._seen: dict[int, str] = {}
        """Every GPU that was ever there."""

    def turns(self, runner: Runner) -> list[Turn]:
        """What each queued run gets now."""
        found = runner.gpus.by_index()
        gpus = found or {}
        self._seen |= gpus
        may_come, answers = self._gpus_may_come(gpus), found is not None
        machine = Machine(gpus, runner.cpu_slots, may_come, answers, seen=self._seen)
        now = self._clock.now().timestamp()
        runs, paused = list(runner.runs.values()), runner.installation.paused
        return line_up(runs, machine, now, paused=paused, orphans=runner.orphans)

    def give(self, runner: Runner, turn: Turn) -> None:
        """Start the run, refuse its request, or tell it its place where that changed."""
        run = turn.run
        request = run.state.requests[0].id
        if turn.refusal:
            spawning.refuse(run, request, turn.refusal)
        elif turn.gpus is not None:
            # With a GPU lost, the others have to be named to the trainer all the more.
            spawning.begin(runner, run, turn.gpus, len(self._seen))
        elif (run.state.queue_position, run.state.waiting_for) != (turn.position, turn.waiting_for):
            data = {"request": request, "position": turn.position, "waiting_for": turn.waiting_for}
            run.append("run.queued", data)

    def _gpus_may_come(self, gpus: Mapping[int, str]) -> bool:
        if gpus:
            self._no_gpu_since = None
            return False
        now = self._clock.monotonic()
        if self._no_gpu_since is None:
            self._no_gpu_since = now
        return now - self._no_gpu_since < GPU_PATIENCE_SECONDS
