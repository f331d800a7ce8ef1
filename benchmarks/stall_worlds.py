"""`./fluxgym bench stall-worlds`: simulated training runs of which the truth is known, for judging the stall rules.

Written without a look at the rules or their thresholds. A world is ONE run as the supervisor sees it: healthy to its
end, or hung since a known moment. `healthy(seed)` and `hung(seed)` draw a scenario; HEALTHY_SCENARIOS and
HANG_SCENARIOS make one of a name: `HEALTHY_SCENARIOS["block_swap"](seed)`. Same seed, same world.

Healthy runs are as slow and as nasty as real ones, within bounds that make killing them a mistake (times without those
in which the machine was suspended; `benchmarks/worlds/fairness.py` measures them, the tests hold every kind to them):

- phase `train`: at most 0.8 × stall_seconds from the announcement or a step to the next step. `swelling_steps` alone
  uses the rest of what the contract promises, 0.8 × max(stall_seconds, 5 × the longest step so far, at most
  3 × stall_seconds), and there the GPU is seen at work at least every half stall_seconds;
- before it and in all other phases: at most 0.8 × stall_seconds and a few samples without any sign of life. A sign is
  an event, or in ten seconds 1% of a core's time, or 1 MiB read, written or become resident;
- there, too: at most two hours without an event, whatever goes on. Downloads counted in files, loads through FUSE of
  which the kernel accounts no bytes, pictures drawn on the processor take that long at any stall_seconds.

After `hang_at` of a hung world no event comes; it is watched for five hours or 24 × stall_seconds, the longer. CPU, I/O
and GPU may go on for ever there: that is what makes a hang hard to see. Before it, it keeps the bounds above.

Run as a program it prints what 300 worlds of each kind look like.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import astuple
from functools import partial

from rich.console import Console
from rich.table import Table

from benchmarks.worlds import healthy_around, healthy_training
from benchmarks.worlds import hung as hangs
from benchmarks.worlds.fairness import gaps
from benchmarks.worlds.healthy_around import Setup
from benchmarks.worlds.hung import HangSetup
from benchmarks.worlds.run import Hung
from benchmarks.worlds.story import Moment, World

__all__ = ["HANG_SCENARIOS", "HEALTHY_SCENARIOS", "Moment", "World", "healthy", "hung"]


def _healthy(setup: Setup, seed: int) -> World:
    run = setup(random.Random(f"healthy {setup.__name__} {seed}"))
    run.play()
    return run.story.world(setup.__name__, seed)


def _hung(setup: HangSetup, seed: int) -> World:
    hang = setup(random.Random(f"hung {setup.__name__} {seed}"))
    try:
        hang.run.play()
    except Hung:
        hangs.aftermath(hang)
        return hang.run.story.world(setup.__name__, seed, hang.kind)
    raise AssertionError(f"{setup.__name__} with seed {seed} never hung: {hang.run.fate}")


HEALTHY_SCENARIOS: dict[str, Callable[[int], World]] = {
    setup.__name__: partial(_healthy, setup) for setup in (*healthy_around.SETUPS, *healthy_training.SETUPS)
}
HANG_SCENARIOS: dict[str, Callable[[int], World]] = {setup.__name__: partial(_hung, setup) for setup in hangs.SETUPS}


def healthy(seed: int) -> World:
    """A healthy run of a random scenario."""
    return HEALTHY_SCENARIOS[random.Random(f"healthy {seed}").choice(list(HEALTHY_SCENARIOS))](seed)


def hung(seed: int) -> World:
    """A run that hangs, of a random scenario."""
    return HANG_SCENARIOS[random.Random(f"hung {seed}").choice(list(HANG_SCENARIOS))](seed)


def main() -> int:
    """The command. Returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="worlds of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of the first of them")
    arguments = parser.parse_args()
    console = Console()
    for title, make in (("healthy", healthy), ("hung", hung)):
        console.print(_table(title, make, range(arguments.seed, arguments.seed + arguments.count)))
    console.print(
        "Medians of the worlds' length (hung: until the hang) and number of moments, else the longest gaps in"
    )
    console.print("any of them: in seconds, and as shares of its stall_seconds. Suspended time is not counted.")
    return 0


def _table(title: str, make: Callable[[int], World], seeds: range) -> Table:
    """What worlds of these seeds look like, a row for each scenario."""
    started = time.perf_counter()
    found: dict[str, list[tuple[float, ...]]] = {}
    for seed in seeds:
        world = make(seed)
        until = world.end_at if world.hang_at is None else world.hang_at
        found.setdefault(world.name, []).append((until, len(world.moments), *astuple(gaps(world))))
    table = Table(title=f"{len(seeds)} {title} worlds in {time.perf_counter() - started:.1f} s")
    table.add_column("scenario", no_wrap=True)
    for name in ("worlds", "length", "moments", "train", "share", "other", "lifeless"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, rows in sorted(found.items()):
        lengths, moments, training, share, other, lifeless = zip(*rows, strict=True)
        length, many = statistics.median(lengths) / 60, statistics.median(moments)
        gap = f"{max(training):.0f} s", f"{max(share):.2f}", f"{max(other):.0f} s", f"{max(lifeless):.2f}"
        table.add_row(name, str(len(rows)), f"{length:.0f} min", f"{many:.0f}", *gap)
    return table


if __name__ == "__main__":
    sys.exit(main())
