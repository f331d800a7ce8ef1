"""Where a stuck trainer stands: py-spy on real processes, and a loop that never waits for it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fluxcore.runs import RunFolder
from runner.stacks import StackDump, find_tool
from tests.fakes import World

STUCK = """
import subprocess, sys, threading
lock = threading.Lock(); lock.acquire()
def wait_for_the_loader(): lock.acquire()
def load_pictures(): threading.Event().wait()
threading.Thread(target=load_pictures, name="loader", daemon=True).start()
print("ready", flush=True)
wait_for_the_loader()
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "cat")
    made.path.mkdir()
    return made


@pytest.fixture
def stuck() -> Iterator[int]:
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline() == b"ready\n"
        yield child.pid
        child.kill()


def finish(dump: StackDump) -> StackDump:
    until = time.monotonic() + 15
    while not dump.done(time.monotonic()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return dump


def script(tmp_path: Path, text: str) -> str:
    path = tmp_path / "py-spy"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_requirements_bring_the_tool() -> None:
    assert find_tool() is not None


@pytest.mark.parametrize("stopped", [False, True])
def test_every_thread_of_a_stuck_process_is_named(folder: RunFolder, stuck: int, stopped: bool) -> None:
    if stopped:
        os.kill(stuck, signal.SIGSTOP)
    dump = finish(StackDump(folder, 1, stuck, time.monotonic()))
    assert dump.path == ".attempts/0001/stacks.txt" and dump.problem == ""
    text = folder.stacks(1).read_text()
    assert "wait_for_the_loader" in text and "load_pictures" in text
    assert folder.stack_dumps() == [(1, folder.stacks(1))]
    assert ("State:\tT" in Path(f"/proc/{stuck}/status").read_text()) == stopped, "it was left as it was"


def test_the_stacks_of_its_children_come_along_and_one_that_is_no_python_spoils_nothing(folder: RunFolder) -> None:
    code = "import subprocess; subprocess.Popen(['sleep', '60']); print('ready', flush=True)\n" + STUCK
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True) as child:
        assert child.stdout and child.stdout.readline() == b"ready\n" and child.stdout.readline() == b"ready\n"
        assert finish(StackDump(folder, 1, child.pid, time.monotonic())).path
        os.killpg(child.pid, signal.SIGKILL)
    text = folder.stacks(1).read_text()
    assert "wait_for_the_loader" in text and "Error" not in text


def test_what_is_no_python_or_not_there_has_no_stacks_and_says_why(folder: RunFolder) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        dump = finish(StackDump(folder, 1, child.pid, time.monotonic()))
        child.kill()
    assert dump.path is None and "could not read the process" in dump.problem
    assert finish(StackDump(folder, 1, child.pid, time.monotonic())).problem
    assert list(folder.attempt(1).iterdir()) == []


def test_a_machine_that_restricts_ptrace_is_named(folder: RunFolder, tmp_path: Path) -> None:
    tool = script(tmp_path, "echo 'Permission Denied: Try running again with elevated permissions' >&2; exit 1")
    dump = finish(StackDump(folder, 1, 1, time.monotonic(), tool=tool))
    assert dump.path is None and "ptrace" in dump.problem


@pytest.mark.skipif(os.getuid() != 0, reason="needs a second user")
def test_the_process_of_another_user_may_not_be_looked_at(folder: RunFolder, tmp_path: Path, stuck: int) -> None:
    tool = script(tmp_path, f'exec setpriv --reuid 65534 --clear-groups --inh-caps=-all "{find_tool()}" "$@"')
    assert "ptrace" in finish(StackDump(folder, 1, stuck, time.monotonic(), tool=tool)).problem


def test_a_tool_that_hangs_is_ended_in_time(folder: RunFolder, tmp_path: Path) -> None:
    tool = script(tmp_path, "exec sleep 60")
    dump, now = StackDump(folder, 1, os.getpid(), 100.0, tool=tool), 100.0
    assert dump._child is not None
    while not dump.done(now):
        first, now = dump._child, now + 0.5
    assert now <= 106 and dump.path is None and "no answer" in dump.problem
    assert first.wait(5) == -signal.SIGKILL


def test_without_the_tool_the_reason_is_told(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.stacks.find_tool", lambda: None)
    dump = StackDump(folder, 1, os.getpid(), 0.0)
    assert dump.done(0.0) and dump.path is None and dump.problem == "py-spy is not installed"


# -- in the loop -----------------------------------------------------------------------------------------------------


class FakeDump:
    """A dump that ends when a test says so."""

    made: list[FakeDump] = []

    def __init__(self, folder: RunFolder, attempt: int, pid: int, now: float) -> None:
        self.of, self.pid = folder.name, pid
        self.path: str | None = None
        self.problem = ""
        self.ended = self.dropped = False
        FakeDump.made.append(self)

    def done(self, now: float) -> bool:
        return self.ended

    def drop(self) -> None:
        self.dropped = True


@pytest.fixture
def world(tmp_path: Path) -> World:
    FakeDump.made = []
    world = World(tmp_path, cpu_slots=2)
    world.runner.dumper = FakeDump
    return world


def stall(world: World, **config: Any) -> FakeDump:
    world.start("cat", auto_resume=0, **config)
    world.train("cat", 1, 5)
    world.checkpoint("cat", 5)
    world.turns(301, 1.0)
    (dump,) = FakeDump.made
    assert (dump.of, dump.pid) == ("cat", world.trainer("cat").record.trainer.pid)  # type: ignore[union-attr]
    return dump


def test_a_stalled_run_has_its_stacks_and_is_not_ended_before(world: World, tmp_path: Path) -> None:
    dump = stall(world)
    assert "run.stalled" not in world.types("cat") and world.trainer("cat").signals == []
    assert world.runner.turn() < 0.1, "it looks again soon"
    dump.ended, dump.path = True, ".attempts/0001/stacks.txt"
    world.turns(3, 0.02)
    assert world.last("cat", "run.stalled").data["stacks"] == ".attempts/0001/stacks.txt"
    assert world.types("cat")[-2:] == ["run.stalled", "run.killed"]
    assert ".attempts/0001/stacks.txt" in (tmp_path / "cat" / "monitor.log").read_text()


def test_no_stacks_is_null_and_a_word_in_the_monitors_log(world: World, tmp_path: Path) -> None:
    dump = stall(world)
    dump.ended, dump.problem = True, "py-spy is not installed"
    world.turns(3, 0.02)
    assert world.last("cat", "run.stalled").data["stacks"] is None
    assert "no stacks: py-spy is not installed" in (tmp_path / "cat" / "monitor.log").read_text()


def test_another_runs_stop_does_not_wait_for_the_dump(world: World) -> None:
    world.start("dog")
    world.train("dog", 1, 2)
    dog = world.trainer("dog")
    dog.log.append("phase.started", {"phase": "download"})  # patient enough for cat's stall
    stall(world)
    world.stop("dog")
    world.turns(3, 0.02)
    assert world.state("dog").state == "stopped" and "run.stalled" not in world.types("cat")


@pytest.mark.parametrize("what", ["moves", "stops", "monitoring"])
def test_who_moves_in_the_last_moment_or_is_to_stop_is_not_stalled(world: World, what: str) -> None:
    dump = stall(world)
    if what == "moves":
        world.step("cat", 6)
    elif what == "stops":
        world.stop("cat")
    else:
        world.person("cat").append("monitoring.changed", {"enabled": False})
    world.turns(3, 0.02)
    assert dump.dropped and "run.stalled" not in world.types("cat")
    assert world.state("cat").state == ("stopped" if what == "stops" else "running")


def test_a_trainer_that_ends_meanwhile_is_no_stall(world: World) -> None:
    dump = stall(world)
    world.trainer("cat").exit(1)
    world.turns(3, 0.02)
    assert dump.dropped and world.types("cat")[-1] == "run.failed"
