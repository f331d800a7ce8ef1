"""`./fluxgym bench stalls`: the stall rules over thousands of simulated runs of which the truth is known.

Each world (benchmarks/stall_worlds.py, written without a look at the rules) is replayed through the runner's own watch
and rules, as the runner would: a look at least every five seconds, a reading every period. Counted are healthy runs
that would have been killed, hangs that were not found, and how long finding them took.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.stall_worlds import World, healthy, hung
from fluxcore.log import Event
from runner.executor import Activity
from runner.stalls import judge, longest_limit
from runner.watch import Watch

TURN_SECONDS = 5.0
"""The longest time between two looks of the replay; the runner turns every second."""


@dataclass(frozen=True)
class Outcome:
    """What the rules made of one world. `killed_at`: None where they let it be; `limit`: the longest that held then."""

    name: str
    seed: int
    hang_at: float | None
    killed_at: float | None = None
    verdict: str = ""
    limit: float = 0.0
    sample_seconds: float = 0.0
    suspended: float = 0.0
    """How long the machine was suspended between the hang and its end."""

    @property
    def delay(self) -> float:
        """Seconds from the hang to the verdict, without those in which the machine was suspended."""
        if self.killed_at is None or self.hang_at is None:
            return math.inf
        return self.killed_at - self.hang_at - self.suspended


def replay(world: World) -> Outcome:
    """Play a world to the watch and ask the rules at every look."""
    watch, now, suspended = Watch(), 0.0, 0.0
    watch.look(0.0)
    for moment in world.moments:
        if moment.kind == "suspend":
            if world.hang_at is not None and moment.at > world.hang_at:
                suspended += moment.data["seconds"]
            now = moment.at
            watch.look(now)
            continue
        while now < moment.at:
            now = min(moment.at, now + TURN_SECONDS)
            watch.look(now)
            window = watch.window(world.stall_seconds, world.sample_gpu_seconds)
            found = judge(window)
            if found.certain:
                return Outcome(
                    world.name, world.seed, world.hang_at, now, f"{found.verdict} in {watch.phase or 'start'}",
                    longest_limit(window), world.sample_gpu_seconds, suspended,
                )  # fmt: skip
        show(watch, moment.kind, moment.data, world.sample_gpu_seconds)
    return Outcome(world.name, world.seed, world.hang_at)


def show(watch: Watch, kind: str, data: dict[str, Any], period: float) -> None:
    """One moment, as the runner takes it in."""
    if kind == "event":
        watch.event(Event("", "world", data["type"], "trainer", "trainer-1-a", 1, data["data"], 1))
    elif kind == "gpu":
        watch.readings(data["samples"], period)
    elif kind == "activity":
        watch.activity(Activity(data["cpu_seconds"], data["rss_bytes"], data["read_bytes"], data["write_bytes"]))


def play_healthy(seed: int) -> Outcome:
    """One healthy world."""
    return replay(healthy(seed))


def play_hung(seed: int) -> Outcome:
    """One world that hangs."""
    return replay(hung(seed))


def bound(count: int) -> float:
    """The rate that none in `count` excludes at 95% (the rule of three, exactly)."""
    return 1 - 0.05 ** (1 / count)


def main() -> int:
    """The command. Returns 1 where a healthy run was killed, or a hang found before it began or not at all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--healthy", type=int, default=3000)
    parser.add_argument("--hung", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1_000_000, help="the first of the worlds' seeds")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    started = time.monotonic()
    with ProcessPoolExecutor(arguments.jobs) as pool:
        seeds = range(arguments.seed, arguments.seed + arguments.healthy)
        well = list(pool.map(play_healthy, seeds, chunksize=10))
        seeds = range(arguments.seed, arguments.seed + arguments.hung)
        stuck = list(pool.map(play_hung, seeds, chunksize=10))
    console = Console(width=130)
    false = [outcome for outcome in well if outcome.killed_at is not None]
    early = [outcome for outcome in stuck if outcome.killed_at is not None and outcome.delay < 0]
    missed = [outcome for outcome in stuck if outcome.killed_at is None]
    console.print(_by_scenario(stuck))
    for outcome in [*false, *early]:
        console.print(
            f"killed while healthy: {outcome.name} {outcome.seed} at {outcome.killed_at:.0f} s, {outcome.verdict}"
        )
    for outcome in missed:
        console.print(f"missed: {outcome.name} {outcome.seed}, hung at {outcome.hang_at:.0f} s")
    found = sorted(outcome.delay for outcome in stuck if outcome.killed_at is not None and outcome.delay >= 0)
    late: dict[bool, list[float]] = {True: [], False: []}  # by whether the machine was suspended after the hang
    for outcome in stuck:
        if 0 <= outcome.delay < math.inf:
            late[outcome.suspended > 0].append(outcome.delay - outcome.limit - outcome.sample_seconds)
    table = Table(title=f"Stall rules over simulated runs ({machine()}, {time.monotonic() - started:.0f} s)")
    for column in ("what", "figure", "target"):
        table.add_column(column)
    scenarios = len({outcome.name for outcome in well}), len({outcome.name for outcome in stuck})
    table.add_row("healthy runs / scenarios", f"{len(well):,} / {scenarios[0]}", "3,000 runs")
    table.add_row("killed though healthy", f"{len(false)}", "0")
    table.add_row("hung runs / scenarios", f"{len(stuck):,} / {scenarios[1]}", "")
    table.add_row("killed before they hung", f"{len(early)}", "0")
    if not false and not early:
        whole = len(well) + len(stuck)
        table.add_row("rate of false kills, at most (95%)", f"{100 * bound(whole):.3f}%", "0.1%")
    table.add_row("hangs missed", f"{len(missed)}", "0")
    if found:
        table.add_row("found after, p50", f"{found[len(found) // 2]:,.0f} s", "")
        table.add_row("found after, p95", f"{found[len(found) * 95 // 100]:,.0f} s", "")
        if late[False]:
            most, look = max(late[False]), f"{TURN_SECONDS:.0f} s, the replay's look"
            table.add_row("beyond the longest limit and one period, most", f"{most:.0f} s", look)
        if late[True]:
            table.add_row("the same where the machine was suspended meanwhile", f"{max(late[True]):.0f} s", "")
    console.print(table)
    return 1 if false or early or missed else 0


def _by_scenario(outcomes: list[Outcome]) -> Table:
    table = Table(title="Hangs by scenario")
    for column in ("scenario", "worlds", "verdicts", "median s", "longest s"):
        table.add_column(column, justify="right" if column in ("worlds", "median s", "longest s") else "left")
    groups = defaultdict(list)
    for outcome in outcomes:
        groups[outcome.name].append(outcome)
    for name, group in sorted(groups.items()):
        verdicts: dict[str, int] = defaultdict(int)
        for outcome in group:
            verdicts[outcome.verdict or "missed"] += 1
        delays = [outcome.delay for outcome in group]
        words = ", ".join(
            f"{count} {verdict}" for verdict, count in sorted(verdicts.items(), key=lambda item: -item[1])
        )
        table.add_row(name, str(len(group)), words, f"{statistics.median(delays):,.0f}", f"{max(delays):,.0f}")
    return table


if __name__ == "__main__":
    sys.exit(main())
