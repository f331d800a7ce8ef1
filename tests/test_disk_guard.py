"""The disk guard: what a training will write, whether it may start, when it is warned and stopped; a real small disk."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fluxcore.config import RunConfig, parse_config
from fluxcore.models.lora_size import FLUX_1, LoraSize, lora_size
from fluxcore.models.registry import BaseModel, find_model
from fluxcore.runs import list_run_folders
from fluxcore.runs.disk import (
    RESERVE_BYTES,
    UNKNOWN_BYTES,
    DiskNeeds,
    disk_verdict,
    estimate_disk,
    needed_bytes,
    start_problem,
)
from tests.fakes import World
from tests.test_events_page import undocumented

GIB, MIB = 2**30, 2**20
BIG = {"base_model": "flux-dev", "network_dim": 64, "max_train_steps": 1000, "save_every_n_epochs": 0}
"""Of rank 64 a state takes 3.9 GiB and a LoRA file 1 GiB."""


# -- the estimate -------------------------------------------------------------------------------------------------------


def test_a_lora_on_flux_has_the_size_that_is_known() -> None:
    assert LoraSize(trained=5_369_856, in_file=8_521_728, layers=494) == FLUX_1
    assert lora_size(find_model("flux-dev")) == lora_size(find_model("flux-schnell")) == FLUX_1
    mini = lora_size(find_model("flux-mini"))
    assert mini is not None and (mini.trained, mini.in_file, mini.layers) == (35_328, 56_064, 52)


def test_what_is_not_known_is_none_and_needs_no_more_than_the_reserve(tmp_path: Path) -> None:
    for model in (BaseModel("x", "X", family="klein"), BaseModel("y", "Y", path=tmp_path)):
        assert lora_size(model) is None
    needs = estimate_disk(RunConfig(), 10, None)
    assert needs == DiskNeeds() and needs.next_save == UNKNOWN_BYTES
    assert start_problem("cat", needs, RESERVE_BYTES + 2 * UNKNOWN_BYTES) == (True, "")
    assert start_problem("cat", needs, RESERVE_BYTES - 1)[0] is False


@pytest.mark.parametrize(
    ("settings", "state", "weights"),
    [
        ({}, 8, 2),
        ({"save_precision": "float"}, 8, 4),
        ({"ema_decay": 0.9}, 4 + 8, 2),
        ({"optimizer_type": "adafactor"}, 0.3, 2),
        ({"enable_checkpointing": False}, 0, 2),
    ],
)
def test_bytes_a_parameter(settings: dict[str, Any], state: float, weights: float) -> None:
    needs = estimate_disk(parse_config({"network_dim": 16, **settings}), 10, FLUX_1)
    held = 4 * FLUX_1.in_file if state else 0  # 32 bits, in sd-scripts' form; moments and averages are by projection
    assert needs.state == pytest.approx(16 * (held + state * FLUX_1.trained), rel=0.03)
    assert needs.weights == pytest.approx(weights * 16 * FLUX_1.in_file, rel=0.03)


def test_sd_scripts_write_smaller_states_and_caches_for_each_picture() -> None:
    """Of rank 4, the original FluxGym's LoRA has 38 MiB. Encodings lie on the disk: T5's are 8 MiB for each caption."""
    config = parse_config({"trainer": "sd-scripts", "network_dim": 4, "base_model": "flux-dev"})
    size = lora_size(find_model("flux-dev"), "sd-scripts")
    assert size is not None and estimate_disk(config, 20, size).weights == pytest.approx(38 * MIB, rel=0.03)
    state = estimate_disk(config, 20, size).state
    assert state == pytest.approx((4 + 2) * 4 * size.trained, rel=0.03), "adamw is adamw8bit there"
    for changed, each in (({}, 8.25), ({"resolution": 1024}, 9), ({"caption_dropout_rate": 0.1}, 0.25)):
        fixed = {"max_train_steps": 1000, "save_every_n_epochs": 0}  # else more pictures would be more steps
        changed_config = config.model_copy(update={**fixed, **changed})
        few, many = (estimate_disk(changed_config, pictures, size).total or 0 for pictures in (100, 200))
        assert (many - few) / MIB == pytest.approx(100 * each, rel=0.02)


def peak(config: RunConfig, pictures: int, needs: DiskNeeds, from_step: int, there: list[tuple[str, int]]) -> int:
    """The most that lies on the disk at any moment of the training beside what lay there before, step by step."""
    total, each = config.total_steps(pictures), config.steps_per_epoch(pictures)
    states, files, most = list(there), 0, 0
    for step in range(from_step + 1, total + 1):
        saves = []
        if step < total:
            if config.save_every_n_epochs and step % (each * config.save_every_n_epochs) == 0:
                saves.append(("epoch", step))
            if config.save_every_n_steps and step % config.save_every_n_steps == 0:
                saves.append(("step", step))
        else:
            saves.append(("final", step))
        for save in saves:
            states.append(save)
            most = max(most, (len(states) - len(there)) * (needs.state or 0) + files * (needs.weights or 0))
            epochs = [state for state in states if state[0] == "epoch"]
            gone = epochs[: -config.save_last_n_epochs_state] if config.save_last_n_epochs_state else []
            late = config.save_last_n_steps_state
            gone += [s for s in states if s[0] == "step" and late and s[1] <= step - late]
            states = [s for s in states if s not in gone or s == states[-1]]
            files += 1
            most = max(most, (len(states) - len(there)) * (needs.state or 0) + files * (needs.weights or 0))
    return most


@pytest.mark.parametrize("resumed", [False, True])
def test_the_total_is_the_peak_of_a_training_played_step_by_step(resumed: bool) -> None:
    count = 0
    for by_epoch, by_step, keep_epochs, keep_steps, steps in itertools.product(
        (0, 1, 3), (0, 4, 7), (0, 1, 2), (0, 1, 8), (5, 30, 60)
    ):
        config = parse_config(
            {
                "num_repeats": 1, "train_batch_size": 1, "max_train_steps": steps, "network_dim": 1,
                "save_every_n_epochs": by_epoch, "save_every_n_steps": by_step, "save_last_n_epochs_state": keep_epochs,
                "save_last_n_steps_state": keep_steps, "sample_every_n_steps": 0,
            }
        )  # fmt: skip
        there, from_step = [("epoch", 5), ("step", 4), ("step", 5)] if resumed else [], 5 if resumed else 0
        if steps <= from_step:
            continue
        needs = estimate_disk(
            config,
            5,
            FLUX_1,
            from_step=from_step,
            epoch_states=sum(kind == "epoch" for kind, _ in there),
            step_states=sum(kind == "step" for kind, _ in there),
        )
        assert needs.total is not None and needs.state
        played = peak(config, 5, needs, from_step, there)
        spare = (2 if resumed else 1) * needs.state + steps * 500
        assert played <= needs.total <= played + spare, (config, played, needs)
        count += 1
    assert count == (162 if resumed else 243)


def test_samples_count_where_they_are_many() -> None:
    prompts = "a cat\n# left out\n\na dog --w 64"
    drawn = parse_config({"resolution": 1024, "sample_every_n_steps": 10, "sample_prompts": prompts, **BIG})
    plain = drawn.model_copy(update={"sample_every_n_steps": 0})
    more = (estimate_disk(drawn, 10, FLUX_1).total or 0) - (estimate_disk(plain, 10, FLUX_1).total or 0)
    assert more == pytest.approx(2 * 101 * 1024 * 1024 * 1.5, rel=0.01)


# -- may it start, must it stop ------------------------------------------------------------------------------------------


def test_a_start_that_can_not_fit_is_a_sentence_with_both_sizes() -> None:
    needs = estimate_disk(parse_config({**BIG, "save_every_n_steps": 100}), 10, FLUX_1)
    may, sentence = start_problem("cat", needs, 20 * GIB)
    assert not may
    assert sentence.startswith("cat needs about 56 GiB on the disk, 20 GiB are free; make room (fluxgym prune)")
    assert start_problem("cat", needs, 58 * GIB)[0] and "tight" in start_problem("cat", needs, 58 * GIB)[1]
    assert start_problem("cat", needs, 200 * GIB) == (True, "")


@pytest.mark.parametrize(
    ("free", "falling", "next_saves", "verdict"),
    [
        (10 * GIB, 0, GIB, "ok"),
        (10 * GIB, 10 * MIB, GIB, "ok"),
        (10 * GIB, 20 * MIB, GIB, "warn"),  # in ten minutes it is full
        (10 * GIB, 700 * MIB, GIB, "stop"),  # before the trainer can save
        (2 * GIB, 0, GIB, "warn"),  # one more checkpoint fits
        (needed_bytes(GIB), 0, GIB, "warn"),
        (needed_bytes(GIB) - 1, 0, GIB, "stop"),
        (RESERVE_BYTES - 1, 0, 0, "stop"),
        (0, 0, 0, "stop"),
    ],
)
def test_the_verdict(free: int, falling: float, next_saves: int, verdict: str) -> None:
    assert disk_verdict(free, falling, next_saves) == verdict


# -- the loop ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    for folder in list_run_folders(tmp_path):
        assert undocumented(folder.path, "runner", "cli") == []


def test_a_run_that_can_not_fit_is_refused_before_anything_is_started(world: World) -> None:
    world.make("cat", **{**BIG, "save_every_n_steps": 10})
    world.ask("cat")
    world.turns()
    assert "needs about" in world.last("cat", "request.refused").data["reason"]
    assert world.executor.spawns == [] and world.state("cat").state == "draft"


def test_a_tight_one_starts_with_a_warning(world: World) -> None:
    world.host.free_gib = 7.0
    world.start("cat", **BIG)
    assert world.types("cat")[-1] == "run.started"
    assert "that is tight" in (world.outputs / "cat" / "monitor.log").read_text()


def test_a_disk_that_tells_nothing_keeps_nobody(world: World) -> None:
    world.host.free_gib = None
    world.start("cat", **{**BIG, "save_every_n_steps": 10})
    world.train("cat", 1, 20)
    assert world.types("cat", "disk.", "stop.") == [] and world.state("cat").state == "running"


def test_a_disk_that_gets_full_is_said_once_and_taken_back(world: World) -> None:
    world.start("cat", **BIG)
    world.host.free_gib = 9.0
    world.turns(30, 1.0)
    low = world.last("cat", "disk.low")
    assert low.data == {"free_gib": 9.0, "needed_gib": pytest.approx(6.23, abs=0.1)} and low.attempt == 1
    assert world.state("cat").disk_low and world.state("cat").state in ("starting", "running")
    world.host.free_gib = 10.5  # hardly more: it must not go to and fro
    world.turns(10, 1.0)
    assert world.types("cat", "disk.") == ["disk.low"]
    world.host.free_gib = 40.0
    world.turns(200, 1.0)
    assert world.types("cat", "disk.") == ["disk.low", "disk.cleared"] and world.state("cat").disk_low is None


def test_what_others_write_is_seen_coming(world: World) -> None:
    world.start("cat", **BIG)
    for _ in range(60):
        world.turns(1, 1.0)
        assert world.host.free_gib is not None
        world.host.free_gib -= 0.1
    assert world.host.free_gib > 40 and world.types("cat", "disk.") == ["disk.low"]


def test_one_large_file_is_no_trend(world: World) -> None:
    """A checkpoint, a model that somebody downloads: what is left is enough."""
    world.start("cat", **BIG)
    world.turns(60, 1.0)
    for _ in range(3):
        assert world.host.free_gib is not None
        world.host.free_gib -= 12.0
        world.turns(60, 1.0)
    assert world.types("cat", "disk.") == []


def test_the_stop_comes_while_the_last_state_still_fits_and_nothing_follows_it(world: World) -> None:
    trainer = world.start("cat", auto_resume=5, **BIG)
    world.train("cat", 1, 5)
    saved = world.checkpoint("cat", 5)
    world.host.free_gib = 5.0
    world.turns(6, 1.0)
    assert [number for _, number in trainer.signals] == [signal.SIGCONT, signal.SIGTERM], "no KILL"
    asked = world.last("cat", "stop.requested")
    assert (asked.source, asked.data["reason"], asked.attempt) == ("runner", "disk_low", 1)
    stopped = world.last("cat", "run.stopped").data
    assert (stopped["reason"], stopped["resume_checkpoint"], stopped["resume_step"]) == ("disk_low", saved, 5)
    assert "fluxgym prune" in stopped["hint"]
    state = world.state("cat")
    assert (state.state, state.reason) == ("stopped", "disk_low") and "fluxgym prune" in state.hint
    types = world.types("cat", "disk.", "stop.", "run.stopped")
    assert types == ["disk.low", "stop.requested", "run.stopped"]
    world.host.free_gib = 100.0
    world.turns(60, 10.0)
    assert len(world.state("cat").attempts) == 1, "only a person resumes it"
    notes = (world.outputs / "cat" / "monitor.log").read_text()
    assert "nearly full" in notes and "stopped (disk_low)" in notes


def test_a_person_who_resumes_on_a_full_disk_is_told_and_on_a_mended_one_served(world: World) -> None:
    world.start("cat", **BIG)
    world.train("cat", 1, 5)
    world.checkpoint("cat", 5)
    world.host.free_gib = 5.0
    world.turns(6, 1.0)
    world.ask("cat", "latest", "resume")
    world.turns(20, 1.0)
    assert "needs about" in world.last("cat", "request.refused").data["reason"]
    assert world.state("cat").state == "stopped" and world.state("cat").stop_reason == "disk_low"
    world.host.free_gib = 50.0
    world.ask("cat", "latest", "resume")
    world.turns(20, 1.0)
    assert world.types("cat")[-1] == "run.started"
    assert world.state("cat").stop_requested is None and world.state("cat").stop_reason == ""


def test_a_runner_killed_in_the_midst_of_the_stop_is_followed_by_one_that_goes_on(world: World) -> None:
    world.executor.ignore_term = True
    trainer = world.start("cat", stop_grace_seconds=30, **BIG)
    world.train("cat", 1, 5)
    world.host.free_gib = 5.0
    world.turns(6, 1.0)
    assert world.types("cat", "stop.") == ["stop.requested"] and trainer.alive
    world.new_runner()
    world.host.free_gib = 100.0  # whatever the disk says now: the stop was asked for
    world.turns(3, 1.0)
    assert trainer.alive and world.state("cat").state == "stopping"
    trainer.exit(143)
    world.turns(3, 1.0)
    assert world.last("cat", "run.stopped").data["reason"] == "disk_low"
    assert world.types("cat", "stop.") == ["stop.requested"]


@pytest.mark.parametrize("first", ["person", "disk"])
def test_a_persons_stop_and_the_disks_are_told_apart(world: World, first: str) -> None:
    world.executor.ignore_term = True
    trainer = world.start("cat", **BIG)
    world.train("cat", 1, 5)
    if first == "person":
        world.stop("cat")
        world.turns(2, 1.0)
        world.host.free_gib = 3.0
        world.turns(12, 1.0)
        assert world.types("cat", "stop.", "disk.") == ["stop.requested"], "it is on its way already"
    else:
        world.host.free_gib = 3.0
        world.turns(6, 1.0)
        world.stop("cat")
    trainer.exit(143)
    world.turns(4, 1.0)
    assert world.last("cat", "run.stopped").data["reason"] == ("user" if first == "person" else "disk_low")
    world.host.free_gib = 100.0
    world.ask("cat", None, "restart")
    world.turns(3, 1.0)
    world.stop("cat")
    world.trainer("cat").exit(143)
    world.turns(4, 1.0)
    assert world.last("cat", "run.stopped").data["reason"] == "user", "the last stop's reason is not this one's"


def test_a_person_who_writes_disk_low_as_a_reason_is_still_a_person(world: World) -> None:
    world.start("cat")
    world.person("cat").append("stop.requested", {"reason": "disk_low"})
    world.turns(3, 1.0)
    assert world.last("cat", "run.stopped").data["reason"] == "user"


def test_a_trainer_that_finds_the_disk_full_while_it_stops_is_stopped_all_the_same(world: World) -> None:
    world.executor.ignore_term = True
    trainer = world.start("cat", auto_resume=5, **BIG)
    world.train("cat", 1, 5)
    saved = world.checkpoint("cat", 5)
    world.host.free_gib = 3.0
    world.turns(6, 1.0)
    trainer.exit(7)
    world.turns(60, 1.0)
    stopped = world.last("cat", "run.stopped").data
    assert (stopped["reason"], stopped["resume_checkpoint"]) == ("disk_low", saved)
    assert len(world.state("cat").attempts) == 1


@pytest.mark.parametrize(
    ("trainer", "says"),
    [("fluxgym", "while its state could still be saved"), ("sd-scripts", "sd-scripts save nothing when stopped")],
)
def test_what_a_stop_saved_is_told_by_the_trainer(trainer: str, says: str, world: World) -> None:
    world.start("cat", trainer=trainer, **BIG)
    world.train("cat", 1, 5)
    world.checkpoint("cat", 5)
    world.host.free_gib = 1.0
    world.turns(6, 1.0)
    world.trainer("cat").exit(143)
    world.turns(6, 1.0)
    stopped = world.last("cat", "run.stopped").data
    assert stopped["reason"] == "disk_low" and says in stopped["hint"], stopped["hint"]
    assert "can be saved" not in (world.outputs / "cat" / "monitor.log").read_text()


def test_without_monitoring_there_is_the_warning_alone(world: World) -> None:
    world.start("cat", **BIG)
    world.train("cat", 1, 5)
    world.person("cat").append("monitoring.changed", {"enabled": False})
    world.host.free_gib = 3.0
    world.turns(20, 1.0)
    assert world.types("cat", "disk.", "stop.") == ["disk.low"] and world.state("cat").state == "running"


def test_a_half_written_checkpoint_is_not_counted_twice(world: World) -> None:
    """While it saves, part of its next checkpoint is on the disk: what is free then says nothing."""
    world.start("cat", **BIG)
    world.train("cat", 1, 5)
    world.trainer("cat").log.append("phase.started", {"phase": "save"})
    world.host.free_gib = 2.0
    world.turns(60, 1.0)
    assert world.types("cat", "disk.", "stop.") == []
    world.trainer("cat").log.append("phase.started", {"phase": "train"})
    world.turns(6, 1.0)
    assert "stop.requested" in world.types("cat", "stop.")


def test_the_saves_of_another_run_neither_take_a_warning_back_nor_repeat_it(world: World) -> None:
    world.cpu_slots = world.runner.cpu_slots = 2
    for name in ("cat", "dog"):
        world.start(name, **BIG)
        world.train(name, 1, 3)
    world.host.free_gib = 14.0  # enough for both, not for two rounds; for one run alone it is plenty
    for _ in range(4):
        for phase in ("train", "save"):
            world.trainer("dog").log.append("phase.started", {"phase": phase})
            world.turns(12, 1.0)
    assert world.types("cat", "disk.") == world.types("dog", "disk.") == ["disk.low"]
    world.trainer("dog").log.append("phase.started", {"phase": "train"})
    world.host.free_gib = 60.0
    world.turns(12, 1.0)
    assert world.types("cat", "disk.") == world.types("dog", "disk.") == ["disk.low", "disk.cleared"]


def test_a_dataset_that_can_not_be_read_does_not_switch_the_guard_off(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.cpu_slots = world.runner.cpu_slots = 2

    def read(folder: Path) -> list[Path]:
        if folder.parent.name == "cat":
            raise PermissionError(13, "Permission denied", str(folder))
        return []

    monkeypatch.setattr("runner.disk.list_pictures", read)
    for name in ("cat", "dog"):
        world.start(name, **BIG)
        world.train(name, 1, 3)
    world.host.free_gib = 3.0
    world.turns(12, 1.0)
    assert "disk.low" in world.types("dog", "disk.") and "disk.low" in world.types("cat", "disk.")


def test_of_two_runs_the_younger_is_stopped_and_then_the_other_has_room(world: World) -> None:
    world.cpu_slots = world.runner.cpu_slots = 2
    world.start("old", **BIG)
    world.clock.advance(5)
    world.start("young", **BIG)
    for name in ("old", "young"):
        world.train(name, 1, 3)
    world.trainer("young").ignores_term = True
    world.host.free_gib = 10.0  # for one checkpoint, not for two
    world.turns(30, 1.0)
    assert [world.state(name).state for name in ("old", "young")] == ["running", "stopping"], "it saves its last state"
    world.trainer("young").exit(143)
    world.turns(30, 1.0)
    assert world.last("young", "run.stopped").data["reason"] == "disk_low"
    assert world.state("old").state == "running" and world.types("old", "disk.", "stop.")[:1] == ["disk.low"]


def test_after_the_first_checkpoint_its_real_size_counts(world: World) -> None:
    """Of a model that nothing is known about beforehand."""
    world.start("cat", base_model="no-such-model", **{key: value for key, value in BIG.items() if key != "base_model"})
    world.train("cat", 1, 5)
    world.host.free_gib = 3.0
    world.turns(10, 1.0)
    assert world.types("cat", "disk.") == []
    for kind, path in (("state", "cat-step00000005-state"), ("weights", "cat-step00000005.safetensors")):
        data = {"step": 5, "epoch": 1, "path": path, "kind": kind, "bytes": 2 * GIB}
        world.trainer("cat").log.append("checkpoint.saved", data)
    world.turns(10, 1.0)
    assert world.types("cat", "disk.", "stop.") == ["disk.low", "stop.requested"]


def test_the_guards_own_trouble_reaches_no_run(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.start("cat")

    def broken(path: Path) -> float:
        raise RuntimeError("nobody foresaw this")

    with monkeypatch.context() as patch:
        patch.setattr(world.host, "disk_free_gib", broken)
        world.turns(10, 1.0)
    world.turns(3, 2.0)
    world.complete("cat")
    assert world.types("cat")[-1] == "run.completed"


def test_a_killed_trainer_under_a_disk_stop_is_lost_and_stays_stopped(world: World) -> None:
    """Runner and machine go down in the midst of it: the next boot must not start it again."""
    trainer = world.start("cat", auto_resume=5, **BIG)
    world.train("cat", 1, 5)
    world.checkpoint("cat", 5)
    trainer.ignores_term = True
    world.host.free_gib = 3.0
    world.turns(6, 1.0)
    trainer.alive = trainer.shim_alive = False
    trainer.record = trainer.record.__class__(**{**vars(trainer.record), "exit": None})
    world.new_runner()
    world.turns(60, 1.0)
    assert world.last("cat", "run.stopped").data["reason"] == "disk_low" and len(world.state("cat").attempts) == 1


# -- a real disk ---------------------------------------------------------------------------------------------------------

SMALL_MIB = 200


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 200 MiB, where this user may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    done = subprocess.run(
        [mount, "-t", "tmpfs", "-o", f"size={SMALL_MIB}m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_real_disk_that_fills_up_stops_the_run_at_a_whole_checkpoint(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runner, shim and trainer as processes; somebody else writes the disk full."""
    from fluxcore.runs import load_run, request_start, resume_choice
    from fluxcore.runs.supervision import ensure_runner
    from tests.test_runner_process import ROOT, Place

    monkeypatch.setenv("FLUXGYM_TRAINER", f"{sys.executable} {ROOT / 'tests' / 'stub_trainer.py'}")
    place = Place(small_disk)
    try:
        folder = place.make(
            "cat", {"max_train_steps": 20_000, "save_every_n_epochs": 0}, steps=20_000, step_seconds=0.02
        )
        ensure_runner(small_disk)
        request_start(small_disk, "cat", "cli")
        place.until("cat", lambda state: state.step > 5)
        with open(small_disk / ".hog", "wb") as hog:
            hog.write(bytes((SMALL_MIB - 60) * MIB))
        state = place.ended("cat")
        assert (state.state, state.reason) == ("stopped", "disk_low"), folder.monitor_log.read_text()
        chosen = resume_choice(folder, load_run(small_disk, "cat")[1])
        assert chosen is not None and chosen.name == state.resume_checkpoint and chosen.step == state.step
        assert shutil.disk_usage(small_disk).free > 0
        request_resume_is_refused(small_disk, place)
    finally:
        for pid in [*place.runners(), *place.trainers()]:
            os.kill(pid, signal.SIGKILL)


def request_resume_is_refused(outputs: Path, place: Any) -> None:
    from fluxcore.runs import request_resume

    request_resume(outputs, "cat", "cli")
    state = place.until("cat", lambda state: state.refusal)
    assert "are free" in state.refusal and state.state == "stopped"
