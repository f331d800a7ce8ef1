"""`./fluxgym bench chaos`: the runner under kill -9, against trees that do not want to end, through a night of faults.

    --runner-kills 200   kill -9 of the runner at random moments, over runs that end in every way
    --any 200            kill -9 of app, runner, shims and trainers in any order, also while a state is being saved
    --trees 200          stop of process trees that try to get away
    --night              an hour of a night ten times as fast, with a fault every minute of it (`--minutes`, `--every`)

Without any: the first three, 200 each. Real runner, real shim, a stub trainer; all in temporary folders.
"""

from __future__ import annotations

import argparse
import sys

from benchmarks.campaigns import any_kills, night, runner_kills, trees
from benchmarks.campaigns.report import show

COUNT = 200


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--runner-kills", "--any", "--trees"):
        parser.add_argument(option, type=int, nargs="?", const=COUNT, metavar="COUNT")
    parser.add_argument("--night", action="store_true")
    parser.add_argument("--minutes", type=float, default=60.0, help="of the night, by this machine's clock")
    parser.add_argument("--every", type=float, default=6.0, help="seconds between two faults of the night")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args(arguments)
    if not (asked.runner_kills or asked.any or asked.trees or asked.night):
        asked.runner_kills = asked.any = asked.trees = COUNT
    missed = 0
    if asked.runner_kills:
        missed += show("kill -9 of the runner", *runner_kills.run(asked.runner_kills, asked.seed))
    if asked.any:
        missed += show("kill -9 of app, runner, shims, trainers", *any_kills.run(asked.any, asked.seed))
    if asked.trees:
        missed += show("stop of adversarial trees", *trees.run(asked.trees, asked.seed))
    if asked.night:
        missed += show("a night of faults, ten times as fast", *night.run(asked.minutes, asked.every, asked.seed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
