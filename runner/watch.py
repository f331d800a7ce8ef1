"""What the runner remembers of a live attempt between two turns: progress, longest step, idle GPUs, signs of life."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from fluxcore.log import Event, number
from fluxcore.log.event import whole_number

from .executor import Activity
from .stalls import Window

LONGEST_GAP_SECONDS = 10.0
"""A longer pause between two looks was a suspended machine or a stopped runner: nobody watched, it doesn't count."""

PAUSE_SECONDS = 1.0
"""What counts of such a pause: a machine that is frozen every other second must not add up to a stall."""

OOM_SECONDS = 3.0
"""How long before an exit was seen the kernel may have killed the process for it to be that exit's cause, at least."""

LIFE_SECONDS = 10.0
LIFE_CPU_SHARE = 0.02
LIFE_BYTES = 1 << 20
"""A sign of life: in ten seconds, 2% of a core's time, or 1 MiB read, written or become resident. Threads that only
wait and beat use about 1%."""


@dataclass
class GpuTrouble:
    """What befell one GPU during an attempt. `problem` is the newest sample's; `ecc`: errors that came meanwhile."""

    index: int
    name: str = ""
    problem: str | None = None
    xids: list[int] = field(default_factory=list)
    ecc: int = 0


@dataclass
class Watch:
    """One attempt, watched. `clock` advances with the runner's turns and stands still while nobody watches."""

    resume_step: int = 0
    clock: float = 0.0
    phase: str = ""
    progress_at: float = 0.0
    steps: int = 0
    last_step: int = 0
    longest_step: float = 0.0
    suspected: str | None = None
    sampled_at: float = float("-inf")
    gpus: dict[str, GpuTrouble] = field(default_factory=dict)
    """By uuid, as the attempt's samples tell: also those of an earlier runner."""
    oom_kills: int | None = None
    """Processes killed for want of memory up to a moment ago: the last samples may have seen the trainer's end."""
    memory_available_gib: float | None = None
    _looked: float | None = None
    _phase_done: float = 0.0
    _life_at: float = 0.0
    _life_mark: tuple[float, Activity] | None = None
    _wait: float = 0.0
    """The longest time without progress in this round of the phase."""
    _waits: dict[str, float] = field(default_factory=dict)
    """The same for each phase that the attempt has been through."""
    _idle_since: float | None = None
    _read_at: float = 0.0
    _activity: Activity | None = None
    _recent: list[dict[str, Any]] = field(default_factory=list)
    _xids_seen: dict[str, int] = field(default_factory=dict)
    _ecc_first: dict[str, int] = field(default_factory=dict)
    _oom_counts: deque[tuple[datetime, int | None]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.last_step = self.resume_step

    def look(self, now: float) -> None:
        """Advance the clock to `now` (the runner's monotonic seconds)."""
        if self._looked is not None:
            gap = max(0.0, now - self._looked)
            self.clock += gap if gap <= LONGEST_GAP_SECONDS else PAUSE_SECONDS
        self._looked = now

    def event(self, event: Event) -> None:
        """Note an event of the attempt."""
        data = event.data
        if event.type == "phase.started":
            self._progress()
            self._waits[self.phase] = max(self._wait, self._waits.get(self.phase, 0.0))
            self.phase, self._phase_done, self._wait = str(data.get("phase") or ""), 0.0, 0.0
        elif event.type == "phase.progress":
            done = number(data.get("done")) or 0.0
            if done > self._phase_done:
                self._phase_done = done
                self._progress()
        elif event.type == "train.step":
            step = number(data.get("step")) or 0.0
            if step > self.last_step:
                self.last_step, self.steps = int(step), self.steps + 1
                self.longest_step = max(self.longest_step, number(data.get("step_seconds")) or 0.0)
                self._progress()
        elif event.type in ("sample.saved", "checkpoint.saved"):
            self._progress()
        elif event.type == "gpu.sampled":
            self._gpu(data)
        elif event.type == "host.sampled":
            self.memory_available_gib = number(data.get("memory_available_gib"))
            self._count_oom(event.time, whole_number(data.get("oom_kills")))

    def _count_oom(self, at: datetime, count: int | None) -> None:
        counts = self._oom_counts
        counts.append((at, count))
        while len(counts) > 2 and (at - counts[1][0]).total_seconds() >= OOM_SECONDS:
            counts.popleft()
        self.oom_kills = counts[0][1] if len(counts) > 1 else None

    def readings(self, samples: list[dict[str, Any]], period: float) -> None:
        """Note one round of GPU samples of the run's GPUs (data of `gpu.sampled`); none: nothing is known."""
        uses = [sample.get("utilization_percent") for sample in samples]
        if self.clock - self._read_at > 3 * period + 1:
            self._idle_since = None  # a hole in the readings: what happened in it is not known
        self._read_at = self.clock
        if uses and all(use == 0 for use in uses):
            if self._idle_since is None:
                self._idle_since = self.clock
        else:
            self._idle_since = None
        keys = ("uuid", "utilization_percent", "memory_used_gib", "power_watts", "problem", "xid_errors")
        self._recent = [{key: sample.get(key) for key in keys if key in sample} for sample in samples]

    def new_xids(self, uuid: str, codes: list[int] | None) -> dict[str, list[int]]:
        """`xid_errors` of a sample: those of all `codes` that came during this attempt and are in no sample yet."""
        if codes is None:
            return {}
        # What came before the first sample was another's: samples begin with the attempt.
        seen = self._xids_seen.get(uuid, len(codes))
        self._xids_seen[uuid] = len(codes)
        return {"xid_errors": codes[seen:]}

    def activity(self, activity: Activity | None) -> None:
        """Note what the process tree used so far."""
        self._activity = activity
        if activity is None:
            return
        if self._life_mark is None:
            self._life_mark = self.clock, activity
        since, before = self.clock - self._life_mark[0], self._life_mark[1]
        moved = activity.read_bytes + activity.write_bytes - before.read_bytes - before.write_bytes
        used = activity.cpu_seconds - before.cpu_seconds
        alive = (
            used >= LIFE_CPU_SHARE * max(since, LIFE_SECONDS)
            or moved >= LIFE_BYTES
            or activity.rss_bytes - before.rss_bytes >= LIFE_BYTES
        )
        if alive:
            self._life_at = self.clock
        # Less than before: counters that lose what ended with a process. The local executor's never do, but it is the
        # first of others, and the simulated runs have such.
        if alive or since >= LIFE_SECONDS or used < 0 or moved < 0:
            self._life_mark = self.clock, activity

    def window(self, stall_seconds: float, sample_seconds: float) -> Window:
        """What `judge` needs, now."""
        used = self._activity
        return Window(
            phase=self.phase,
            steps=self.steps,
            since_progress=self.clock - self.progress_at,
            longest_step=self.longest_step,
            stall_seconds=stall_seconds,
            sample_seconds=sample_seconds,
            since_life=None if used is None else self.clock - max(self.progress_at, self._life_at),
            longest_wait=self._waits.get(self.phase),
            gpu_idle_seconds=None if self._idle_since is None else self.clock - self._idle_since,
            details={
                "step": self.last_step,
                "phase_done": self._phase_done,
                "gpus": self._recent,
                "cpu_seconds": round(used.cpu_seconds, 2) if used else None,
                "read_bytes": used.read_bytes if used else None,
                "write_bytes": used.write_bytes if used else None,
                "process_stopped": used.stopped if used else None,
            },
        )

    def forgive(self) -> None:
        """Start the limits afresh (monitoring was switched on again, the trainer was adopted)."""
        self.progress_at, self.suspected, self._wait = self.clock, None, 0.0

    def _gpu(self, data: dict[str, Any]) -> None:
        uuid = str(data.get("uuid"))
        index, name = int(number(data.get("index")) or 0), str(data.get("name") or "")
        trouble = self.gpus.setdefault(uuid, GpuTrouble(index, name))
        trouble.name = name or trouble.name
        trouble.problem = str(data["problem"]) if data.get("problem") else None
        xids = data.get("xid_errors")
        trouble.xids += [code for code in xids if isinstance(code, int)] if isinstance(xids, list) else []
        ecc = number(data.get("ecc_uncorrected"))
        if ecc is not None:
            trouble.ecc = max(0, int(ecc) - self._ecc_first.setdefault(uuid, int(ecc)))

    def _progress(self) -> None:
        self._wait = max(self._wait, self.clock - self.progress_at)
        self.progress_at = self.clock
