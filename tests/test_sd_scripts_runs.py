"""Runs with (a fake of) sd-scripts through the real runner and shim: to the end, killed, resumed again and again."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fluxcore.config import ConfigError, resolve_config
from fluxcore.runs import RunFolder, create_run, list_checkpoints, request_resume, request_start, request_stop
from fluxcore.runs.supervision import ensure_runner, trainer_alive
from runner.executor import trainer_command
from tests.sd_scripts_tools import FAKE, settings, use_fake
from tests.stub_trainer import save_state
from tests.test_events_page import undocumented
from tests.test_runner_process import Place
from tests.test_shim import wait_until


class SdPlace(Place):
    """An outputs folder whose runs sd-scripts train: 4 pictures, so 4 steps an epoch."""

    def make(self, name: str, config: dict[str, Any] | None = None, **fake: Any) -> RunFolder:
        values = settings(self.outputs.parent / "models", auto_resume=0, sample_gpu_seconds=0.2, stop_grace_seconds=5)

        def fill(data: Path) -> None:
            for index, picture in enumerate(("a.png", "a.jpg", "b.png", "c.png")):
                Image.new("RGB", (8, 8)).save(data / picture)
                if index == 3:
                    (data / "c.txt").write_text("the third\npicture")

        folder = create_run(self.outputs, resolve_config(values, config or {}, {"lora_name": name}), "cli", fill)
        (folder.path / "fake.json").write_text(json.dumps(fake))
        return folder

    def events(self, name: str, *types: str) -> list[dict[str, Any]]:
        from fluxcore.log import read_events

        return [event.data for event in read_events(self.outputs / name) if event.type in types]

    def states(self, name: str) -> list[tuple[str, int | None]]:
        found = list_checkpoints(RunFolder(self.outputs / name))
        return [(state.name, state.step) for state in found if state.kind == "state" and state.complete]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SdPlace]:
    use_fake(monkeypatch)
    monkeypatch.delenv("FLUXGYM_CPU_SLOTS", raising=False)
    made = SdPlace(tmp_path / "outputs")
    made.outputs.mkdir()
    yield made
    for pid in [*made.runners(), *made.trainers()]:
        os.kill(pid, signal.SIGKILL)


def test_from_the_start_to_the_lora(place: SdPlace) -> None:
    ensure_runner(place.outputs)
    config = {"max_train_epochs": 4, "save_every_n_epochs": 2, "save_every_n_steps": 3, "sample_every_n_steps": 5}
    config |= {"sample_prompts": "r1so cat\nr1so dog", "lr_scheduler": "cosine", "learning_rate": "1e-3"}
    folder = place.make("cat", config)
    request_start(place.outputs, "cat", "cli")
    state = place.ended("cat")
    assert (state.state, state.step, state.total_steps) == ("completed", 16, 16), state.tail
    steps = place.events("cat", "train.step")
    assert [data["step"] for data in steps] == list(range(1, 17)), "each step, none twice"
    assert [data["loss"] for data in steps] == pytest.approx([1 / step for step in range(1, 17)], rel=1e-5)
    assert steps[8]["lr"] == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * 9 / 16)), rel=1e-5)
    assert [name for name, _ in place.states("cat")] == [
        "cat-step00000003-state", "cat-step00000006-state", "cat-000002-state", "cat-step00000009-state",
        "cat-step00000012-state", "cat-step00000015-state", "cat-state",
    ]  # fmt: skip
    saved = {data["path"]: data for data in place.events("cat", "checkpoint.saved")}
    assert saved["cat-000002.safetensors"]["step"] == 8 and len(saved["cat.safetensors"]["sha256"]) == 64
    samples = place.events("cat", "sample.saved")
    assert [(data["step"], data["index"], data["seed"]) for data in samples] == [
        (step, index, 42 + index) for step in (0, 5, 10, 15) for index in (0, 1)
    ]
    assert samples[1]["prompt"] == "r1so dog" and all((folder.path / data["path"]).is_file() for data in samples)
    phases = [data["phase"] for data in place.events("cat", "phase.started")]
    assert phases[:4] == ["load", "cache", "cache", "load"] and {"train", "sample", "save"} <= set(phases)
    assert undocumented(folder.path, "trainer") == []
    assert sorted(path.name for path in folder.dataset.iterdir()) == ["a.jpg", "a.png", "b.png", "c.png", "c.txt"]
    assert not (folder.attempt(1) / "sd-scripts").exists()
    assert "flux_train_network.py" in folder.train_log.read_text() and "steps: 100%" in folder.train_log.read_text()


def test_killed_and_resumed_three_times_it_trains_each_step_once(place: SdPlace) -> None:
    ensure_runner(place.outputs)
    config = {"max_train_epochs": 10, "save_every_n_epochs": 2, "lr_scheduler": "linear", "learning_rate": "1e-3"}
    folder = place.make("cat", config, step_seconds=0.05)
    request_start(place.outputs, "cat", "cli")
    # Two epochs of 4 steps between two states: 8, 16, 24, 32 of 40.
    for attempt, at in enumerate((8, 16, 24), 1):
        wait_until(lambda at=at: any(step == at for _, step in place.states("cat")))  # type: ignore[misc]
        state = place.until("cat", lambda state, at=at: state.step > at)  # type: ignore[misc]
        assert len(state.attempts) == attempt and state.attempt is not None
        os.kill(state.attempt.pid, signal.SIGKILL)
        state = place.ended("cat")
        assert (state.state, state.reason, state.resume_step) == ("failed", "killed", at)
        wait_until(lambda: place.trainers() == [])
        request_resume(place.outputs, "cat", "cli")
        place.until("cat", lambda state, count=attempt: len(state.attempts) > count)  # type: ignore[misc]
    state = place.ended("cat")
    assert (state.state, state.step, len(state.attempts)) == ("completed", 40, 4), state.tail
    begun = [(attempt.resume_step, attempt.first_step) for attempt in state.attempts[1:]]
    assert begun == [(8, 9), (16, 17), (24, 25)]
    assert place.states("cat") == [
        ("cat-000002-state", 8), ("cat-000004-state", 16), ("cat-000006-state", 24), ("cat-000008-state", 32),
        ("cat-state", 40),
    ]  # fmt: skip
    # What the LoRA itself has seen, and its schedule: as many steps as the whole run has, no more.
    for name, step in place.states("cat"):
        counts = [(folder.path / name / file).read_text() for file in ("optimizer.bin", "scheduler.bin")]
        assert counts == [str(step)] * 2
    rates = {data["step"]: data["lr"] for data in place.events("cat", "train.step")}
    assert sorted(rates) == list(range(1, 41))
    assert [rates[step] for step in range(1, 41)] == pytest.approx(
        [1e-3 * (1 - n / 40) for n in range(1, 41)], abs=1e-9
    )


def test_a_resume_from_the_midst_of_an_epoch_ends_at_the_last_step_all_the_same(place: SdPlace) -> None:
    ensure_runner(place.outputs)
    config = {"max_train_steps": 21, "save_every_n_steps": 3, "save_every_n_epochs": 2, "save_last_n_steps_state": 7}
    folder = place.make("cat", config, step_seconds=0.03, attempts={"1": {"hang_at": 7}, "2": {"hang_at": 5}})
    request_start(place.outputs, "cat", "cli")
    # Attempt 1 ends after 7 steps (states at 3 and 6), attempt 2 after 6 + 5 (9), attempt 3 goes from 9 to 21.
    for reached, saved in ((7, 6), (11, 9)):
        place.until("cat", lambda state, reached=reached: state.step == reached)  # type: ignore[misc]
        request_stop(place.outputs, "cat", "cli")
        state = place.until("cat", lambda state: state.state == "stopped")
        assert state.resume_step == saved, "sd-scripts save nothing when they are stopped"
        request_resume(place.outputs, "cat", "cli")
        place.until("cat", lambda state: state.state != "stopped")
    state = place.ended("cat")
    assert (state.state, state.step) == ("completed", 21), state.tail
    assert (folder.path / "cat-state" / "optimizer.bin").read_text() == "21"
    # Epochs began anew at step 9: their ends are steps of no whole epoch. Old step states went as the config says.
    assert place.states("cat") == [
        ("cat-step00000015-state", 15), ("cat-step00000017-state", 17), ("cat-step00000018-state", 18),
        ("cat-state", 21), ("cat-step00000021-state", 21),
    ]  # fmt: skip
    assert "save nothing then" in folder.train_log.read_text()


def test_the_fake_has_the_bug_that_this_works_around(tmp_path: Path) -> None:
    """Left to itself, the second resume trains too long and says too little: else the tests above would show nothing."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(b"")
    (images / "a.txt").write_text("a\n")
    subset = f'[[datasets]]\nbatch_size = 1\n[[datasets.subsets]]\nimage_dir = "{images}"\nnum_repeats = 4\n'
    (tmp_path / "dataset.toml").write_text(subset)

    def train(epochs: int, resume: str = "") -> tuple[int, int]:
        output = tmp_path / "1" / "2" / "3" / "4"
        command = [sys.executable, str(FAKE / "flux_train_network.py"), "--output_dir", str(output)]
        command += ["--output_name", "cat", "--dataset_config", str(tmp_path / "dataset.toml"), "--save_state"]
        command += [
            "--logging_dir",
            str(tmp_path / f"logs-{epochs}"),
            "--learning_rate",
            "1",
            "--save_every_n_epochs",
            "2",
        ]
        for flag in ("--pretrained_model_name_or_path", "--ae", "--clip_l", "--t5xxl"):
            command += [flag, str(tmp_path / "dataset.toml")]
        resumed = ["--resume", str(output / resume)] if resume else []
        subprocess.run([*command, "--max_train_epochs", str(epochs), *resumed], check=True, capture_output=True)
        state = json.loads((output / "cat-state" / "train_state.json").read_text())
        return state["current_step"], int((output / "cat-state" / "optimizer.bin").read_text())

    assert train(4) == (16, 16)
    assert train(6, "cat-state") == (8, 24), "the first resume trains what is left, and counts from 0"
    assert train(8, "cat-state")[1] == 48, "the second one trains 24 steps instead of 8"


@pytest.mark.parametrize(
    ("fake", "reason", "words"),
    [
        ({"oom_at": 6}, "oom_gpu", "CUDA out of memory"),
        ({"nan_at": 8}, "nan_loss", "the loss is nan at step 8"),
        ({"die_at": 8}, "killed", ""),
        ({"say": "FileNotFoundError: [Errno 2] No such file: 'spiece.model'"}, "bad_config", "spiece.model"),
        ({"say": "ValueError: oh", "exit_code": 1}, "crash", "ValueError: oh"),
    ],
)
def test_how_it_ends_badly_is_explained(place: SdPlace, fake: dict[str, Any], reason: str, words: str) -> None:
    ensure_runner(place.outputs)
    place.make("cat", {"max_train_epochs": 4, "save_every_n_epochs": 1}, step_seconds=0.02, **fake)
    request_start(place.outputs, "cat", "cli")
    state = place.ended("cat")
    assert (state.state, state.reason) == ("failed", reason), state.tail
    assert words in state.tail and state.hint
    assert state.resume_step == (None if "say" in fake else 4), "not the half state of step 8, and none with a NaN"
    wait_until(lambda: place.trainers() == [])


def test_a_hang_is_found_and_resumed_by_itself(place: SdPlace) -> None:
    ensure_runner(place.outputs)
    config = {"max_train_epochs": 4, "save_every_n_epochs": 1, "auto_resume": 1, "stall_seconds": 1.5}
    place.make(
        "cat", {**config, "stop_grace_seconds": 0.5}, hang_at=6, ignore_term=True, attempts={"2": {"hang_at": None}}
    )
    request_start(place.outputs, "cat", "cli")
    state = place.until("cat", lambda state: state.state == "completed", 40)
    assert state.stalls == 1 and state.attempts[1].resume_step == 4 and state.step == 16


def test_without_tensorboard_it_trains_and_resumes_all_the_same(place: SdPlace) -> None:
    ensure_runner(place.outputs)
    place.make("cat", {"max_train_epochs": 3, "save_every_n_epochs": 1}, no_tensorboard=True, step_seconds=0.02)
    request_start(place.outputs, "cat", "cli")
    state = place.ended("cat")
    assert (state.state, state.step) == ("completed", 12), state.tail
    steps = place.events("cat", "train.step")
    assert steps[-1]["step"] == 12 and all(data["lr"] is None for data in steps)


def test_a_runner_killed_in_mid_run_adopts_it(place: SdPlace) -> None:
    ensure_runner(place.outputs)
    place.make("cat", {"max_train_epochs": 8}, step_seconds=0.05)
    request_start(place.outputs, "cat", "cli")
    state = place.until("cat", lambda state: state.step >= 3)
    place.kill_runner()
    assert trainer_alive(state)
    ensure_runner(place.outputs)
    state = place.ended("cat")
    assert (state.state, state.step, len(state.attempts)) == ("completed", 32, 1)


def test_what_a_resume_goes_behind_is_set_aside(place: SdPlace) -> None:
    ensure_runner(place.outputs)
    folder = place.make("cat", {"max_train_epochs": 3, "save_every_n_epochs": 1}, step_seconds=0.01)
    request_start(place.outputs, "cat", "cli")
    assert place.ended("cat").state == "completed"
    first, *later = [name for name, _ in place.states("cat")]
    request_resume(place.outputs, "cat", "cli", from_state=first, settings={"save_every_n_epochs": 0})
    assert place.until("cat", lambda state: len(state.attempts) == 2 and state.state == "completed")
    assert {path.name for path in folder.superseded.iterdir()} >= {*later, folder.final_weights.name}
    assert not (folder.path / later[0]).exists(), "nobody writes that name again"


def test_a_start_is_refused_where_there_are_no_scripts(place: SdPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    place.make("cat")
    monkeypatch.delenv("FLUXGYM_SD_SCRIPTS")
    with pytest.raises(ConfigError, match="set FLUXGYM_SD_SCRIPTS"):
        request_start(place.outputs, "cat", "cli")
    assert not place.state("cat").requests


def test_a_runner_that_does_not_know_where_they_are_says_so(place: SdPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    place.make("cat")
    monkeypatch.delenv("FLUXGYM_SD_SCRIPTS")
    ensure_runner(place.outputs)
    monkeypatch.setenv("FLUXGYM_SD_SCRIPTS", str(FAKE))
    request_start(place.outputs, "cat", "cli")
    state = place.ended("cat")
    assert (state.state, state.reason) == ("failed", "bad_config") and "set FLUXGYM_SD_SCRIPTS" in state.tail


def test_a_state_of_another_trainer_is_not_resumed_from(place: SdPlace) -> None:
    ensure_runner(place.outputs)
    folder = place.make("cat", {"max_train_epochs": 4})
    save_state(folder.path, "cat-step00000006-state", 6)
    request_resume(place.outputs, "cat", "cli")
    state = place.ended("cat")
    assert (state.state, state.reason) == ("failed", "bad_config") and "not saved by sd-scripts" in state.tail
    assert (folder.path / "cat-step00000006-state").is_dir()


def test_the_runner_starts_the_trainer_that_the_config_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLUXGYM_TRAINER", raising=False)
    assert trainer_command()[-1] == trainer_command("fluxgym")[-1] == "fluxcore.training"
    assert trainer_command("sd-scripts")[-1] == "fluxcore.sd_scripts"
    assert trainer_command("of another version")[-1] == "fluxcore.training"
    monkeypatch.setenv("FLUXGYM_TRAINER", "my trainer")
    assert trainer_command("sd-scripts") == ["my", "trainer"]
