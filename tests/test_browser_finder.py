"""The browser tests are never skipped in silence: one finder and one notion of CI for launcher, tests and pictures."""

from __future__ import annotations

import os
import subprocess

import pytest
from cli_tools import ROOT

from fluxcore import browser
from fluxcore.cli import testing


@pytest.mark.parametrize(
    ("value", "ci"), [("true", True), ("1", True), ("True", True), ("", False), ("0", False), ("false", False)]
)
def test_ci(monkeypatch, value, ci):
    monkeypatch.setenv("CI", value)
    assert browser.is_ci() is ci


def test_the_finder_takes_what_is_named_then_what_is_on_the_path(monkeypatch, tmp_path):
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert browser.find_chromium() is None
    chrome = tmp_path / "google-chrome"
    chrome.touch(mode=0o755)
    assert browser.find_chromium() == str(chrome)
    (tmp_path / "other").touch(mode=0o755)
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "other"))
    assert browser.find_chromium() == str(tmp_path / "other")
    monkeypatch.setenv("CHROMIUM", str(tmp_path / "nothing"))
    assert browser.find_chromium() is None


@pytest.mark.parametrize(("ci", "code"), [("1", testing.EXIT_NO_BROWSER), ("", 0)])
def test_without_a_browser_ci_fails_and_a_person_is_told(monkeypatch, capsys, ci, code):
    monkeypatch.setenv("CI", ci)
    monkeypatch.setattr(testing, "install", lambda *_: None)
    monkeypatch.setattr(testing, "install_browser", lambda: "no Chromium is installed")
    ran = []
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr(testing.subprocess, "run", lambda *args, **more: ran.append(args) or done)
    assert testing.test(type("Context", (), {"args": []})()) == code
    assert "no Chromium is installed" in capsys.readouterr().err
    assert bool(ran) is (code == 0)


def test_what_ci_runs_says_that_it_is_ci(tmp_path):
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "run").write_text((ROOT / ".ci" / "run").read_text())
    for name, body in (("fluxgym", 'echo "CI=$CI"'), ("python", "exit 0")):
        target = tmp_path / name if name == "fluxgym" else tmp_path / "venv" / "bin" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"#!/bin/sh\n{body}\n")
        target.chmod(0o755)
    environment = {key: value for key, value in os.environ.items() if key != "CI"}
    environment["FLUXGYM_VENV"] = str(tmp_path / "venv")
    done = subprocess.run(["bash", str(tmp_path / ".ci" / "run")], env=environment, capture_output=True, text=True)
    assert "CI=true" in done.stdout, done.stderr
