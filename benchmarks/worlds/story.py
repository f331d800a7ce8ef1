"""A simulated run as the supervisor sees it: events, GPU readings and activity on one clock, and how it ended.

A scenario tells the story by `work` (so long, under such a load), `tell` (an event) and `hang`; `world` then samples it
as a supervisor would: at every `sample_gpu_seconds`, a little late, counters as coarse as the kernel's.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

GIB = 1 << 30
PAGE = 4096


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that the supervisor sees, at `at` seconds (wall, monotonic) since the trainer was started.

    `kind` and `data`:
    - `event`: `{"type": …, "data": …}`, as the contract has it
    - `gpu`: `{"samples": [one dict a GPU]}`; no readings are `[]`, a field that is not known is None
    - `activity`: of the process tree `cpu_seconds`, `read_bytes`, `write_bytes` (cumulative; where processes of the
      tree end, theirs are gone and the sums fall) and `rss_bytes`; with every `gpu`
    - `suspend`: `{"seconds": …}`: the machine stood still from `at - seconds` to `at`, and is just awake again
    """

    at: float
    kind: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class World:
    """One run of which the truth is known: healthy to its end (`hang_at` None), or hung since `hang_at`.

    `moments` is a list, sorted by `at`, and covers the whole run. `hang_at` is the moment of the last real progress:
    the last event, or in an uncounted stretch (a load, a save) the end of real work in it. `end_at`: the healthy run's
    end, or how long the hung world is watched.
    """

    name: str
    seed: int
    stall_seconds: float
    sample_gpu_seconds: float
    moments: list[Moment]
    hang_at: float | None
    hang_kind: str | None
    end_at: float

    @property
    def healthy(self) -> bool:
        return self.hang_at is None


@dataclass(frozen=True, slots=True)
class Load:
    """What the machine does meanwhile. Rates are means; a work's own are drawn around them.

    `gpu`, `spread`: the reading in percent where a kernel is caught; `zeros`: share of readings that fall between two
    kernels. `power`: share of the limit. `cpu`: cores of the process tree. `read`, `write`: bytes a second that the
    kernel accounts to it (a mapped file on FUSE: none). `late`: by how many seconds the supervisor itself may be late.
    `lag`: the last of several GPUs waits for the others, and shows this share of their reading.
    """

    gpu: float = 0.0
    spread: float = 0.0
    zeros: float = 0.0
    power: float = 0.0
    cpu: float = 0.01
    read: float = 0.0
    write: float = 0.0
    late: float = 0.0
    lag: float = 1.0
    throttle: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another run on the same GPU: busy for `on` of every `period` seconds."""

    level: float = 90.0
    memory_gib: float = 8.0
    period: float = 3600.0
    on: float = 3600.0
    offset: float = 0.0

    def busy(self, at: float) -> bool:
        """Whether it computes at that moment."""
        return (at + self.offset) % self.period < self.on


@dataclass(slots=True)
class Device:
    """A GPU of the run."""

    index: int
    uuid: str
    name: str
    memory_gib: float
    watts: float
    idle: float = 0.12  # of the limit, with a context on it
    neighbour: Neighbour | None = None


@dataclass(slots=True)
class Readings:
    """What NVML tells: everything; nothing (`empty`); not the `unknown` fields; and not in recurring holes.

    `hole`: so many seconds of every `period` give `[]`, or with `hole_of_nulls` samples of which nothing is known.
    """

    empty: bool = False
    unknown: frozenset[str] = frozenset()
    period: float = 3600.0
    hole: float = 0.0
    hole_of_nulls: bool = False
    lost_at: float | None = None  # since then the GPU is off the bus


NVML_FIELDS = frozenset(
    "utilization_percent memory_used_gib power_watts power_limit_watts temperature_c throttle_reasons".split()
)
MIG = frozenset({"utilization_percent", "power_watts", "power_limit_watts"})


@dataclass(slots=True)
class _Stretch:
    """From `start` to `end` under one load; memory goes to its value at the end. `load` None: the machine is off."""

    start: float
    end: float
    load: Load | None
    rss: float
    gpu_memory: float
    lost_share: float = 0.0  # of the counters, gone with processes that ended at `start`


@dataclass(slots=True)
class Story:
    """Tells one run; `now` is its clock, in wall seconds."""

    rng: random.Random
    devices: list[Device]
    readings: Readings
    stall_seconds: float
    sample_gpu_seconds: float
    buffer_seconds: float = 0.0  # steps are seen only when so much time has gathered (a buffered pipe or disk)
    now: float = 0.0
    rss: float = 0.1  # GiB
    gpu_memory: float = 0.0  # GiB a GPU, of this run
    hang_at: float | None = None
    suspended: float = 0.0
    _stretches: list[_Stretch] = field(default_factory=list)
    _events: list[Moment] = field(default_factory=list)
    _held_back: list[dict[str, Any]] = field(default_factory=list)
    _flushed: float = 0.0
    _suspends: list[tuple[float, float]] = field(default_factory=list)
    _lost_share: float = 0.0

    # Telling

    def plan_suspend(self, at: float, seconds: float) -> None:
        """The machine will be suspended at `at`, in whatever it then does; times after it come later by as much."""
        self._suspends = sorted([*self._suspends, (at, seconds)])

    def work(self, seconds: float, load: Load, rss: float | None = None, gpu_memory: float | None = None) -> None:
        """So long under that load; memory (GiB) goes to the given values meanwhile. Suspends come between."""
        left, rss, gpu_memory = seconds, rss or self.rss, self.gpu_memory if gpu_memory is None else gpu_memory
        while self._suspends and self._suspends[0][0] < self.now + left:
            at, asleep = self._suspends.pop(0)
            before = max(at - self.now, 0.0)
            self._add(before, load, self.rss, self.gpu_memory)
            self._add(asleep, None, self.rss, self.gpu_memory)
            self._events.append(Moment(self.now, "suspend", {"seconds": asleep}))
            self.suspended += asleep
            left -= before
        self._add(left, load, rss, gpu_memory)

    def tell(self, type: str, **data: Any) -> None:
        """The trainer writes an event now."""
        event = {"type": type, "data": data}
        if self.buffer_seconds:
            self._held_back.append(event)
            if type == "train.step" and self.now - self._flushed < self.buffer_seconds:
                return
            self._events += [Moment(self.now, "event", held) for held in self._held_back]
            self._held_back, self._flushed = [], self.now
        else:
            self._events.append(Moment(self.now, "event", event))

    def lose_counters(self, share: float) -> None:
        """Processes of the tree end now, and with them that share of its CPU seconds and bytes."""
        self._lost_share = share

    def suspend(self, seconds: float) -> None:
        """The machine is suspended now."""
        self.plan_suspend(self.now, seconds)
        self.work(1e-3, Load())

    def hang(self) -> None:
        """Nothing real happens from now on; what a buffer holds back is never seen."""
        self.hang_at = self.now

    # Seeing

    def world(self, name: str, seed: int, hang_kind: str | None = None) -> World:
        """The story as the supervisor sees it."""
        moments = self._sampled()
        order = {"suspend": 0, "event": 1, "gpu": 2, "activity": 3}
        moments = sorted([*self._events, *moments], key=lambda moment: (moment.at, order[moment.kind]))
        return World(
            name, seed, self.stall_seconds, self.sample_gpu_seconds, moments, self.hang_at, hang_kind, self.now
        )

    def _add(self, seconds: float, load: Load | None, rss: float, gpu_memory: float) -> None:
        if seconds <= 0:
            return
        self._stretches.append(_Stretch(self.now, self.now + seconds, load, rss, gpu_memory, self._lost_share))
        self.now += seconds
        self.rss, self.gpu_memory, self._lost_share = rss, gpu_memory, 0.0

    def _sampled(self) -> list[Moment]:
        rng, period, found = self.rng, self.sample_gpu_seconds, []
        cpu = read = write = 0.0
        rss, gpu_memory = 0.1, 0.0
        warmth = [rng.uniform(30, 45) for _ in self.devices]
        at = rng.uniform(0.1, period)
        for part in self._stretches:
            load, span = part.load, part.end - part.start
            if load is None:
                if at < part.end:
                    at = part.end + rng.uniform(0.01, 0.5)
                continue
            keep = 1 - part.lost_share
            cpu, read, write = cpu * keep, read * keep, write * keep
            sway = rng.uniform(0.8, 1.2)
            cores, reading, writing = load.cpu * sway, load.read * sway, load.write * sway
            while at < part.end:
                since = at - part.start
                share = since / span
                memory = gpu_memory + (part.gpu_memory - gpu_memory) * share
                found.append(Moment(at, "gpu", {"samples": self._gpus(at, load, memory, warmth)}))
                activity = {
                    "cpu_seconds": int((cpu + cores * since) * 100) / 100,
                    "rss_bytes": int((rss + (part.rss - rss) * share) * GIB) // PAGE * PAGE,
                    "read_bytes": int(read + reading * since) // PAGE * PAGE,
                    "write_bytes": int(write + writing * since) // PAGE * PAGE,
                }
                found.append(Moment(at, "activity", activity))
                at += period + rng.random() * (0.02 + load.late)
            cpu, read, write = cpu + cores * span, read + reading * span, write + writing * span
            rss, gpu_memory = part.rss, part.gpu_memory
        return found

    def _gpus(self, at: float, load: Load, memory: float, warmth: list[float]) -> list[dict[str, Any]]:
        told, rng = self.readings, self.rng
        hole = told.hole > 0 and at % told.period < told.hole
        if told.empty or (hole and not told.hole_of_nulls):
            return []
        lost = told.lost_at is not None and at >= told.lost_at
        samples = []
        for i, device in enumerate(self.devices):
            level = load.gpu * (load.lag if i and i == len(self.devices) - 1 else 1.0)
            power = load.power
            if load.zeros and rng.random() < load.zeros:
                level = 0.0
            elif level and load.spread:
                level = min(100.0, max(1.0, level + rng.gauss(0, load.spread)))
            used = memory
            if (other := device.neighbour) is not None:
                used += other.memory_gib
                if other.busy(at):
                    level = min(100.0, max(level, other.level + rng.uniform(-8, 8)))
                    power = max(power, 0.75)
            power = max(device.idle, power * rng.uniform(0.93, 1.05))
            warmth[i] += (35 + 45 * power - warmth[i]) * 0.1
            sample = {
                "index": device.index,
                "uuid": device.uuid,
                "name": device.name,
                "utilization_percent": round(level),
                "memory_used_gib": round(min(used, device.memory_gib * 0.99), 2),
                "memory_total_gib": device.memory_gib,
                "power_watts": round(min(power, 1.02) * device.watts, 1),
                "power_limit_watts": device.watts,
                "temperature_c": round(warmth[i]),
                "throttle_reasons": list(load.throttle),
            }
            unknown = NVML_FIELDS if hole or lost else told.unknown
            if unknown:
                sample.update(dict.fromkeys(unknown))
            samples.append(sample)
        return samples
