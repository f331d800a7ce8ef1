"""A fault at every system call of an append: nothing acknowledged is lost, nothing raises into the trainer's loop."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import faults_log
from fluxcore.log import EventLog


@pytest.mark.parametrize("lasting", [1, 4])
@pytest.mark.parametrize("fault", faults_log.FAULTS)
def test_what_was_acknowledged_is_read_back_once(tmp_path: Path, fault: str, lasting: int) -> None:
    outcome = faults_log.every_call(tmp_path, fault, lasting)
    assert outcome.clean, outcome.problems
    assert outcome.faults >= 20 and outcome.acknowledged >= 100


@pytest.mark.parametrize("fault", faults_log.FAULTS)
def test_the_trainers_log_never_raises_and_catches_up(tmp_path: Path, fault: str) -> None:
    outcome = faults_log.trainers_log(tmp_path, fault)
    assert outcome.clean, outcome.problems


def test_a_stopped_neighbour_with_the_lock_stops_nobody(tmp_path: Path) -> None:
    outcome = faults_log.stopped_holder(tmp_path)
    assert outcome.clean, outcome.problems


def test_a_real_disk_that_is_full() -> None:
    outcome = faults_log.on_a_full_disk()
    if outcome is None:
        pytest.skip("no tmpfs can be mounted here (that takes root), so there is no small disk to fill")
    assert outcome.clean, outcome.problems
    assert outcome.faults > 10


def test_the_harness_sees_a_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the repair of torn tails the same campaign must find lost events."""
    monkeypatch.setattr(EventLog, "_may_be_torn", lambda *_: False)
    assert faults_log.every_call(tmp_path, "EIO", 1).lost
