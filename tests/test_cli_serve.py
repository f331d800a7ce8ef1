"""`app`, `down`, `runner`: ports, tokens, and that only our own process is ever ended."""

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from cli_tools import ROOT, call, run, served, until

from fluxcore.cli import serve
from fluxcore.runs.processes import identify, is_alive
from fluxcore.runs.supervision import runner_alive


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder of its own, so that a real fluxgym.pid is left alone."""
    monkeypatch.setattr(serve, "PROJECT_ROOT", tmp_path)
    (tmp_path / "streamlit_app.py").write_text("")
    monkeypatch.setattr(serve, "start_runner", lambda outputs: None)
    return tmp_path


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


SERVER = """
import http.server, os, sys
port = int(sys.argv[sys.argv.index('--server.port') + 1])
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(401 if os.environ.get('FLUXGYM_TOKEN') else 200); self.end_headers()
print('token is not here', flush=True)
http.server.HTTPServer(('127.0.0.1', port), Answer).serve_forever()
"""


@pytest.fixture
def fake_server(project, monkeypatch):
    """Instead of Streamlit, a server of six lines; it gets the very same command line and environment."""
    (project / "streamlit.py").write_text(SERVER)
    monkeypatch.setenv("PYTHONPATH", str(project))
    return project


def stop(project: Path) -> None:
    if found := serve.read_pid_file():
        os.kill(found[0].pid, 9)


def test_a_port_in_use(capsys, project):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        answer = call(capsys, "app", "--port", port, "--outputs", project / "o")
    assert answer.code == 64 and f"port {port}" in answer.line and "--port" in answer.line
    assert not (project / "fluxgym.pid").exists()


@pytest.mark.parametrize("address", ["no.such.host.invalid", "203.0.113.7", "not an address"])
def test_an_address_that_is_not_ours(capsys, project, free_port, address):
    answer = call(capsys, "app", "--address", address, "--port", free_port, "--outputs", project / "o")
    assert answer.code == 64 and answer.line


def test_detached_it_answers_before_the_prompt_returns_and_down_ends_it(capsys, fake_server, free_port, monkeypatch):
    monkeypatch.delenv("FLUXGYM_TOKEN", raising=False)
    try:
        answer = call(capsys, "app", "--detach", "--port", free_port, "--outputs", fake_server / "o")
        assert (answer.code, answer.out) == (0, f"http://127.0.0.1:{free_port}/\n")
        assert urllib.request.urlopen(answer.out.strip()).status == 200
        pid = int((fake_server / "fluxgym.pid").read_text().splitlines()[0])
        assert os.getsid(pid) == pid, "a session of its own"
        again = call(capsys, "app", "--detach", "--port", free_port + 1, "--outputs", fake_server / "o")
        assert again.code == 64 and str(pid) in again.line and "down" in again.line
        identity = identify(pid)
        assert call(capsys, "down").code == 0
        assert not is_alive(identity) and not (fake_server / "fluxgym.pid").exists()
        assert call(capsys, "down").code == 64
    finally:
        stop(fake_server)


def test_on_a_public_address_the_token_stands_in_a_private_file_and_no_log(capsys, fake_server, free_port, monkeypatch):
    monkeypatch.delenv("FLUXGYM_TOKEN", raising=False)
    try:
        answer = call(
            capsys, "app", "--detach", "--address", "0.0.0.0", "--port", free_port, "--outputs", fake_server / "o"
        )
        assert answer.code == 0
        (line,) = answer.out.splitlines()
        token = line.partition("/?token=")[2]
        assert len(token) >= 32
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"http://127.0.0.1:{free_port}/")
        holders = [f for f in fake_server.rglob("*") if f.is_file() and token in f.read_text(errors="replace")]
        assert holders == [fake_server / "o" / ".token"]
        assert holders[0].stat().st_mode & 0o777 == 0o600
    finally:
        stop(fake_server)


def test_a_token_that_is_given_is_used(capsys, fake_server, free_port, monkeypatch):
    monkeypatch.setenv("FLUXGYM_TOKEN", "my own token of some length")
    try:
        answer = call(capsys, "app", "--detach", "--port", free_port, "--outputs", fake_server / "o")
        assert answer.out.strip().endswith("/?token=my%20own%20token%20of%20some%20length")
    finally:
        stop(fake_server)


def test_an_app_that_does_not_come_up_says_why(capsys, fake_server, free_port):
    (fake_server / "streamlit.py").write_text("print('no such theme'); raise SystemExit(3)")
    answer = call(capsys, "app", "--detach", "--port", free_port, "--outputs", fake_server / "o")
    assert answer.code == 64 and "no such theme" in answer.line
    assert not (fake_server / "fluxgym.pid").exists()


def test_down_never_ends_a_strangers_process(capsys, project):
    stranger = subprocess.Popen(["sleep", "60"])
    try:
        identity = identify(stranger.pid)
        wrong = f"{stranger.pid}\n{identity.start_ticks + 1} {identity.boot_id}\nhttp://x/\n"
        other_boot = f"{stranger.pid}\n{identity.start_ticks} another-boot\nhttp://x/\n"
        for text in (
            wrong,
            other_boot,
            f"{stranger.pid}\n",
            f"{stranger.pid}\n0 {identity.boot_id}\nhttp://x/\n",
            "",
            "x\ny\nz",
        ):
            (project / "fluxgym.pid").write_text(text)
            assert call(capsys, "down").code == 64
            assert stranger.poll() is None
            assert not (project / "fluxgym.pid").exists()
    finally:
        stranger.kill()
        stranger.wait()


def test_loopback():
    assert all(map(serve.is_loopback, ("127.0.0.1", "localhost", "::1", "127.8.8.8")))
    assert not any(map(serve.is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))


def test_the_runner_in_the_foreground_ends_on_term(tmp_path):
    with served(tmp_path / "o") as outputs:
        process = subprocess.Popen(
            [sys.executable, "-m", "fluxcore", "runner", "--outputs", outputs], cwd=ROOT, stderr=subprocess.DEVNULL
        )
        until(lambda: runner_alive(outputs))
        assert runner_alive(outputs).pid == process.pid
        assert run("runner", "--outputs", outputs).code == 64, "one at a time"
        process.terminate()
        assert process.wait(20) == 0
