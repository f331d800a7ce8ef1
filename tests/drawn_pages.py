"""The app's pages drawn without a browser, over an outputs folder of the test's own."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from studio.drafts import newest_draft
from tests.fake_runs import a_night

woken: list[Path] = []
MAIN = Path(__file__).resolve().parents[1] / "studio" / "main.py"


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """An empty outputs folder, which the pages take for theirs."""
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    monkeypatch.setenv("FLUXGYM_OUTPUTS", str(outputs))
    # No runner is started by a page alone; what would start one only notes that it was asked to.
    monkeypatch.setattr("studio.ask.ensure_runner", lambda outputs: woken.append(outputs))
    woken.clear()
    return outputs


@pytest.fixture
def night(outputs):
    """Runs in every state."""
    runs = a_night(outputs)
    yield runs
    for run in runs.values():
        run.end_trainer()


def open_page(page: str = "train", **query: str) -> AppTest:
    """A page as a new session draws it."""
    app = AppTest.from_file(str(MAIN), default_timeout=30)
    for part in ("settings.open", "text.open"):  # as somebody who looks into every part of Train
        app.session_state[part] = True
    app.run()
    for key, value in query.items():
        app.query_params[key] = value
    if page != "train":
        app.switch_page(f"../pages/{page}.py").run()
    assert not app.exception
    return app


def text(app: AppTest) -> str:
    """All that a page says."""
    kinds = (app.markdown, app.caption, app.warning, app.error, app.info, app.title, app.get("html"))
    return "\n".join(str(getattr(item, "value", None) or item.proto) for kind in kinds for item in kind)


def answered(app: AppTest) -> AppTest:
    """The page after the browser has said that nothing of what it was asked about was its own."""
    for one in app.session_state["typed.said"]:
        one.judged = True
    return app.run()


def settings_of(app: AppTest) -> dict[str, list[str]]:
    """The table of settings of a page: what each column has, by setting."""
    rows = re.findall(r"<code>(\w+)</code></th>((?:<td>[^<]*</td>)+)</tr>", text(app).replace("<wbr>", ""))
    return {name: re.findall(r"<td>([^<]*)</td>", cells) for name, cells in rows}


def add_pictures(outputs: Path, count: int = 3) -> None:
    """As the uploader leaves them."""
    draft = newest_draft(outputs)
    for i in range(count):
        Image.new("RGB", (32, 32), (i * 40, 0, 0)).save(draft.dataset / f"{i}.png")
