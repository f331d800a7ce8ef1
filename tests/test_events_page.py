"""The documented events are the written ones: the page against the catalog, and logs against it (see `undocumented`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from fluxcore.config import resolve_config
from fluxcore.dataset import copy_dataset
from fluxcore.log import FolderReader, read_events
from fluxcore.log.catalog import TYPES
from fluxcore.log.event import DURABLE_TYPES
from fluxcore.log.page import markdown, problems
from fluxcore.runs import create_run, save_config
from fluxcore.runs.about import set_archived, set_note, set_tags, set_title
from fluxcore.runs.installation import pause_queue, resume_queue, save_defaults
from fluxcore.runs.requests import request_start, request_stop, set_monitoring
from fluxcore.runs.transitions import TRANSITIONS

ROOT = Path(__file__).resolve().parents[1]


def undocumented(folder: Path, *sources: str) -> list[str]:
    """What the events of a run's folder hold that the catalog doesn't know, or lack that it promises."""
    events = [event for event in read_events(folder) if event.source in sources]
    return sorted({problem for event in events for problem in problems(event.type, event.data)})


def test_the_page_is_the_catalog() -> None:
    assert (ROOT / "docs" / "events.md").read_text() == markdown(), "python -m fluxcore.log.page > docs/events.md"


def test_every_type_that_the_fold_knows_is_documented_once() -> None:
    names = [type.name for type in TYPES]
    assert len(names) == len(set(names))
    assert set(TRANSITIONS) <= set(names)
    assert {"config.saved", "run.requested", "checkpoint.saved", "run.failed"} <= DURABLE_TYPES
    assert not DURABLE_TYPES & {"train.step", "gpu.sampled", "host.sampled", "phase.progress"}


def test_every_example_is_what_its_fields_say() -> None:
    for type in TYPES:
        assert problems(type.name, type.example) == []


def test_what_is_wrong_with_an_event_is_said() -> None:
    assert problems("run.invented", {}) == ["run.invented is not documented"]
    assert problems("monitoring.changed", {"enabled": None, "by": 1}) == [
        "monitoring.changed.by is not documented",
        "monitoring.changed.enabled is null",
    ]
    assert problems("monitoring.changed", {}) == ["monitoring.changed.enabled is missing"]


@pytest.mark.parametrize("source", ["app", "api"])
def test_what_a_person_asks_for_is_documented_whoever_asks(tmp_path: Path, source: str) -> None:
    """The runner's and the trainer's own events are compared where they are tested."""
    config = resolve_config({"lora_name": "cat", "base_model": "flux-mini", "max_train_steps": 3})
    folder = create_run(tmp_path, config, source, lambda to: copy_dataset(ROOT / "examples" / "riso", to) and None)
    save_config(tmp_path, config, source)
    set_archived(tmp_path, "cat", source, True)
    request_start(tmp_path, "cat", source)
    set_monitoring(tmp_path, "cat", source, False)
    set_title(tmp_path, "cat", source, "A cat")
    set_tags(tmp_path, "cat", source, ["a"])
    set_note(tmp_path, "cat", source, "x")
    request_stop(tmp_path, "cat", source)
    pause_queue(tmp_path, source)
    resume_queue(tmp_path, source)
    save_defaults(tmp_path, source, {"stall_seconds": 600})
    assert len({event.type for event in read_events(folder.path)}) == 8
    assert undocumented(folder.path, source) == []
    events = FolderReader(tmp_path, ".events").read_new()
    assert len(events) == 3 and [problem for event in events for problem in problems(event.type, event.data)] == []
