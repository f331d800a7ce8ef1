"""A real runner over a driver of our own: what happens to its runs when a GPU breaks."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from fluxcore.runs import request_start, request_stop
from fluxcore.runs.supervision import ensure_runner
from tests.test_gpus import compile_driver
from tests.test_runner_process import Place, place  # noqa: F401  a fixture
from tests.test_shim import wait_until

GOOD = "GPU-a 90 1024 24576 300000 ok ecc=0\n"


@pytest.fixture
def steer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that steers the driver of the runner to be started; one good GPU at first."""
    file = tmp_path / "gpus"
    write(file, GOOD)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(compile_driver(tmp_path)))
    monkeypatch.setenv("FAKE_NVML", str(file))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return file


def write(file: Path, text: str) -> None:
    aside = file.with_suffix(".tmp")
    aside.write_text(text)
    os.replace(aside, file)  # the driver reads it at any time


def test_a_gpu_that_falls_off_the_bus_explains_the_crash(place: Place, steer: Path) -> None:  # noqa: F811
    ensure_runner(place.outputs)
    place.make(
        "cat", {"sample_gpu_seconds": 0.5}, steps=10_000, exit_at=60, say="CUDA error: unspecified launch failure"
    )
    request_start(place.outputs, "cat", "cli")
    state = place.until("cat", lambda state: state.step >= 5 and state.gpus)
    assert state.gpus["GPU-a"]["problem"] is None
    write(steer, GOOD.replace(" ok", " gone").strip() + " xid=79\n")
    state = place.ended("cat")
    assert (state.state, state.reason) == ("failed", "crash")
    assert "fell off the bus (XID 79)" in state.hint and state.gpus["GPU-a"]["problem"] == "lost"
    request_start(place.outputs, "cat", "cli", restart=True)
    state = place.until("cat", lambda state: state.waiting_for)
    assert "a GPU that works" in state.waiting_for, "and it is not trained on the CPU instead"


def test_a_driver_that_hangs_holds_up_nobody(place: Place, steer: Path) -> None:  # noqa: F811
    runner = ensure_runner(place.outputs)
    place.make("cat", {"sample_gpu_seconds": 0.5}, steps=10_000, save_every=20)
    request_start(place.outputs, "cat", "cli")
    place.until("cat", lambda state: state.step >= 5 and state.gpus)
    write(steer, GOOD.replace(" ok", " hang"))
    state = place.until("cat", lambda state: state.gpus["GPU-a"]["problem"])
    assert (state.gpus["GPU-a"]["problem"], state.gpus["GPU-a"]["utilization_percent"]) == ("no_answer", None)
    begun = time.monotonic()
    request_stop(place.outputs, "cat", "cli")
    assert place.ended("cat").state == "stopped" and time.monotonic() - begun < 4
    write(steer, GOOD)
    request_start(place.outputs, "cat", "cli", restart=True)
    place.until("cat", lambda state: state.gpus["GPU-a"]["problem"] is None)
    write(steer, GOOD.replace(" ok", " hang"))
    place.until("cat", lambda state: state.gpus["GPU-a"]["problem"])
    os.kill(runner.pid, signal.SIGTERM)
    wait_until(lambda: place.runners() == [], 5)


def test_a_hang_leaves_its_stacks(place: Place, steer: Path) -> None:  # noqa: F811
    ensure_runner(place.outputs)
    config = {"stall_seconds": 1.5, "stop_grace_seconds": 1, "auto_resume": 0, "sample_gpu_seconds": 0.5}
    folder = place.make("cat", config, steps=40, spin_at=12)
    request_start(place.outputs, "cat", "cli")
    place.until("cat", lambda state: state.attempts and state.attempts[0].killed, 30)
    assert "main (" in folder.stacks(1).read_text() and "stub_trainer.py" in folder.stacks(1).read_text()
    assert "where its threads stood: .attempts/0001/stacks.txt" in folder.monitor_log.read_text()
