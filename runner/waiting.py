"""Who runs next: one run at a time on a GPU, or in a slot of a machine without; in the order of the requests.

A run that names its GPUs waits until exactly these are free. What an earlier run waits for is kept for it, so that one
that wants two is not starved by many that want one; what it does not wait for passes to the runs behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fluxcore.config.gpu_ids import NoSuchGpu, choose_gpus, parse_gpu_ids
from fluxcore.runs.auto_resume import PAUSE, not_before
from fluxcore.runs.outlook import PAUSED

from .orphans import Orphan
from .run import Run

TO_RETURN = "to work again (see what nvidia-smi says; restart the machine, or choose another with gpu_ids)"
NO_ANSWER = "a GPU that works (see what nvidia-smi says; restart the machine if it says nothing)"


@dataclass(frozen=True)
class Turn:
    """A waiting run's place: `gpus` to start on now, or None with `position` (from 1) and what it waits for.

    `refusal`: a sentence, where what it asks for is not there.
    """

    run: Run
    gpus: list[str] | None
    position: int = 0
    waiting_for: str = ""
    refusal: str = ""


@dataclass(frozen=True)
class Machine:
    """What there is to give: GPUs (uuid by nvidia-smi's number), or slots where there are none.

    `gpus_may_come`: there is no GPU to be seen, but the driver may still be starting. `answers` off: there are GPUs,
    but their driver gives no answer, or none of them works; that makes it no machine without. `seen`: all that there
    ever were, those that are missing now included.
    """

    gpus: Mapping[int, str]
    cpu_slots: int
    gpus_may_come: bool = False
    answers: bool = True
    seen: Mapping[int, str] = field(default_factory=dict)


def line_up(
    runs: list[Run], machine: Machine, now: float, *, paused: bool = False, orphans: Sequence[Orphan] = ()
) -> list[Turn]:
    """What each queued run gets. `now`: epoch seconds; `paused`: nothing starts, but places and refusals are told.

    `orphans`: attempts of runs that are gone, which hold GPUs and slots as others do.
    """
    holders: list[Run | Orphan] = [*(run for run in runs if run.holds_machine), *orphans]
    line = _Line(machine, holders)
    names_in_use = {(one.former_name or one.name): one.name for one in holders}
    turns: list[Turn] = []
    position = 0
    waiting = sorted((run for run in runs if is_waiting(run)), key=place_in_line)
    named = {run.name: wanted_names(run) for run in waiting}
    line.spoken_for = {name for names in named.values() for name in names}
    for run in waiting:
        if run.name in names_in_use:  # a run's processes are told by its name; nothing is kept for it meanwhile
            position += 1
            started = f"the trainer of {names_in_use[run.name]}, started under this name, to end"
            turns.append(Turn(run, None, position, PAUSED if paused else started))
            continue
        try:
            gpus, reason = line.take(run, named[run.name])
        except NoSuchGpu as error:
            turns.append(Turn(run, None, refusal=str(error)))
            continue
        if paused:
            reason = PAUSED
        elif now < not_before(run.state):  # its place is kept: a run that stumbled does not go to the end of the line
            reason = reason or PAUSE
        if reason:
            position += 1
            turns.append(Turn(run, None, position, reason))
        else:
            turns.append(Turn(run, gpus))
    return turns


class _Line:
    """What is still free while the line is walked from its head."""

    def __init__(self, machine: Machine, holders: Sequence[Run | Orphan]) -> None:
        self.machine = machine
        self.free_slots = machine.cpu_slots - len(holders)
        self.used_by = {uuid: holder.name for holder in holders for uuid in holder.gpus}
        self.kept_for: dict[str, str] = {}
        self.holders = sorted(holder.name for holder in holders)
        self.spoken_for: set[str] = set()
        """What waiting runs name: whoever takes any GPU leaves these to them where it can."""

    def take(self, run: Run, names: list[str]) -> tuple[list[str], str]:
        """GPUs for the run and "", or what it waits for, which is kept for it. Raises NoSuchGpu."""
        gpus = self.machine.gpus
        if not self.machine.answers:
            return [], NO_ANSWER
        if not gpus and self.machine.gpus_may_come and (names or had_gpus(run)):
            return [], f"{_gpu(names)} to appear" if names else "a GPU to appear"
        if names:
            try:
                wanted = choose_gpus(names, gpus)
            except NoSuchGpu:
                choose_gpus(names, {**self.machine.seen, **gpus})
                return [], f"{_gpu(names)} {TO_RETURN}"  # nothing is kept for it: that may take for ever
            busy = [uuid for uuid in wanted if uuid in self.used_by or uuid in self.kept_for]
            reason = f"{_gpu(names)}, {self._holding(busy)}" if busy else ""
            self.kept_for |= {uuid: run.name for uuid in wanted if uuid not in self.kept_for}
            return wanted, reason
        if gpus:
            free = {i: uuid for i, uuid in gpus.items() if uuid not in self.used_by and uuid not in self.kept_for}
            if not free:
                return [], f"{'a free GPU' if len(gpus) > 1 else 'the GPU'}, {self._holding(list(gpus.values()))}"
            index = min(free, key=lambda i: (str(i) in self.spoken_for or free[i] in self.spoken_for, i))
            self.kept_for[free[index]] = run.name
            return [free[index]], ""
        self.free_slots -= 1
        if self.free_slots >= 0:
            return [], ""
        return [], f"the machine, used by {', '.join(self.holders) or 'another run'}"

    def _holding(self, gpus: list[str]) -> str:
        users = sorted({self.used_by[uuid] for uuid in gpus if uuid in self.used_by})
        ahead = sorted({self.kept_for[uuid] for uuid in gpus if uuid in self.kept_for and uuid not in self.used_by})
        parts = [f"used by {', '.join(users)}"] if users else []
        return "; ".join([*parts, f"{', '.join(ahead)} comes first"] if ahead else parts)


def _gpu(names: list[str]) -> str:
    """`GPU 0, 1`, or the uuids, which say themselves what they are."""
    return ("" if all(name.upper().startswith(("GPU-", "MIG-")) for name in names) else "GPU ") + ", ".join(names)


def is_waiting(run: Run) -> bool:
    """Whether the run is queued and nothing of it runs or is being ended."""
    return run.state.state == "queued" and bool(run.state.requests) and not run.holds_machine


def wanted_names(run: Run) -> list[str]:
    """The GPUs that the run's oldest request names; [] = any one."""
    config = run.state.configs.get(run.state.requests[0].config, run.state.config)
    try:
        return parse_gpu_ids(str(config.get("gpu_ids") or ""))
    except ValueError:  # no form of ours writes that; `choose_gpus` says that there is no such GPU
        return [str(config.get("gpu_ids"))]


def had_gpus(run: Run) -> bool:
    """Whether the newest attempt had GPUs: then it would be wrong to go on without, just because a driver is slow."""
    return run.state.attempt is not None and bool(run.state.attempt.gpus)


def place_in_line(run: Run) -> tuple[str, str]:
    """By what a queue is sorted: when a person asked. An automatic attempt keeps the place of the one that it follows.

    So a run that a restart of the machine interrupted goes on before those that had waited behind it.
    """
    request = run.state.requests[0]
    since = request.ts
    if request.is_automatic:
        for attempt in reversed(run.state.attempts):
            since = attempt.asked
            if not attempt.is_automatic:
                break
    return since, run.name
