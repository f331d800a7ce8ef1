"""Stall rules: pure functions first, then a night in the loop on a fake machine."""

from __future__ import annotations

import fcntl
import time
from dataclasses import replace
from pathlib import Path

import pytest

from fluxcore.log import Event
from runner.executor import Activity
from runner.stalls import BUSY_SECONDS, QUIET, Window, judge
from runner.watch import Watch
from tests.fakes import FakeGpus, World

STEPPING = Window(
    phase="train", steps=50, since_progress=0.0, longest_step=2.0, stall_seconds=300, sample_seconds=5,
)  # fmt: skip


def verdict(window: Window, **changes: object) -> tuple[str | None, bool]:
    found = judge(replace(window, **changes))  # type: ignore[arg-type]
    return found.verdict, found.certain


def test_a_moving_training_is_well_at_any_utilisation() -> None:
    assert verdict(STEPPING, since_progress=20.0) == (None, False)
    assert verdict(STEPPING, since_progress=3.0, gpu_idle_seconds=3.0) == (None, False)
    assert verdict(STEPPING, since_progress=2.0, gpu_idle_seconds=4000.0) == (None, False), "it steps on the CPU"


def test_gpu_idle_needs_five_minutes_of_zero_and_no_progress() -> None:
    assert verdict(STEPPING, since_progress=304.0, gpu_idle_seconds=300.0) == ("gpu_idle", True)
    assert verdict(STEPPING, since_progress=302.0, gpu_idle_seconds=299.0) == ("gpu_idle", False)
    assert verdict(STEPPING, since_progress=160.0, gpu_idle_seconds=155.0) == ("gpu_idle", False)


def test_no_progress_at_full_utilisation_or_without_readings() -> None:
    assert verdict(STEPPING, since_progress=299.0) == ("no_progress", False)
    assert verdict(STEPPING, since_progress=300.0) == ("no_progress", True)


@pytest.mark.parametrize(("longest", "limit"), [(2, 300), (60, 300), (100, 500), (200, 900), (4000, 900)])
def test_no_progress_waits_for_five_of_the_longest_steps_within_bounds(longest: float, limit: float) -> None:
    assert verdict(STEPPING, longest_step=longest, since_progress=limit - 1)[1] is False
    assert verdict(STEPPING, longest_step=longest, since_progress=limit) == ("no_progress", True)


def test_long_steps_with_an_idle_gpu_are_gpu_idle_only_at_a_full_limit_of_zero() -> None:
    slow = replace(STEPPING, longest_step=100.0)
    assert verdict(slow, since_progress=301.0, gpu_idle_seconds=150.0)[1] is False


PHASES = ("", "download", "load", "cache", "sample", "save", "export", "a.later.versions")
LOADING = Window(
    phase="load", steps=0, since_progress=0.0, longest_step=0.0, stall_seconds=300, sample_seconds=5, since_life=0.0
)


@pytest.mark.parametrize("phase", PHASES)
def test_elsewhere_it_is_quiet_that_counts_and_no_gpu_rule(phase: str) -> None:
    limit = 300 * QUIET
    assert limit >= 300
    early = replace(LOADING, phase=phase)
    assert verdict(early, since_progress=limit - 1, since_life=limit - 1, gpu_idle_seconds=5000.0)[1] is False
    assert verdict(early, since_progress=limit, since_life=limit) == ("silent", True)
    assert verdict(replace(early, steps=9), since_progress=limit, since_life=limit) == ("no_progress", True)
    assert verdict(early, since_progress=7000.0, since_life=3.0, gpu_idle_seconds=7000.0)[1] is False


def test_life_without_progress_is_not_enough_for_ever() -> None:
    assert verdict(LOADING, since_progress=BUSY_SECONDS - 1, since_life=2.0) == ("silent", False)
    assert verdict(LOADING, since_progress=BUSY_SECONDS, since_life=2.0) == ("silent", True)
    patient = replace(LOADING, stall_seconds=3600)
    assert verdict(patient, since_progress=4 * 3600 - 1, since_life=2.0)[1] is False
    assert verdict(patient, since_progress=4 * 3600, since_life=2.0)[1] is True


@pytest.mark.parametrize(("longest", "limit"), [(1, 1200), (200, 1200), (1000, 5000)])
def test_a_phase_that_comes_again_has_five_of_its_longest_waits(longest: float, limit: float) -> None:
    sampling = replace(LOADING, phase="sample", steps=50, longest_wait=longest)
    assert verdict(sampling, since_progress=limit - 1, since_life=1.0)[1] is False
    assert verdict(sampling, since_progress=limit, since_life=1.0) == ("no_progress", True)
    first = replace(sampling, steps=0)
    assert verdict(first, since_progress=limit, since_life=1.0)[1] is False, (
        "a second file may be larger than the first"
    )


def test_where_no_process_can_be_looked_at() -> None:
    unseen = replace(LOADING, since_life=None)
    assert verdict(unseen, since_progress=1199.0)[1] is False
    assert verdict(unseen, since_progress=1200.0) == ("silent", True)


def test_the_first_step_may_take_twice_as_long() -> None:
    waiting = replace(STEPPING, steps=0, longest_step=0.0)
    assert verdict(waiting, since_progress=599.0)[1] is False
    assert verdict(waiting, since_progress=600.0) == ("silent", True)


USED = Activity(cpu_seconds=100.0, rss_bytes=1 << 30, read_bytes=1 << 30, write_bytes=0)


@pytest.mark.parametrize(
    ("each", "alive"),
    [
        ({}, False),
        ({"cpu_seconds": 0.05}, False),
        ({"cpu_seconds": 0.2}, True),
        ({"read_bytes": 100_000}, False),
        ({"read_bytes": 1 << 20}, True),
        ({"write_bytes": 600_000}, True),
        ({"rss_bytes": 1 << 20}, True),
        ({"rss_bytes": -(1 << 20)}, False),
    ],
)
def test_signs_of_life(each: dict[str, float], alive: bool) -> None:
    watch, now = Watch(), USED
    watch.event(Event("", "cat", "phase.started", "trainer", "trainer-1-a", 1, {"phase": "load"}))
    for turn in range(120):
        watch.look(float(turn))
        if turn % 5 == 0:
            now = replace(now, **{name: getattr(now, name) + more for name, more in each.items()})
            watch.activity(now)
    since = watch.window(300, 5).since_life
    assert since is not None and (since < 15) == alive


def test_a_worker_that_ends_is_no_sign_of_life_and_hides_none() -> None:
    watch = Watch()
    for turn in range(100):
        watch.look(float(turn))
        watch.activity(replace(USED, cpu_seconds=100.0 if turn < 50 else 40.0 + turn))
    since = watch.window(300, 5).since_life
    assert since is not None and since < 3


def test_a_machine_that_is_frozen_again_and_again_does_not_add_up_to_a_stall() -> None:
    watch = Watch()
    for turn in range(100):
        watch.look(turn * 60.0)
    assert watch.clock < 100


def test_evidence_has_every_input() -> None:
    evidence = judge(replace(STEPPING, since_progress=300.0, details={"cpu_seconds": 1.5})).evidence
    assert evidence["limit_seconds"] == 300 and evidence["longest_step_seconds"] == 2.0
    assert evidence["gpu_idle_seconds"] is None and evidence["cpu_seconds"] == 1.5


# -- in the loop ------------------------------------------------------------------------------------------------------


def test_an_idle_gpu_is_found_killed_and_annotated_with_the_checkpoint(tmp_path: Path) -> None:
    world = World(tmp_path, gpus=FakeGpus(a=97))
    world.start("cat", auto_resume=0)
    world.train("cat", 1, 20)
    saved = world.checkpoint("cat", 20)
    world.gpus.uses["a"] = 0
    world.turns(290, 1.0)
    assert world.types("cat", "stall.", "run.stalled") == ["stall.suspected"]
    world.turns(20, 1.0)
    stalled = world.last("cat", "run.stalled").data
    assert stalled["verdict"] == "gpu_idle" and stalled["resume_checkpoint"] == saved and stalled["resume_step"] == 20
    assert stalled["evidence"]["gpu_idle_seconds"] >= 300
    assert world.types("cat")[-2:] == ["run.stalled", "run.killed"]
    assert world.last("cat", "run.killed").data["resume_checkpoint"] == saved
    assert not world.trainer("cat").alive


def test_a_verdict_that_cannot_be_written_kills_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path)
    world.start("cat", auto_resume=0)
    world.train("cat", 1, 5)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(world.runner.runs["cat"]._log, "append", full)
    world.turns(320, 1.0)
    assert world.trainer("cat").alive
    monkeypatch.undo()
    world.turns(3, 1.0)
    assert world.types("cat")[-2:] == ["run.stalled", "run.killed"]


def test_a_hang_at_full_load_is_no_progress(tmp_path: Path) -> None:
    world = World(tmp_path, gpus=FakeGpus(a=100))
    world.start("cat", auto_resume=0)
    world.train("cat", 1, 20)
    world.turns(305, 1.0)
    assert world.last("cat", "run.stalled").data["verdict"] == "no_progress"


def test_an_unknown_utilisation_is_never_zero(tmp_path: Path) -> None:
    world = World(tmp_path, gpus=FakeGpus(a=None))
    world.start("cat", auto_resume=0)
    world.train("cat", 1, 20)
    world.turns(305, 1.0)
    assert world.last("cat", "run.stalled").data["verdict"] == "no_progress"
    assert world.last("cat", "run.stalled").data["evidence"]["gpu_idle_seconds"] is None


def test_a_suspicion_clears_by_itself(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.start("cat")
    world.train("cat", 1, 5)
    world.turns(200, 1.0)
    assert world.state("cat").suspected
    world.step("cat", 6)
    world.turns(3, 1.0)
    assert world.types("cat", "stall.") == ["stall.suspected", "stall.cleared"]
    assert world.state("cat").suspected is None


def test_a_repeated_step_or_a_heartbeat_is_no_progress(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.start("cat", auto_resume=0)
    world.train("cat", 1, 5)
    for _ in range(310):
        world.step("cat", 5)
        world.trainer("cat").cpu_seconds += 1
        world.turns(1, 1.0)
    assert "run.stalled" in world.types("cat")


def test_monitoring_off_means_no_verdict_but_samples_and_on_again_a_fresh_limit(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.start("cat")
    world.train("cat", 1, 5)
    world.person("cat").append("monitoring.changed", {"enabled": False})
    world.turns(400, 1.0)
    assert world.types("cat", "stall.", "run.stalled") == []
    assert not (tmp_path / "cat" / "monitor.pid").exists()
    assert len(world.types("cat", "host.sampled")) > 75
    world.person("cat").append("monitoring.changed", {"enabled": True})
    world.turns(140, 1.0)
    assert world.types("cat", "stall.", "run.stalled") == []
    world.turns(170, 1.0)
    assert "run.stalled" in world.types("cat")


def test_a_suspended_machine_is_not_a_stall(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.start("cat")
    world.train("cat", 1, 5)
    world.turns(1, 8 * 3600.0)
    world.turns(30, 1.0)
    assert world.types("cat", "stall.", "run.stalled") == []


def test_a_new_runner_gives_the_trainer_its_limit_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.start("cat")
    world.train("cat", 1, 5)
    world.turns(250, 1.0)
    world.new_runner()
    world.turns(200, 1.0)
    assert "run.stalled" not in world.types("cat")
    world.turns(110, 1.0)
    assert world.types("cat").count("run.stalled") == 1


def test_a_trainer_stopped_inside_its_append_holds_up_nobody(tmp_path: Path) -> None:
    """It has the log's lock for as long as it is stopped: the runner must not wait for it with each of its samples."""
    world = World(tmp_path)
    world.start("cat", stall_seconds=100, sample_gpu_seconds=1)
    with open(tmp_path / "cat" / "events.jsonl", "ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        started = time.monotonic()
        world.turns(10, 1.0)
        assert time.monotonic() - started < 1.0
    assert len(world.types("cat", "host.sampled")) >= 10


def test_steps_from_before_the_announcement_make_a_late_stall_no_progress(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.make("cat", stall_seconds=20, stop_grace_seconds=1)
    world.ask("cat")
    world.runner.read_logs([])
    world.runner.start_waiting([world.runner.runs["cat"]])  # the runner dies behind it, and the trainer trains on
    assert world.types("cat") == ["run.requested", "run.spawning"]
    world.trainer("cat").log.append("phase.started", {"phase": "train"})
    for step in range(1, 6):
        world.step("cat", step)
    world.new_runner()
    world.turns(25, 1.0)
    assert world.last("cat", "run.stalled").data["verdict"] == "no_progress"


def test_bytes_moved_keep_a_download_alive_but_not_a_training(tmp_path: Path) -> None:
    world = World(tmp_path)
    trainer = world.start("cat", stall_seconds=60, auto_resume=0)
    trainer.log.append("phase.started", {"phase": "download"})
    for _ in range(120):
        trainer.moved_bytes += 3 << 20
        world.turns(1, 5.0)
    assert world.types("cat", "stall.", "run.stalled") == []
    world.train("cat", 1, 3)
    for _ in range(14):
        trainer.moved_bytes += 3 << 20
        world.turns(1, 5.0)
    assert "run.stalled" in world.types("cat")


def test_the_kill_of_a_stalled_run_goes_on_under_a_new_runner(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.executor.ignore_term = True
    world.start("cat", stop_grace_seconds=20, auto_resume=0)
    world.train("cat", 1, 5)
    world.turns(305, 1.0)
    assert world.types("cat")[-1] == "run.stalled" and world.trainer("cat").alive
    world.new_runner()
    world.turns(25, 1.0)
    assert world.types("cat")[-2:] == ["run.stalled", "run.killed"]
    assert world.last("cat", "run.killed").data["signals"] == ["SIGCONT", "SIGTERM", "SIGKILL"]
