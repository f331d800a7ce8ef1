"""Wrong use of the command line: one line on standard error, the contract's exit code, never a traceback."""

import subprocess
import sys
from pathlib import Path

import pytest
from cli_tools import ROOT, Answer, call

from fluxcore.cli import look
from fluxcore.cli.main import VERBS

CONTRACT_VERBS = (
    "demo app down new start resume stop status logs events checkpoints sql export import convert delete prune runner"
)


def test_no_verb_shows_the_help(capsys):
    answer = call(capsys)
    assert answer.code == 0
    for verb in [*CONTRACT_VERBS.split(), "test"]:
        assert f"\n  {verb} " in answer.out


def test_every_verb_of_the_contract_is_there():
    assert set(CONTRACT_VERBS.split()) <= set(VERBS)


@pytest.mark.parametrize("verb", CONTRACT_VERBS.split())
def test_every_verb_has_a_help(capsys, verb):
    assert call(capsys, verb, "--help").code == 0


@pytest.mark.parametrize(
    "arguments",
    [["bogus"], ["status", "--bogus"], ["new"], ["start"], ["convert", "a"], ["app", "--port", "99999"], ["prune"],
     ["checkpoints", "a", "b"], ["sql"], ["new", "x", "--set"]],
)  # fmt: skip
def test_wrong_usage_is_64(capsys, tmp_path, monkeypatch, arguments):
    monkeypatch.setenv("FLUXGYM_OUTPUTS", str(tmp_path))
    answer = call(capsys, *arguments)
    assert answer.code == 64
    assert answer.line.startswith("fluxgym: ")


@pytest.mark.parametrize(
    "verb", ["start", "resume", "stop", "status", "logs", "events", "checkpoints", "export", "delete"]
)
@pytest.mark.parametrize("name", ["nobody", "../etc", "a b", "😀", ".history", "x" * 65])
def test_a_run_that_is_not_there_is_64(capsys, tmp_path, verb, name):
    answer = call(capsys, verb, name, "--outputs", tmp_path)
    assert answer.code == 64
    assert "no run" in answer.line or "not a run's name" in answer.line


def test_an_unexpected_os_error_is_one_line(capsys, tmp_path, monkeypatch):
    def broken(_: Path) -> tuple:
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr(look, "load_all", broken)
    answer = call(capsys, "status", "--outputs", tmp_path)
    assert answer.code == 64
    assert answer.line == "fluxgym: Permission denied: /somewhere"


def test_an_error_of_our_own_is_one_line_unless_debugging(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(look, "load_all", lambda _: 1 / 0)
    answer = call(capsys, "status", "--outputs", tmp_path)
    assert answer.code == 70 and "ZeroDivisionError" in answer.line
    monkeypatch.setenv("FLUXGYM_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        call(capsys, "status", "--outputs", tmp_path)


def test_starting_is_light(tmp_path):
    """`status` loads none of the heavy packages; the clock is not asked, a busy machine would answer for it."""
    code = (
        "import sys; from fluxcore.cli.main import main; main(['status', '--outputs', sys.argv[1]]);"
        "print([m for m in ('torch', 'streamlit', 'duckdb', 'pandas', 'numpy', 'PIL', 'diffusers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_closed_pipe_is_quiet(tmp_path):
    command = f"{sys.executable} -m fluxcore --help | head -1"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert Answer(done.returncode, done.stdout, done.stderr).err == ""
