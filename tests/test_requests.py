"""Asking: what is granted stays granted, what can't be written is a sentence and asks for nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fluxcore.config import ConfigError, RunConfig, parse_config
from fluxcore.log import read_events
from fluxcore.runs import RunError, create_run, request_resume, request_start, save_config, set_monitoring
from fluxcore.runs import requests as asking
from tests.cli_tools import pictures
from tests.fakes import World
from tests.stub_trainer import save_state


def config(**values: object) -> RunConfig:
    return parse_config({"lora_name": "cat", **values})


def test_a_derived_file_that_can_not_be_written_fails_no_granted_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(asking, "write_atomic", full)
    folder = create_run(tmp_path, config(), "cli")
    event = save_config(tmp_path, config(seed=5), "cli")
    assert read_events(folder.path)[-1] == event and not folder.ui_state.exists()
    assert caplog.text.count("ui_state.json") == 2


def test_what_fits_into_no_event_is_a_sentence(tmp_path: Path) -> None:
    # As an edited or future schema might let through: today's limits end below the log's.
    large = config().model_copy(update={"sample_prompts": "a prompt\n" * 40_000})
    wide = config().model_copy(update={"seed": 10**30})
    for wrong in (large, wide):
        with pytest.raises(RunError, match="can't be saved"):
            create_run(tmp_path, wrong, "cli")
    assert [path for path in tmp_path.iterdir() if not path.name.startswith(".runner")] == []
    folder = create_run(tmp_path, config(), "cli")
    for wrong in (large, wide):
        with pytest.raises(RunError, match="can't be saved"):
            save_config(tmp_path, wrong, "cli")
    assert len(read_events(folder.path)) == 1


def test_a_log_that_can_not_be_written_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = create_run(tmp_path, config(), "cli", lambda dataset: pictures(dataset))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for ask in (
        lambda: request_start(tmp_path, "cat", "cli"),
        lambda: set_monitoring(tmp_path, "cat", "cli", False),
    ):
        with pytest.raises(RunError, match="can't be written"):
            ask()
    monkeypatch.undo()
    assert [event.type for event in read_events(folder.path)] == ["config.saved"]
    monkeypatch.setattr("fluxcore.runs.requests.EventLog.append", full)
    monkeypatch.setattr("fluxcore.runs.requests.check_outputs", lambda outputs: None)
    with pytest.raises(RunError, match="can't be written"):
        create_run(tmp_path, parse_config({"lora_name": "dog"}), "cli")


def test_changed_settings_are_saved_with_the_request_that_names_them(tmp_path: Path) -> None:
    folder = create_run(tmp_path, config(learning_rate="1e-3", vram="20G"), "cli", lambda dataset: pictures(dataset))
    asked = request_start(tmp_path, "cat", "cli", settings={"learning_rate": "3e-4", "vram": "16G"})
    saved, request = read_events(folder.path)[-2:]
    assert request == asked and request.data["config"] == saved.id
    now = saved.data["config"]
    assert (now["learning_rate"], now["vram"], now["optimizer_type"]) == ("3e-4", "16G", "adafactor")
    assert '"3e-4"' in folder.ui_state.read_text()


def test_where_nothing_is_granted_no_setting_is_saved(tmp_path: Path) -> None:
    folder = create_run(tmp_path, config(), "cli", lambda dataset: pictures(dataset))
    for wrong in ({"sead": "5"}, {"seed": "five"}, {"lora_name": "dog"}):
        with pytest.raises(ConfigError):
            request_start(tmp_path, "cat", "cli", settings=wrong)
    with pytest.raises(RunError, match="no complete checkpoint"):
        request_resume(tmp_path, "cat", "cli", settings={"seed": "5"})
    request_start(tmp_path, "cat", "cli", settings={})
    with pytest.raises(RunError, match="already queued"):
        request_start(tmp_path, "cat", "cli", settings={"seed": "5"})
    with pytest.raises(ConfigError, match="sead"):  # before the person stops it for nothing
        request_start(tmp_path, "cat", "cli", settings={"sead": "5"})
    assert [event.type for event in read_events(folder.path)] == ["config.saved", "run.requested"]


def test_another_rank_than_the_checkpoints_is_refused_with_the_commands_that_work(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.start("cat", network_dim=8, max_train_steps=1000, auto_resume=0)
    pictures(world.outputs / "cat" / "dataset")
    world.train("cat", 1, 3)
    saved = world.checkpoint("cat", 3)
    world.trainer("cat").exit(1)
    world.turns()
    before = len(world.events("cat"))
    with pytest.raises(RunError) as refused:
        request_resume(world.outputs, "cat", "cli", settings={"network_dim": "64"})
    place = f"--outputs {world.outputs}"
    assert str(refused.value) == (
        f"{saved} is of rank 8, and a checkpoint keeps its rank: resume with `./fluxgym resume cat --set network_dim=8 "
        f"{place}`, or begin afresh with `./fluxgym start cat --restart --set network_dim=64 {place}`"
    )
    with pytest.raises(RunError, match=f"resume cat --from {saved} --set network_dim=8"):
        request_resume(world.outputs, "cat", "cli", from_state=saved, settings={"network_dim": "64"})
    assert len(world.events("cat")) == before
    request_resume(world.outputs, "cat", "cli", settings={"network_dim": "8", "seed": "5"})


def test_a_checkpoint_that_the_log_does_not_know_and_another_algo_are_the_trainers_to_judge(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.start("cat", network_dim=8, network_algo="lokr", max_train_steps=1000, auto_resume=0)
    pictures(world.outputs / "cat" / "dataset")
    world.train("cat", 1, 3)
    world.checkpoint("cat", 3)
    save_state(world.outputs / "cat", "cat-step00000002-state", 2)
    world.trainer("cat").exit(1)
    world.turns()
    unknown = "cat-step00000002-state"
    request_resume(world.outputs, "cat", "cli", from_state=unknown, settings={"network_dim": "64"})
    world.stop("cat")
    world.turns()
    request_resume(world.outputs, "cat", "cli", settings={"network_dim": "64"})
    asked = [event.data["resume_from"] for event in world.events("cat") if event.type == "run.requested"]
    assert asked == [None, unknown, "latest"]
    assert world.state("cat").config["network_dim"] == 64


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"max_train_steps": 1000}, "max_train_steps"), ({"max_train_epochs": 1}, "max_train_epochs")],
)
def test_what_has_to_be_raised_where_no_steps_are_left_is_named(
    tmp_path: Path, settings: dict[str, int], named: str
) -> None:
    world = World(tmp_path)
    world.start("cat", auto_resume=0, num_repeats=1, **settings)
    pictures(world.outputs / "cat" / "dataset")
    world.train("cat", 1, 3)
    saved = world.checkpoint("cat", 1000)
    world.trainer("cat").exit(1)
    world.turns()
    with pytest.raises(RunError) as refused:
        request_resume(world.outputs, "cat", "cli", settings={"seed": "5"})
    assert str(refused.value) == f"cat has no steps left after {saved} (step 1000); raise {named}"
