"""How the suite is dealt out to two processes."""

from __future__ import annotations

from pathlib import Path

import pytest

HEAVY = ("browser", "test_training.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One of the two takes all tests that train or drive a browser: two such at a time would wait for each other."""
    tests = Path(__file__).parent
    for item in items:
        if item.path.relative_to(tests).parts[0] in HEAVY:
            item.add_marker(pytest.mark.xdist_group("heavy"))
