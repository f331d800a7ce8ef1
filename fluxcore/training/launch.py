"""Several processes that train one run together: starts one for each GPU, and ends them all when one fails.

As torchrun does, but in milliseconds and with the ending told truly: this process passes a TERM on and ends as the
training did, with the exit code or by the signal of the rank that failed first of all, not of those that only lost it.
No torch.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from fluxcore.runs.exits import REASONS, Exit

PEER_LOST = 70
"""Exit code of a rank that ends only because another one did."""

LATE_SECONDS = 10.0
"""How long the other ranks may take to end by themselves once one has ended."""

POLL_SECONDS = 0.1
RENDEZVOUS, LAUNCHER = "FLUXGYM_RENDEZVOUS", "FLUXGYM_LAUNCHER"


def is_rank() -> bool:
    """Whether this process is one of several, started by `launch` or by torchrun."""
    try:
        return "RANK" in os.environ and "LOCAL_RANK" in os.environ and int(os.environ["WORLD_SIZE"]) > 1
    except (KeyError, ValueError):
        return False


def launch(command: Sequence[str], processes: int, late_seconds: float = LATE_SECONDS) -> int:
    """Run `command` as so many ranks (RANK, LOCAL_RANK, WORLD_SIZE in their environment); returns the exit code.

    Where a rank was ended by a signal, this process ends by the same one.
    """
    stop = {"requested": False}

    def on_term(number: int, frame: object) -> None:
        stop["requested"] = True

    signal.signal(signal.SIGTERM, on_term)
    with tempfile.TemporaryDirectory(prefix="fluxgym-ranks-") as place:
        ranks = [subprocess.Popen(command, env=_environment(rank, processes, Path(place))) for rank in range(processes)]
        try:
            code = _see_through(ranks, stop, late_seconds)
        finally:
            for rank in ranks:
                if rank.poll() is None:
                    rank.kill()
                rank.wait()
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def _environment(rank: int, processes: int, place: Path) -> dict[str, str]:
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    return {
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # the ranks wait for each other as well
        "GLOO_SOCKET_IFNAME": "lo",  # one machine: not by its name, which may resolve to nothing
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        RENDEZVOUS: f"file://{place / 'store'}",
        LAUNCHER: str(os.getpid()),
    }


def _see_through(ranks: list[subprocess.Popen[bytes]], stop: dict[str, bool], late_seconds: float) -> int:
    """Wait for all ranks, or for one that fails; the code that tells how the training ended."""
    passed_on = False
    deadline = float("inf")
    while True:
        codes = [rank.poll() for rank in ranks]  # before the clock is read: what ends in time counts
        now = time.monotonic()
        ended = [code for code in codes if code is not None]
        # Rank 0 may still be saving where another one has stopped; after its own end, and after a failure, nothing more
        # can come of the others.
        if deadline == float("inf") and (codes[0] is not None or any(map(_failed, ended))):
            deadline = now + late_seconds
        if len(ended) == len(codes) or now >= deadline:
            break
        if stop["requested"] and not passed_on:
            passed_on = True
            for rank in ranks:
                if rank.poll() is None:
                    rank.send_signal(signal.SIGTERM)
        time.sleep(POLL_SECONDS)
    if codes[0] is not None and not any(map(_failed, ended)):
        return codes[0]
    code = min(ended, key=_how_telling)
    return Exit.CRASH if code == PEER_LOST else code


def _failed(code: int) -> bool:
    return code not in (Exit.DONE, Exit.STOPPED)


def _how_telling(code: int) -> int:
    """A signal comes from without, a reason was found by the rank itself; the others may follow from either."""
    if code < 0:
        return 0
    if code in REASONS:
        return 1
    return {Exit.STOPPED: 3, PEER_LOST: 4, Exit.DONE: 5}.get(code, 2)


def follow_launcher() -> None:
    """In a rank: end with the launcher, also where that is killed, and say nothing on standard output but in rank 0."""
    if os.environ.get(LAUNCHER):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != int(os.environ[LAUNCHER]):
            sys.exit(PEER_LOST)
    if os.environ["RANK"] != "0":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  for as long as the process lives
