"""Who runs next: one run at a time on a GPU, or in a slot of a machine without; in the order of the requests."""

from __future__ import annotations

from dataclasses import dataclass

from fluxcore.log import parse_ts

from .run import Run

BACKOFF_SECONDS = 5.0


@dataclass(frozen=True)
class Turn:
    """A waiting run's place: `gpus` to start on now, or None with `position` (from 1) and what it waits for."""

    run: Run
    gpus: list[str] | None
    position: int = 0
    waiting_for: str = ""


def line_up(runs: list[Run], gpus: list[str], cpu_slots: int, now: float) -> list[Turn]:
    """What each queued run gets. `gpus`: uuids of all visible ones; `now`: epoch seconds."""
    holders = [run for run in runs if run.holds_machine]
    taken = {uuid for run in holders for uuid in run.gpus}
    free_gpus = [uuid for uuid in gpus if uuid not in taken]
    free_slots = cpu_slots - len(holders)
    turns: list[Turn] = []
    position = 0
    for run in sorted((run for run in runs if is_waiting(run)), key=lambda run: (run.state.requests[0].ts, run.name)):
        if now < not_before(run):
            position += 1
            turns.append(Turn(run, None, position, "a pause before the next attempt"))
        elif gpus and free_gpus:
            turns.append(Turn(run, [free_gpus.pop(0)]))
        elif not gpus and free_slots > 0:
            free_slots -= 1
            turns.append(Turn(run, []))
        else:
            position += 1
            names = ", ".join(sorted(holder.name for holder in holders)) or "another run"
            what = ("a free GPU" if len(gpus) > 1 else "the GPU") if gpus else "the machine"
            turns.append(Turn(run, None, position, f"{what} (used by {names})"))
    return turns


def is_waiting(run: Run) -> bool:
    """Whether the run is queued and nothing of it runs or is being ended."""
    return run.state.state == "queued" and bool(run.state.requests) and not run.holds_machine


def not_before(run: Run) -> float:
    """Epoch seconds before which the run's request is not served: automatic ones wait, longer each time."""
    request = run.state.requests[0]
    if not request.is_automatic:
        return 0.0
    count = 0
    for attempt in reversed(run.state.attempts):
        if not attempt.is_automatic:
            break
        count += 1
    return parse_ts(request.ts).timestamp() + BACKOFF_SECONDS * 2 ** min(count, 6)
