"""Asking: what is granted stays granted, what can't be written is a sentence and asks for nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fluxcore.config import RunConfig, parse_config
from fluxcore.log import read_events
from fluxcore.runs import RunError, create_run, request_start, save_config, set_monitoring
from fluxcore.runs import requests as asking
from tests.cli_tools import pictures


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
