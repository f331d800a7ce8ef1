"""What a training will need, beside the start button: where it can't be told, that is said."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from fluxcore.planner.plan import PlanError


def _lines(outputs: str) -> None:
    from pathlib import Path

    from fluxcore.config import parse_config
    from studio import estimate
    from studio.drafts import Draft

    estimate.show(Draft(Path(outputs)), parse_config({"lora_name": "cat"}), 5, 100)


def test_where_measuring_fails_the_waiting_ends_with_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLUXGYM_OUTPUTS", str(tmp_path))
    asked: list[bool] = []

    def fails_behind(*_: object, wait: bool) -> None:
        asked.append(wait)
        if len(asked) > 1:
            raise PlanError("no room for its process")

    monkeypatch.setattr(
        sys.modules["fluxcore.planner.plan"], "plan", fails_behind
    )  # the package has a function of that name
    app = AppTest.from_function(_lines, args=(str(tmp_path),)).run()
    said = " ".join(item.value for item in app.caption)
    assert not app.exception and "no room for its process" in said and "being calculated" not in said
