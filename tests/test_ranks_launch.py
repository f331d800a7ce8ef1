"""Starting the processes of one training and ending them all: with ranks that are scripts of a few lines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fluxcore.runs.exits import Exit

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = (
    "import sys; from fluxcore.training.launch import launch; sys.exit(launch(sys.argv[2:], int(sys.argv[1]), 1.0))"
)
RANK = """
import os, signal, sys, time
from pathlib import Path
rank, place = int(os.environ["RANK"]), Path(sys.argv[1])
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
(place / f"pid{rank}").write_text(str(os.getpid()))
def wait(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end: time.sleep(0.01)
"""


def launcher(place: Path, body: str, ranks: int = 2) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", LAUNCH, str(ranks), sys.executable, "-c", RANK + body, str(place)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})


def pids(place: Path, ranks: int = 2) -> list[int]:
    """Of the ranks, once all of them run."""
    deadline = time.monotonic() + 30
    files = [place / f"pid{rank}" for rank in range(ranks)]
    while not all(file.exists() and file.read_text() for file in files):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return [int(file.read_text()) for file in files]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_each_rank_is_told_who_it_is_and_where_to_meet(tmp_path: Path) -> None:
    body = """
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "FLUXGYM_RENDEZVOUS")
(place / f"env{rank}").write_text(" ".join(os.environ[name] for name in names))
"""
    assert launcher(tmp_path, body, ranks=3).wait(30) == 0
    told = [(tmp_path / f"env{rank}").read_text().split() for rank in range(3)]
    assert [one[:4] for one in told] == [[str(rank), str(rank), "3", "3"] for rank in range(3)]
    assert len({one[4] for one in told}) == 1
    assert not Path(told[0][4].removeprefix("file://")).parent.exists()  # nothing is left over


def test_a_term_reaches_all_ranks_and_the_first_may_save(tmp_path: Path) -> None:
    body = f"""
wait(lambda: told)
time.sleep(1.5 if rank == 0 else 0)  # longer than the ranks that are late get
(place / f"stopped{{rank}}").touch()
sys.exit({int(Exit.STOPPED)})
"""
    process = launcher(tmp_path, body)
    pids(tmp_path)
    process.terminate()
    assert process.wait(30) == Exit.STOPPED
    assert (tmp_path / "stopped0").exists() and (tmp_path / "stopped1").exists()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("sys.exit(6) if rank else time.sleep(60)", Exit.OOM_GPU),  # the other one waits for it and would for hours
        ("sys.exit(6) if rank else sys.exit(70)", Exit.OOM_GPU),  # … or sees that it is gone
        ("sys.exit(1) if rank else sys.exit(70)", Exit.CRASH),
        ("time.sleep(0.3 * rank); sys.exit(6) if rank else sys.exit(1)", Exit.OOM_GPU),
        ("sys.exit(70)", Exit.CRASH),
        ("os.kill(os.getpid(), 9) if rank else time.sleep(60)", -signal.SIGKILL),
        ("os.kill(os.getpid(), 11) if rank else sys.exit(1)", -signal.SIGSEGV),
        ("time.sleep(60) if rank else sys.exit(0)", Exit.DONE),
        ("sys.exit(70) if rank else sys.exit(143)", Exit.STOPPED),
    ],
)  # fmt: skip
def test_one_rank_s_end_is_the_end_of_all_and_the_true_reason_is_told(tmp_path: Path, body: str, code: int) -> None:
    process = launcher(tmp_path, body)
    running = pids(tmp_path)
    begun = time.monotonic()
    assert process.wait(30) == code
    assert time.monotonic() - begun < 10
    assert all(gone(pid) for pid in running)


def test_ranks_end_with_a_launcher_that_is_killed(tmp_path: Path) -> None:
    process = launcher(
        tmp_path, "from fluxcore.training.launch import follow_launcher\nfollow_launcher(); wait(lambda: 0)"
    )
    running = pids(tmp_path)
    time.sleep(0.5)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while not all(gone(pid) for pid in running):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("trainer", ["training", "sd_scripts"])
def test_a_stop_that_comes_while_python_goes_down_changes_no_exit_code(trainer: str) -> None:
    late = (
        "import os, signal\n"
        "from fluxcore.%s.__main__ import leave\n"
        "class Late:\n"
        "    def __del__(self, kill=os.kill, pid=os.getpid(), term=signal.SIGTERM): kill(pid, term)\n"
        "late = Late()\n"
        "signal.signal(signal.SIGTERM, lambda *_: None)\n"
        "leave(0)\n"
    )
    assert subprocess.run([sys.executable, "-c", late % trainer], cwd=ROOT, timeout=30).returncode == 0
