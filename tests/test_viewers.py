"""Viewers see everything and change nothing, whatever a page draws and whatever a browser sends."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from fluxcore.access import make_viewer_token
from fluxcore.runs import load_run
from studio import access, look
from studio.queries import EXAMPLES, keep_box, load_box
from tests.drawn_pages import night as night  # fixtures
from tests.drawn_pages import open_page, text
from tests.drawn_pages import outputs as outputs


@pytest.fixture
def viewer(monkeypatch, outputs):
    from studio.gate import fingerprint

    token = make_viewer_token(outputs)
    monkeypatch.setattr(access, "role", lambda: f"viewer {fingerprint(token)}")
    access.hook_once.cache_clear()
    access.hook_once()
    return token


def everything(outputs: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in outputs.rglob("*") if path.is_file()}


def test_a_viewer_sees_the_runs_and_nothing_of_the_owners_pages(night, viewer):
    app = open_page("run", name="my-cat")
    assert "step 480" in text(app) and "You look on" in text(app)
    for page in ("settings", "train"):
        app.switch_page(f"../pages/{page}.py").run()
        shown = text(app)
        assert "the owner's" in shown and "Start training" not in shown and viewer not in shown


def test_no_button_of_a_viewer_changes_anything(night, viewer, outputs):
    before = everything(outputs)
    app = open_page("run", name="my-cat")
    keys = {button.key for button in app.button if button.key and not button.disabled}
    for key in keys:  # also those that the page hides: a browser can send their press
        app.button(key=key).click().run()
    assert len(keys) > 5
    assert everything(outputs) == before
    assert load_run(outputs, "my-cat")[1].state == "running"


def test_what_the_owner_types_is_not_a_viewers_and_of_a_viewer_nothing_is_kept(night, outputs, viewer, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(access, "role", lambda: "owner")
        keep_box(outputs, "SELECT mine")
    app = open_page("history")
    assert app.text_area(key="sql").value == EXAMPLES["All runs"]
    app.text_area(key="sql").set_value("SELECT theirs").run()
    assert not app.exception and not app.toast and load_box(outputs) == "SELECT mine"


def test_what_a_page_forgot_to_ask_is_refused_where_it_happens(viewer, outputs):
    (outputs / "kept").write_text("x")

    def forgetful() -> None:
        import os
        import subprocess
        import sys

        import streamlit as st

        from fluxcore.runs import default_outputs

        there = default_outputs() / "kept"
        tries = [
            lambda: there.write_text("changed"),
            lambda: os.replace(there, there.with_name("moved")),
            lambda: there.unlink(),
            lambda: (there.parent / "new").mkdir(),
            lambda: os.open(there, os.O_WRONLY),
            lambda: subprocess.run([sys.executable, "-c", "1"]),
            lambda: os.kill(os.getpid(), 18),
        ]
        for attempt in tries:
            try:
                attempt()
                st.write("done")
            except PermissionError as error:
                st.write(error.strerror)
        st.write(there.read_text())

    from streamlit.testing.v1 import AppTest

    app = AppTest.from_function(forgetful).run(timeout=30)
    assert not app.exception
    assert [item.value for item in app.markdown] == [access.SENTENCE] * 7 + ["x"]
    assert sorted(os.listdir(outputs)) == [".viewer-token", "kept"]


def test_an_owner_is_not_hindered(outputs, monkeypatch):
    access.hook_once()
    monkeypatch.setattr(access, "role", lambda: "owner")
    app = open_page()
    app.text_input(key="form.lora_name").set_value("cat").run()
    assert open_page().text_input(key="form.lora_name").value == "cat"


def test_the_link_is_made_shown_and_taken_back(outputs, monkeypatch):
    from fluxcore.access import viewer_token

    monkeypatch.setattr(access, "role", lambda: "owner")
    app = open_page("settings")
    app.button(key="viewers-make").click().run()
    token = viewer_token(outputs)
    assert token and any(token in code.value for code in app.code)
    app.button(key="viewers-make").click().run()
    assert viewer_token(outputs) == token and "stops working" in text(app), "it is asked first"
    app.button(key="confirm-yes").click().run()
    assert viewer_token(outputs) != token and any(viewer_token(outputs) in code.value for code in app.code)
    app.button(key="viewers-remove").click().run()
    app.button(key="confirm-yes").click().run()
    assert viewer_token(outputs) is None


def test_a_link_that_was_taken_back_ends_open_pages(night, viewer, outputs):
    from fluxcore.access import remove_viewer_token

    remove_viewer_token(outputs)
    app = open_page("runs")
    assert "taken back" in app.warning[0].value and "my\\-cat" not in text(app)


def test_every_button_that_is_hidden_is_one():
    root = Path(look.__file__).parents[1]
    sources = [file for place in ("studio", "pages") for file in (root / place).rglob("*.py") if file.name != "look.py"]
    keys = {found for file in sources for found in re.findall(r'key=f?"([^"{]+)', file.read_text())}
    keys |= {"monitor-on", "run-sample", "run-save"}  # of a key that is made up as it is drawn
    assert [name for name in look.CHANGE if not any(key.startswith(name) for key in keys)] == []
