"""The runner as a process: one per folder, killed at any point, trainers unharmed, exits known."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxcore.errors import UserError
from fluxcore.log import LogReader
from fluxcore.runs import (
    RunError,
    request_resume,
    request_start,
    request_stop,
)
from fluxcore.runs.supervision import ensure_runner, observed_state, runner_alive, trainer_alive
from runner.instance import Instance
from tests.place import STUB, Place, wait_until
from tests.test_gpus import compile_driver

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("FLUXGYM_TRAINER", STUB)
    monkeypatch.delenv("FLUXGYM_CPU_SLOTS", raising=False)
    made = Place(tmp_path / "outputs")
    made.outputs.mkdir()
    yield made
    made.clear()


def test_start_to_completion_and_the_runner_leaves_nothing_behind(place: Place) -> None:
    runner = ensure_runner(place.outputs)
    folder = place.make("cat", steps=20, save_every=5)
    request_start(place.outputs, "cat", "cli")
    state = place.ended("cat")
    assert state.state == "completed" and state.step == 20
    samples = [event.data for event in LogReader(folder.events).read_new() if event.type == "host.sampled"]
    assert max(sample["rss_gib"] or 0 for sample in samples) > 0.001
    assert "attempt 1 started" in folder.monitor_log.read_text()
    assert json.loads(folder.ui_state.read_text())["status"] in ("running", "completed")
    os.kill(runner.pid, signal.SIGTERM)
    wait_until(lambda: len(LogReader(place.outputs / ".events.jsonl").read_new()) == 2)
    installation = LogReader(place.outputs / ".events.jsonl").read_new()
    assert [(event.type, event.run) for event in installation] == [("runner.started", ""), ("runner.ended", "")]
    assert not (place.outputs / ".runner.json").exists() and not folder.monitor_pid.exists()


def test_a_second_runner_names_the_first_and_ends(place: Place) -> None:
    runner = ensure_runner(place.outputs)
    second = subprocess.run(
        [sys.executable, "-m", "runner", "--outputs", str(place.outputs)], cwd=ROOT, capture_output=True, text=True
    )
    assert second.returncode == 64 and second.stdout == ""
    assert second.stderr.strip().count("\n") == 0 and str(runner.pid) in second.stderr


def test_wrong_usage_and_an_unusable_folder_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments in (["--outputs", str(tmp_path / "file" / "x")], ["--nonsense"]):
        ended = subprocess.run([sys.executable, "-m", "runner", *arguments], cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 64 and "Traceback" not in ended.stderr and ended.stderr.strip().count("\n") == 0


def test_a_copy_of_an_outputs_folder_is_not_served_by_the_originals_runner(tmp_path: Path) -> None:
    first, copy, moved = tmp_path / "first", tmp_path / "copy", tmp_path / "moved"
    first.mkdir()
    with Instance(first) as instance:
        shutil.copytree(first, copy)
        assert runner_alive(copy) is None, "its .runner.json is of another folder"
        with Instance(copy):
            assert runner_alive(copy) is not None and runner_alive(first) is not None
        (tmp_path / "link").symlink_to(first)
        assert runner_alive(tmp_path / "link") is not None
        about = json.loads((first / ".runner.json").read_text())
        (first / ".runner.json").write_text(json.dumps({**about, "lock_inode": 1}))
        assert runner_alive(first) is not None, "a disk that numbers its files anew"
        (first / ".runner.json").write_text(json.dumps(instance.about))
        assert runner_alive(first) is not None, "an older runner's file"
        (first / ".runner.json").write_text(json.dumps(about))
        first.rename(moved)
        assert runner_alive(moved) is not None, "it serves the folder under its new name"
        moved.rename(first)


def test_racing_callers_get_the_same_runner(place: Place) -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(ensure_runner(place.outputs).pid)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 5 and len(set(found)) == 1


def test_asking_while_the_runner_leaves_gets_the_next_one(place: Place) -> None:
    first = ensure_runner(place.outputs)
    os.kill(first.pid, signal.SIGTERM)
    wait_until(lambda: not (place.outputs / ".runner.json").exists())
    second = ensure_runner(place.outputs)
    assert second.pid != first.pid and runner_alive(place.outputs) == second


def test_kill_9_of_the_runner_in_mid_run_and_the_trainer_goes_on_and_is_adopted(place: Place) -> None:
    ensure_runner(place.outputs)
    place.make("cat", steps=100, step_seconds=0.03)
    request_start(place.outputs, "cat", "cli")
    before = place.until("cat", lambda state: state.step >= 3)
    place.kill_runner()
    assert trainer_alive(before)
    assert observed_state(place.state("cat"), place.outputs) == "running"
    ensure_runner(place.outputs)
    state = place.ended("cat")
    assert state.state == "completed" and len(state.attempts) == 1 and state.step == 100
    assert place.types("cat").count("run.adopted") == 1


def test_an_exit_while_no_runner_lived_is_known(place: Place) -> None:
    ensure_runner(place.outputs)
    place.make("cat", steps=100, exit_at=30, exit_code=5, say="the loss is not a number", step_seconds=0.02)
    request_start(place.outputs, "cat", "cli")
    state = place.until("cat", lambda state: state.step >= 3)
    place.kill_runner()
    wait_until(lambda: not trainer_alive(state))
    assert observed_state(place.state("cat"), place.outputs) == "lost"
    ensure_runner(place.outputs)
    state = place.ended("cat")
    assert (state.state, state.reason) == ("failed", "nan_loss") and "not a number" in state.tail


@pytest.mark.parametrize("_", range(6))
def test_kill_9_around_the_spawn_neither_loses_the_request_nor_doubles_it(place: Place, _: int) -> None:
    ensure_runner(place.outputs)
    folder = place.make("cat", steps=60, step_seconds=0.02)
    request_start(place.outputs, "cat", "cli")
    # Between the intent and the start, as early as it can be seen from here.
    log = LogReader(folder.events)
    wait_until(lambda: any(event.type == "run.spawning" for event in log.read_new()))
    place.kill_runner()
    ensure_runner(place.outputs)
    state = place.ended("cat")
    assert state.state == "completed" and len(state.attempts) == 1
    assert folder.train_log.read_text().count("stub trainer: ready") == 1, "one trainer and no other"


def test_stop_of_a_deaf_tree(place: Place) -> None:
    ensure_runner(place.outputs)
    config = {"stop_grace_seconds": 0.5}
    place.make("cat", config, steps=10_000, save_every=5, ignore_term=True, children=["child", "setsid", "double"])
    request_start(place.outputs, "cat", "cli")
    place.until("cat", lambda state: state.step >= 6)
    assert len(place.trainers()) >= 4
    request_stop(place.outputs, "cat", "cli")
    state = place.ended("cat")
    assert place.trainers() == [] and state.state == "stopped"
    assert place.types("cat")[-2:] == ["run.killed", "run.stopped"]
    assert state.resume_checkpoint and state.resume_step == int(state.resume_checkpoint[-14:-6])


def test_stop_saves_and_resume_goes_on(place: Place) -> None:
    ensure_runner(place.outputs)
    place.make("cat", steps=80, step_seconds=0.02)
    request_start(place.outputs, "cat", "cli")
    place.until("cat", lambda state: state.step >= 5)
    request_stop(place.outputs, "cat", "cli")
    stopped = place.ended("cat")
    assert stopped.state == "stopped" and stopped.resume_step == stopped.step
    with pytest.raises(RunError):
        request_stop(place.outputs, "cat", "cli")
    request_resume(place.outputs, "cat", "cli")
    state = place.until("cat", lambda state: state.state == "completed")
    assert state.attempts[1].first_step == stopped.step + 1


def test_a_hang_is_found_killed_explained_and_resumed(place: Place) -> None:
    ensure_runner(place.outputs)
    config = {"stall_seconds": 1.5, "stop_grace_seconds": 1, "auto_resume": 1}
    place.make("cat", config, steps=40, save_every=5, spin_at=12, attempts={"2": {"spin_at": None}})
    request_start(place.outputs, "cat", "cli")
    state = place.until("cat", lambda state: state.state == "completed", 40)
    assert state.stalls == 1 and state.attempts[1].resume_step == 10
    assert place.types("cat")[3:5] == ["run.stalled", "run.killed"]


def test_an_idle_gpu_by_the_driver_is_the_verdict(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gpus").write_text("GPU-a 90 1024 24576 300000 ok\n")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(compile_driver(tmp_path)))
    monkeypatch.setenv("FAKE_NVML", str(tmp_path / "gpus"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    ensure_runner(place.outputs)
    place.make("cat", {"stall_seconds": 4, "sample_gpu_seconds": 0.5, "auto_resume": 0}, steps=40, hang_at=20)
    request_start(place.outputs, "cat", "cli")
    state = place.until("cat", lambda state: state.step >= 20)
    assert state.attempts[0].gpus == ["GPU-a"] and state.gpus["GPU-a"]["utilization_percent"] == 90
    (tmp_path / "gpus").write_text("GPU-a 0 1024 24576 30000 ok\n")
    state = place.until("cat", lambda state: state.attempts[0].killed)
    assert state.verdict == "gpu_idle" and state.evidence["gpus"][0]["utilization_percent"] == 0


def test_a_trainer_killed_by_someone_else(place: Place) -> None:
    ensure_runner(place.outputs)
    place.make("cat", {"auto_resume": 0}, steps=10_000)
    request_start(place.outputs, "cat", "cli")
    state = place.until("cat", lambda state: state.step >= 3)
    os.kill(state.attempts[0].pid, signal.SIGKILL)
    state = place.ended("cat")
    assert (state.state, state.reason) == ("failed", "killed")


def test_term_ends_the_runner_and_leaves_trainers_running(place: Place) -> None:
    runner = ensure_runner(place.outputs)
    place.make("cat", steps=150, step_seconds=0.02)
    request_start(place.outputs, "cat", "cli")
    state = place.until("cat", lambda state: state.step >= 3)
    os.kill(runner.pid, signal.SIGTERM)
    wait_until(lambda: runner_alive(place.outputs) is None)
    assert trainer_alive(state)
    ensure_runner(place.outputs)
    assert place.ended("cat").state == "completed"


def test_the_lock_is_not_inherited_by_trainers(place: Place) -> None:
    ensure_runner(place.outputs)
    place.make("cat", steps=10_000)
    request_start(place.outputs, "cat", "cli")
    state = place.until("cat", lambda state: state.step >= 3)
    for pid in (state.attempts[0].pid, state.attempts[0].shim_pid):
        targets = {os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")}
        assert not any(".runner" in target for target in targets), targets


def test_no_torch_and_no_streamlit_in_the_runner() -> None:
    heavy = ("torch", "streamlit", "duckdb", "pandas", "numpy", "fluxcore.training", "fluxcore.history")
    code = f"import runner.__main__, runner.loop, sys; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_a_runner_that_can_not_say_who_it_is_ends_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("runner.instance.write_atomic", full)
        with pytest.raises(UserError, match="No space left"):
            Instance(tmp_path)
    with Instance(tmp_path) as instance:  # the lock went with it
        (tmp_path / ".runner.json").unlink()
        (tmp_path / ".runner.json").mkdir()  # what can't be taken away must not keep it from leaving
        instance.withdraw()


def test_a_full_outputs_folder_gives_the_runner_one_line(tmp_path: Path) -> None:
    limit = "import resource, signal; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
    code = f"{limit}; import sys; from runner.__main__ import main; sys.exit(main(['--outputs', {str(tmp_path)!r}]))"
    done = subprocess.run([sys.executable, "-B", "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert done.returncode == 64 and done.stderr.strip().count("\n") == 0 and "can't be" in done.stderr


def test_a_runner_log_that_can_not_be_opened_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / ".runner.log").mkdir()
    with pytest.raises(RunError, match="runner can't be started"):
        ensure_runner(tmp_path)
