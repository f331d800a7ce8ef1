"""The whole tree of an attempt ends, whatever its processes did to get away, and nothing else does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxcore.runs import RunFolder
from fluxcore.runs.processes import environment_has, is_alive, process_table
from runner.executor import Launch, LocalExecutor, Record
from runner.kill import TreeKill
from tests.place import wait_until
from tests.stub_children import SCRIPT

TREE = f"""
import signal, sys, time
sys.path.insert(0, {str(Path(__file__).resolve().parents[1])!r})
from tests.stub_children import start_children
if "deaf" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
start_children(["child", "setsid", "double", "double"])
print("ready", flush=True)
time.sleep(600)
"""

BARE = f"""
import os, sys, time
if len(sys.argv) > 1 and sys.argv[1] == "inner": time.sleep(600)
# A daemon that wiped its environment: only its descent gives it away.
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: os.execve({sys.executable!r}, [{sys.executable!r}, "-c", "import time; time.sleep(600)"], {{}})
    os._exit(0)
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    made = RunFolder(tmp_path / "cat")
    made.path.mkdir()
    yield made
    for pid in marked(made):
        os.kill(pid, signal.SIGKILL)


def marked(folder: RunFolder) -> set[int]:
    mark = f"FLUXGYM_RUN={folder.path}"
    return {pid for pid, row in process_table().items() if not row.zombie and environment_has(pid, mark)}


def launch(folder: RunFolder, code: str, *argv: str) -> tuple[LocalExecutor, Record]:
    executor = LocalExecutor()
    executor.spawn(Launch(folder, 1, [sys.executable, "-c", code, *argv]))
    wait_until(lambda: "ready" in folder.train_log.read_text())
    return executor, executor.look(folder, 1)


def end(executor: LocalExecutor, folder: RunFolder, grace: float = 0.3, why: str = "stop") -> TreeKill:
    kill = TreeKill(why, grace, time.monotonic())

    def done() -> bool:
        executor.reap()
        return kill.turn(time.monotonic(), folder, executor.look(folder, 1), executor)

    wait_until(done, 15)
    return kill


def test_setsid_and_double_forked_children_go_with_a_deaf_trainer(folder: RunFolder) -> None:
    executor, record = launch(folder, TREE, "deaf")
    wait_until(lambda: len(executor.tree(folder, record)) >= 5)
    kill = end(executor, folder)
    assert marked(folder) == set() and kill.survivors == [] and len(kill.pids) >= 5
    assert kill.signals == ["SIGCONT", "SIGTERM", "SIGKILL"]
    assert executor.look(folder, 1).exit.signal == "SIGKILL"  # type: ignore[union-attr]
    wait_until(lambda: executor.reap() or not is_alive(record.shim))  # type: ignore[arg-type, func-returns-value]


def test_a_daemon_without_our_mark_is_found_below_the_subreaper(folder: RunFolder) -> None:
    executor, record = launch(folder, BARE)
    mark = f"FLUXGYM_RUN={folder.path}"
    daemon = wait_until(
        lambda: next((one for one in executor.tree(folder, record) if not environment_has(one.pid, mark)), None)
    )
    end(executor, folder)
    assert not is_alive(daemon)


def test_a_stopped_trainer_hears_the_term(folder: RunFolder) -> None:
    executor, record = launch(folder, "import time; print('ready', flush=True); time.sleep(600)")
    os.kill(record.trainer.pid, signal.SIGSTOP)  # type: ignore[union-attr]
    kill = end(executor, folder, grace=10)
    assert not kill.used_kill and executor.look(folder, 1).exit.signal == "SIGTERM"  # type: ignore[union-attr]


def test_with_the_shim_dead_the_sweep_finds_what_is_left(folder: RunFolder) -> None:
    executor, record = launch(folder, TREE, "deaf")
    wait_until(lambda: len(executor.tree(folder, record)) >= 5)
    os.kill(record.shim.pid, signal.SIGKILL)  # type: ignore[union-attr]
    end(executor, folder)
    assert marked(folder) == set()


def test_processes_of_others_are_never_touched(folder: RunFolder) -> None:
    environment = {**os.environ, "FLUXGYM_RUN": f"{folder.path}-2"}
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], env=environment)
    try:
        executor, record = launch(folder, TREE, "deaf")
        pids = {process.pid for process in executor.tree(folder, record)}
        assert stranger.pid not in pids and os.getpid() not in pids and record.shim.pid not in pids  # type: ignore[union-attr]
        kill = end(executor, folder)
        assert stranger.poll() is None and stranger.pid not in kill.pids
    finally:
        stranger.kill()
        stranger.wait()


def test_children_that_outlive_a_finished_trainer_are_ended(folder: RunFolder) -> None:
    code = TREE.replace("time.sleep(600)", "time.sleep(0.1)")
    executor, record = launch(folder, code)
    wait_until(lambda: executor.look(folder, 1).exit)
    assert len(marked(folder)) >= 4
    end(executor, folder, why="leftovers")
    assert marked(folder) == set()


def test_a_child_that_forks_on_and_on_is_never_overlooked(folder: RunFolder) -> None:
    """One that lives for milliseconds is gone before it is read, and its successor came behind the list of processes."""
    environment = {**os.environ, "FLUXGYM_RUN": str(folder.path)}
    command = [sys.executable, "-I", "-S", SCRIPT, "comet", "3", "0.003"]
    first = subprocess.Popen(command, env=environment, start_new_session=True)
    wait_until(lambda: first.poll() is not None)  # its successors go on
    executor, until, looks = LocalExecutor(), time.monotonic() + 1.5, 0
    while time.monotonic() < until:
        looks += 1
        assert executor.tree(folder, Record()), f"overlooked at look {looks}"
    wait_until(lambda: not executor.tree(folder, Record()))


def test_the_children_of_the_stub_are_what_they_claim(folder: RunFolder) -> None:
    executor, record = launch(folder, TREE)
    table = process_table()
    sessions = {os.getsid(pid) for pid in marked(folder) if pid in table}
    end(executor, folder)
    assert len(sessions) >= 3, "setsid and double forks must be in sessions of their own, or the test shows nothing"
