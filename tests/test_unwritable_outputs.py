"""An outputs folder that is full or can't be written: the app comes up all the same, and a sentence says what to do."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli_tools import ROOT
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from streamlit.testing.v1 import AppTest

from fluxcore.runs import RunError, check_outputs
from studio import server

FULL = """
import resource, signal, sys
from pathlib import Path
from fluxcore.runs import RunError, check_outputs
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # a disk with room for names, not for bytes
try:
    check_outputs(Path(sys.argv[1]))
except RunError as error:
    print(error)
"""


@pytest.fixture
def blocked(tmp_path, monkeypatch):
    """A plain file lies where the folder should be made: nobody, root included, can write there."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLUXGYM_OUTPUTS", str(tmp_path / "file" / "outputs"))
    monkeypatch.delenv("FLUXGYM_TOKEN", raising=False)
    return tmp_path / "file" / "outputs"


def test_a_full_disk_is_found_by_the_probe_and_the_probe_leaves_nothing(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert "can't be written" in done.stdout and "--outputs" in done.stdout, done.stderr
    assert list(tmp_path.iterdir()) == []
    check_outputs(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_folder_is_a_sentence(blocked):
    with pytest.raises(RunError, match="can't be written"):
        check_outputs(blocked)


def visit(host: str, said: list[str], monkeypatch) -> int:
    monkeypatch.setattr(server, "say", said.append)
    app = Starlette(
        routes=[Route("/", lambda request: PlainTextResponse("inside"))],
        middleware=server.middleware(),
    )
    return TestClient(app, base_url=f"http://{host}:7860").get("/").status_code


def test_on_loopback_the_app_comes_up_without_a_token_file(blocked, monkeypatch):
    options = {"server.address": "127.0.0.1", "server.port": 7860, "server.baseUrlPath": ""}
    monkeypatch.setattr("streamlit.get_option", options.get)
    said: list[str] = []
    assert visit("localhost", said, monkeypatch) == 200
    assert visit("evil.example", said, monkeypatch) == 401, "the gate stays shut"
    assert "FLUXGYM_TOKEN" in said[0] and "can't be kept" in said[0]


def test_outside_it_comes_up_with_a_token_of_its_own(blocked, monkeypatch):
    options = {"server.address": "0.0.0.0", "server.port": 7860, "server.baseUrlPath": ""}
    monkeypatch.setattr("streamlit.get_option", options.get)
    said: list[str] = []
    assert visit("localhost", said, monkeypatch) == 401
    assert len(said[0].partition("?token=")[2]) >= 24


@pytest.mark.parametrize("page", ["train", "runs", "run"])
def test_the_pages_open(blocked, page, monkeypatch):
    monkeypatch.setattr("studio.ask.ensure_runner", lambda outputs: None)
    app = AppTest.from_file(str(ROOT / "studio" / "main.py"), default_timeout=30).run()
    if page != "train":
        app.switch_page(f"../pages/{page}.py").run()
    assert not app.exception
    if page == "train":
        app.text_input(key="form.lora_name").set_value("cat").run()
        assert "can't be kept" in app.error[0].value and not app.exception
