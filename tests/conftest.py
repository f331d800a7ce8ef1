"""How the suite is dealt out to two processes, and what they inherit."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in a shell's background: children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

GROUPS = {"browser": "browser", "test_training.py": "training", "test_training_ranks.py": "training"}


def pytest_itemcollected(item: pytest.Item) -> None:
    """All tests that drive a browser go to one of the two, all that train to one: two such at a time would wait for
    each other. One of each fit side by side, since a training here computes in one thread. (pytest 9.2 hides
    the marks from xdist 3.8: see requirements-test.lock.)"""
    if group := GROUPS.get(item.path.relative_to(Path(__file__).parent).parts[0]):
        item.add_marker(pytest.mark.xdist_group(group))


ONCE = (("fluxcore.models.registry", "_outputs", None), ("studio.access", "_is_guarded", False))
"""What a program says once and for all: whose models.toml counts, and that a gate stands before the pages."""


@pytest.fixture(autouse=True)
def nothing_is_for_all_tests() -> Iterator[None]:
    """What one test's program said holds for no other one, nor is a page that was drawn the program itself: processes
    that a later test forks would run it."""
    program = sys.modules["__main__"]
    yield
    sys.modules["__main__"] = program
    for module, name, value in ONCE:
        if module in sys.modules:
            setattr(sys.modules[module], name, value)


@pytest.fixture(autouse=True)
def no_planner_beside_pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that is drawn in a test starts no planner's process (ten seconds of torch); the planner's own tests do."""
    if "page" in request.path.name or "templates" in request.path.name:
        monkeypatch.setattr(importlib.import_module("fluxcore.planner.plan"), "_later", lambda request, keep: None)
