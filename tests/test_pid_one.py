"""The runner as the first process of a container without init: nothing reaps and signals have no default there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxcore.runs import request_start, request_stop
from fluxcore.runs.processes import descendants, process_table
from fluxcore.runs.supervision import runner_alive
from tests.test_runner_process import ROOT, Place, place  # noqa: F401  a fixture
from tests.test_shim import wait_until

UNSHARE = ["unshare", *([] if os.getuid() == 0 else ["--map-root-user"]), "--fork", "--pid", "--mount-proc"]


def may_unshare() -> bool:
    try:
        return subprocess.run([*UNSHARE, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


pytestmark = pytest.mark.skipif(not may_unshare(), reason="no PID namespace of one's own here")


@pytest.fixture
def runner(place: Place) -> Iterator[int]:  # noqa: F811
    """The pid, as seen from outside, of a runner that is process 1 in its own namespace."""
    command = [*UNSHARE, "--kill-child", sys.executable, "-m", "runner", "--outputs", str(place.outputs)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as outside:
        try:
            wait_until((place.outputs / ".runner.json").exists)
            pid = next(row.pid for row in process_table().values() if row.parent == outside.pid)
            assert Path(f"/proc/{pid}/status").read_text().split("NSpid:")[1].split("\n")[0].split()[-1] == "1"
            yield pid
        finally:
            outside.kill()


def zombies(of: int) -> list[int]:
    table = process_table()
    return [pid for pid in descendants({of}, table) if table[pid].zombie]


def test_exit_codes_are_known_and_every_orphan_is_reaped(place: Place, runner: int) -> None:  # noqa: F811
    place.make("cat", {"auto_resume": 0}, steps=10, exit_at=5, exit_code=3, say="training failed: b.png is torn")
    request_start(place.outputs, "cat", "cli")
    state = place.ended("cat")
    assert (state.state, state.reason) == ("failed", "bad_data") and "b.png is torn" in state.hint

    place.make("dog", {"stop_grace_seconds": 0.5}, steps=10_000, ignore_term=True, children=["setsid", "double"])
    request_start(place.outputs, "dog", "cli")
    place.until("dog", lambda state: state.step >= 3)
    request_stop(place.outputs, "dog", "cli")
    assert place.ended("dog").state == "stopped" and place.trainers() == []

    place.make("eel", {"auto_resume": 0}, steps=10_000)
    request_start(place.outputs, "eel", "cli")
    place.until("eel", lambda state: state.step >= 3)
    (trainer,) = place.trainers()
    shim = process_table()[trainer].parent
    os.kill(shim, signal.SIGKILL)  # its trainer is process 1's child from here on
    wait_until(lambda: process_table()[trainer].parent == runner)
    os.kill(trainer, signal.SIGKILL)
    assert place.ended("eel").reason == "lost"
    wait_until(lambda: not zombies(runner))
    assert runner_alive(place.outputs) is None, "seen from another namespace its pid says nothing"


def test_a_stop_of_the_container_saves_and_ends_in_good_order(place: Place, runner: int) -> None:  # noqa: F811
    folder = place.make("cat", steps=10_000)
    request_start(place.outputs, "cat", "cli")
    place.until("cat", lambda state: state.step >= 3)
    os.kill(runner, signal.SIGTERM)  # the kernel drops it where no handler is set
    wait_until(lambda: (row := process_table().get(runner)) is None or row.zombie, 30)
    wait_until(lambda: place.trainers() == [])
    state = place.state("cat")
    assert (state.state, state.reason) == ("stopped", "shutdown") and (
        folder.path / str(state.resume_checkpoint)
    ).is_dir()
    assert not (place.outputs / ".runner.json").exists(), "it left in good order"
