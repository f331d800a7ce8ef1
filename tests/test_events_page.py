"""The documented events are the written ones: the page against the catalog, and logs against it (see `undocumented`)."""

from __future__ import annotations

from pathlib import Path

from fluxcore.log import read_events
from fluxcore.log.catalog import TYPES
from fluxcore.log.event import DURABLE_TYPES
from fluxcore.log.page import markdown, problems
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
