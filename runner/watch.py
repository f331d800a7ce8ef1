"""What the runner remembers of a live attempt between two turns: progress, the longest step, idle GPUs, bytes moved."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fluxcore.log import Event, number
from fluxcore.log.event import whole_number

from .executor import Activity
from .stalls import IO_PHASES, IO_PROGRESS_BYTES, Window

LONGEST_GAP_SECONDS = 10.0
"""A longer pause between two looks was a suspended machine or a stopped runner: nobody watched, it doesn't count."""


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
    """The count of processes killed for want of memory at the sample before the last, which may have seen the end."""
    memory_available_gib: float | None = None
    _looked: float | None = None
    _phase_done: float = 0.0
    _bytes_mark: int | None = None
    _idle_since: float | None = None
    _read_at: float = 0.0
    _activity: Activity | None = None
    _recent: list[dict[str, Any]] = field(default_factory=list)
    _xids_seen: dict[str, int] = field(default_factory=dict)
    _ecc_first: dict[str, int] = field(default_factory=dict)
    _oom_newest: int | None = None

    def __post_init__(self) -> None:
        self.last_step = self.resume_step

    def look(self, now: float) -> None:
        """Advance the clock to `now` (the runner's monotonic seconds)."""
        if self._looked is not None:
            self.clock += min(max(0.0, now - self._looked), LONGEST_GAP_SECONDS)
        self._looked = now

    def event(self, event: Event) -> None:
        """Note an event of the attempt."""
        data = event.data
        if event.type == "phase.started":
            self.phase, self._phase_done = str(data.get("phase") or ""), 0.0
            self._bytes_mark = None
            self._progress()
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
            self.oom_kills, self._oom_newest = self._oom_newest, whole_number(data.get("oom_kills"))

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
        """Note what the process tree used so far; bytes moved are progress in the phases that move files."""
        self._activity = activity
        if activity is None:
            return
        moved = activity.read_bytes + activity.write_bytes
        if self._bytes_mark is None:
            self._bytes_mark = moved
        elif moved - self._bytes_mark >= IO_PROGRESS_BYTES:
            self._bytes_mark = moved
            if self.phase in IO_PHASES:
                self._progress()

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
            gpu_idle_seconds=None if self._idle_since is None else self.clock - self._idle_since,
            details={
                "step": self.last_step,
                "phase_done": self._phase_done,
                "gpus": self._recent,
                "cpu_seconds": round(used.cpu_seconds, 2) if used else None,
                "read_bytes": used.read_bytes if used else None,
                "write_bytes": used.write_bytes if used else None,
            },
        )

    def forgive(self) -> None:
        """Start the limits afresh (monitoring was switched on again, the trainer was adopted)."""
        self.progress_at, self.suspected = self.clock, None

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
        self.progress_at = self.clock
