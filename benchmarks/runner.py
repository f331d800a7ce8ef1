"""`./fluxgym bench runner`: how fast the runner is, and how little it takes.

- from a request's event to the trainer's process, to its first line, and to `run.started` in the log
- memory and CPU of a runner with 8 live runs of 1 to 5 steps a second, without and with GPUs (a driver of our own)
- from a new runner's start to the adoption of each of 8 live trainers, after kill -9 of the one before

Real runner and shim, a stub trainer, in temporary folders.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from dataclasses import dataclass

from benchmarks.campaigns.report import Figure, Progress, at_most, percentile, show
from benchmarks.campaigns.runner_kills import adoption_seconds
from benchmarks.campaigns.stage import Stage, stage
from fluxcore.log import parse_ts
from fluxcore.runs import request_start
from fluxcore.runs.processes import read_process
from tests.place import wait_until

RUNS = 8
LATENCY_MS, RSS_MB, CPU_PERCENT, ADOPTION_SECONDS = 300.0, 80.0, 2.0, 2.0
TICK = 1 / os.sysconf("SC_CLK_TCK")


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="requests whose way to the trainer is timed")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long the 8 live runs are watched, each time")
    parser.add_argument("--rounds", type=int, default=25, help="kill -9 of the runner over 8 live runs")
    asked = parser.parse_args(arguments)
    figures = [*latency(asked.count), *load(asked.seconds, gpus=False), *load(asked.seconds, gpus=True)]
    figures += adoption(asked.rounds)
    return show("the runner", figures)


def latency(count: int) -> list[Figure]:
    """One request after another to a runner that waits; in milliseconds, from just before the event is appended."""
    chance, progress = random.Random(1), Progress("requests", count)
    to_process, to_first_line, to_event = [], [], []
    with stage(slots=4) as place:
        place.serve()
        for number in range(1, count + 1):
            name = f"run-{number:04d}"
            place.make(name, steps=1)
            time.sleep(chance.uniform(0.05, 0.5))  # any moment of the runner's own rhythm
            wall = time.time()
            asked = time.clock_gettime(time.CLOCK_BOOTTIME)
            request_start(place.outputs, name, "cli")
            place.ended(name)
            (start,) = place.ledger(name).starts
            # The kernel counts in ticks of 10 ms, rounded down: half a tick is added.
            to_process.append(1000 * (start.ticks * TICK + TICK / 2 - asked))
            to_first_line.append(1000 * (start.at - asked))
            started = next(event for event in place.events(name) if event.type == "run.started")
            to_event.append(1000 * (parse_ts(started.ts).timestamp() - wall))
            progress.at(number)
    what = "request → "
    return [
        at_most(what + "trainer's process", to_process, 0.5, LATENCY_MS, "ms"),
        at_most(what + "trainer's process", to_process, 0.95, LATENCY_MS, "ms"),
        Figure(what + "trainer's first line, p95", f"{percentile(to_first_line, 0.95):.3g} ms"),
        Figure(what + "run.started in the log, p95", f"{percentile(to_event, 0.95):.3g} ms"),
    ]


@dataclass
class Use:
    """What a process took so far, and holds."""

    at: float
    cpu_seconds: float
    rss_mb: float

    @classmethod
    def of(cls, pid: int) -> Use:
        """What a process uses by now."""
        row = read_process(pid)
        assert row is not None, "the runner is gone"
        return cls(time.monotonic(), row.cpu_seconds, row.rss_bytes / 1e6)


def live_runs(place: Stage) -> None:
    """Start RUNS runs that go on for hours, 1 to 5 steps a second, with a sample every 5 s as by default."""
    chance = random.Random(2)
    for number in range(RUNS):
        name = f"live-{number}"
        pace = chance.uniform(0.2, 1.0)
        place.make(name, {"sample_gpu_seconds": 5}, steps=10**6, step_seconds=pace, save_every=100)
        request_start(place.outputs, name, "cli")
    for number in range(RUNS):
        place.until(f"live-{number}", lambda state: state.step >= 2, 60)


def load(seconds: float, *, gpus: bool) -> list[Figure]:
    """Memory and CPU of the runner over RUNS live runs, for `seconds` after they all train."""
    with stage(slots=RUNS, gpus=RUNS if gpus else 0) as place:
        if gpus and place.gpus is None:
            return [Figure("runner with 8 live runs on 8 GPUs", "not measured: there is no C compiler")]
        pid = place.serve()
        live_runs(place)
        before, most, progress = Use.of(pid), 0.0, Progress("seconds of 8 live runs", round(seconds))
        while (now := Use.of(pid)).at - before.at < seconds:
            most = max(most, now.rss_mb)
            progress.at(round(now.at - before.at))
            time.sleep(0.5)
        cpu = 100 * (now.cpu_seconds - before.cpu_seconds) / (now.at - before.at)
        steps = sum(place.state(f"live-{number}").step for number in range(RUNS))
        seen = len(place.state("live-0").gpus)
        assert bool(seen) == gpus, f"{seen} GPUs were sampled"
    what = f"runner, {RUNS} live runs{' on 8 GPUs (driver of our own)' if gpus else ''}"
    return [
        Figure(f"{what}: memory", f"{most:.1f} MB at the most", f"{RSS_MB:g} MB", most < RSS_MB),
        Figure(f"{what}: CPU of one core", f"{cpu:.2f}% ({steps} steps)", f"{CPU_PERCENT:g}%", cpu < CPU_PERCENT),
    ]


def adoption(rounds: int) -> list[Figure]:
    """Kill the runner over RUNS live runs and start the next at once; seconds from there to each `run.adopted`."""
    progress = Progress("adoptions of 8 live runs", rounds)
    names = [f"live-{number}" for number in range(RUNS)]
    with stage(slots=RUNS) as place:
        place.serve()
        live_runs(place)
        for number in range(1, rounds + 1):
            place.kill_runner()
            pid = place.start_runner()
            wait_until(lambda pid=pid: all(adopted_by(place, name, pid) for name in names), 20)
            progress.at(number)
        seconds = adoption_seconds(place, names)
    what = "kill -9 of the runner, start of the next → trainer adopted"
    return [at_most(what, seconds, share, ADOPTION_SECONDS) for share in (0.5, 0.99)]


def adopted_by(place: Stage, name: str, pid: int) -> bool:
    """Whether that runner has taken the run over."""
    events = reversed(place.events(name))
    return any(event.type == "run.adopted" and event.data["runner_pid"] == pid for event in events)


if __name__ == "__main__":
    sys.exit(main())
