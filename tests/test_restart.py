"""A restart begins afresh, also where the saved config names a state that the run once started from."""

from __future__ import annotations

import gc
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cli_tools import pictures, state

import fluxcore
from fluxcore.runs import load_run
from fluxcore.training import __main__ as trainer
from fluxcore.training.ranks import Ranks
from tests.stub_trainer import save_state

WANTED = "cat-step00000007-state"


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLUXGYM_OUTPUTS", str(tmp_path))
    monkeypatch.setattr("fluxcore.front_door.ensure_runner", lambda outputs: None)
    fluxcore.save_training_state("cat", {"resume_from_checkpoint": WANTED})
    pictures(tmp_path / "cat" / "dataset")
    save_state(tmp_path / "cat", WANTED, 7)
    return tmp_path


@pytest.mark.parametrize(
    ("request_id", "given", "starts_from"),
    [("cli-1:2", None, None), ("cli-1:2", WANTED, WANTED), (None, None, WANTED)],
)
def test_a_trainer_with_a_request_obeys_its_command_line_alone(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, request_id: str | None, given: str | None, starts_from: str | None
) -> None:
    made: list[Any] = []
    make_way: list[Any] = []

    def training(*values: Any, **named: Any) -> None:
        made.append(values)
        make_way.append(named["make_way"])

    monkeypatch.setattr("fluxcore.training.train.Training", training)
    arguments = Namespace(outputs=outputs, run="cat", attempt=2, request=request_id, resume_from=given)
    trainer._prepare(arguments, lambda: False, Ranks())
    resume_from = made[0][3]
    assert (resume_from and resume_from.name) == starts_from
    assert (outputs / "cat" / WANTED).exists(), "it may yet turn out that nothing can be trained"
    make_way[0]()
    assert (outputs / "cat" / WANTED).exists() == bool(starts_from), "a fresh start sets the old state aside"


def test_restart_and_a_state_to_go_on_from_are_a_contradiction(outputs: Path) -> None:
    with pytest.raises(fluxcore.UserError, match="either"):
        fluxcore.start_training("cat", restart=True, resume_from_checkpoint=WANTED, seed=5)
    folder, saved = load_run(outputs, "cat")
    assert saved.config["seed"] != 5 and not saved.requests, "nothing was saved, nothing was asked"
    fluxcore.start_training("cat", restart=True)
    assert state(outputs, "cat").requests[0].resume_from is None


def test_the_garbage_collector_is_on_while_it_trains(outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Trains:
        log = SimpleNamespace(drain=lambda seconds: None)

        def run(self) -> int:
            return 0 if gc.isenabled() and gc.get_freeze_count() else 1

    monkeypatch.setattr(trainer, "_prepare", lambda *_: Trains())
    monkeypatch.setattr("fluxcore.training.threads.choose_waiting", lambda: None)
    monkeypatch.setattr(trainer.signal, "signal", lambda *_: None)
    gc.disable()  # as the process begins, while its libraries are imported
    try:
        assert trainer.main(["--outputs", str(outputs), "--run", "cat", "--attempt", "1"]) == 0
    finally:
        gc.unfreeze()
        gc.enable()
