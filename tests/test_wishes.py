"""What a person asks of a run under way: who may ask, and how the trainer hears it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluxcore.config import resolve_config
from fluxcore.log import EventLog, read_events
from fluxcore.runs import RunError, create_run, request_sample, request_save
from fluxcore.training.wishes import LOOK_SECONDS, Wishes
from tests.cli_tools import call


@pytest.fixture
def asked(tmp_path: Path) -> tuple[Path, str]:
    """A run with a wish of an earlier attempt, then a request; the outputs folder and that request."""
    folder = create_run(tmp_path, resolve_config({"lora_name": "cat", "sample_prompts": "a cat"}), "cli")
    with EventLog(folder.path, "app") as log:
        log.append("run.requested", {"config": "x:1", "resume_from": None, "reason": "start"})
        log.append("save.requested", {"reason": "user"})
        return tmp_path, log.append("run.requested", {"config": "x:1", "resume_from": None, "reason": "again"}).id


def start(outputs: Path, request: str) -> None:
    with EventLog(outputs / "cat", "runner") as log:
        log.append("run.started", {"request": request, "pid": 1}, attempt=1)


def test_a_wish_is_heard_once_half_a_second_late_and_also_while_the_trainer_still_loads(
    asked: tuple[Path, str],
) -> None:
    outputs, request = asked
    start(outputs, request)
    request_sample(outputs, "cat", "app")
    now = 0.0
    wishes = Wishes(outputs / "cat", request, lambda: now)
    assert wishes.take() == {"sample"} and wishes.take() == set()
    request_save(outputs, "cat", "app")
    request_sample(outputs, "cat", "app")
    assert wishes.take() == set()
    now = LOOK_SECONDS
    assert wishes.take() == {"save", "sample"}
    now *= 3
    assert wishes.take() == set()


def test_a_trainer_started_by_hand_hears_what_comes_from_then_on(asked: tuple[Path, str]) -> None:
    outputs, request = asked
    now = 0.0
    wishes = Wishes(outputs / "cat", None, lambda: now)
    assert wishes.take() == set()
    start(outputs, request)
    request_save(outputs, "cat", "app")
    with EventLog(outputs / "cat", "app") as log:  # what only looks like one is none
        log.append("run.titled", {"title": 'a "sample.requested" title'})
    now = 1.0
    assert wishes.take() == {"save"}


def test_who_can_not_be_asked_says_so(asked: tuple[Path, str]) -> None:
    outputs, request = asked
    with pytest.raises(RunError, match="is not running"):
        request_save(outputs, "cat", "cli")
    start(outputs, request)
    with EventLog(outputs / "cat", "runner") as log:
        log.append("run.stopped", {"reason": "user"}, attempt=1)
        for name, option, problem in (
            ("mute", {}, "no sample prompts"),
            ("kohya", {"trainer": "sd-scripts", "sample_prompts": "a cat"}, "can't be asked"),
        ):
            folder = create_run(outputs, resolve_config({"lora_name": name, **option}), "cli")
            config = read_events(folder.path)[0].id
            with EventLog(folder.path, "app") as log:
                wanted = log.append("run.requested", {"config": config, "resume_from": None, "reason": "start"}).id
                log.append("run.started", {"request": wanted, "pid": 1}, attempt=1)
            with pytest.raises(RunError, match=problem):
                request_sample(outputs, name, "cli")


def test_the_verbs(asked: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    outputs, request = asked
    start(outputs, request)
    assert "draws its samples" in call(capsys, "sample", "cat", "--outputs", outputs).err
    assert "saves a checkpoint" in call(capsys, "save", "cat", "--outputs", outputs).err
    assert [event.type for event in read_events(outputs / "cat")][-2:] == ["sample.requested", "save.requested"]


def test_monitoring_is_switched_off_and_on_while_it_trains(
    asked: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    outputs, request = asked
    start(outputs, request)
    (outputs / "cat" / "monitor.log").write_text("the GPU is busy\n")
    said = call(capsys, "monitor", "cat", "off", "--outputs", outputs).err
    assert "monitoring of cat is off until somebody starts or resumes it again" in said
    assert "--set enable_monitoring=false" in said
    shown = call(capsys, "monitor", "cat", "--outputs", outputs).out
    assert "monitoring is off" in shown and "monitor cat on" in shown and "the GPU is busy" in shown
    assert "is not alive" in shown
    assert "is on" in call(capsys, "monitor", "cat", "on", "--outputs", outputs).err
    assert '"enabled":true' in call(capsys, "monitor", "cat", "--json", "--outputs", outputs).out.replace(" ", "")
    events = [event.data for event in read_events(outputs / "cat") if event.type == "monitoring.changed"]
    assert events == [{"enabled": False}, {"enabled": True}]
