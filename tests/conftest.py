"""How the suite is dealt out to two processes, and what they inherit."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in a shell's background: children would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

HEAVY = ("browser", "test_training.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One of the two takes all tests that train or drive a browser: two such at a time would wait for each other."""
    tests = Path(__file__).parent
    for item in items:
        if item.path.relative_to(tests).parts[0] in HEAVY:
            item.add_marker(pytest.mark.xdist_group("heavy"))
