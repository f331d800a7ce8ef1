"""Alerts for real: Apprise, a mail server and an HTTP server of this machine, processes, and where secrets do not go."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from email import message_from_bytes
from email.header import decode_header, make_header
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

from fluxcore.alerts import add_target, check_url, send_test
from fluxcore.alerts.child import sending_command, sending_environment
from fluxcore.errors import UserError
from fluxcore.log import EventLog, read_events
from fluxcore.runs import request_start
from fluxcore.runs.supervision import ensure_runner, runner_alive
from tests.cli_tools import call, pictures, run
from tests.test_runner_process import Place, place  # noqa: F401
from tests.test_shim import wait_until

SECRET = "s3cr3tT0ken"
ROOT = Path(__file__).resolve().parents[1]


class Hook:
    """An HTTP server that keeps what is posted to it. `answers`: the statuses to give, the last one for ever."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.answers = [200]
        self.hold = threading.Event()
        """While it is not set no request is answered."""
        self.hold.set()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                hook.paths.append(self.path)
                hook.hold.wait(60)
                status = hook.answers.pop(0) if len(hook.answers) > 1 else hook.answers[0]
                if status == 200:
                    hook.got.append(body)
                try:
                    self.send_response(status)
                    self.end_headers()
                except OSError:
                    pass

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"json://user:{SECRET}@127.0.0.1:{self._server.server_port}/{SECRET}/?+X-Token={SECRET}"

    def close(self) -> None:
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.close()


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("FLUXGYM_ALERTS", raising=False)
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs"


def ended(outputs: Path, name: str = "cat") -> Path:
    """A run that failed just now."""
    folder = outputs / name
    folder.mkdir()
    log = EventLog(folder, "runner")
    log.append("config.saved", {"config": {"lora_name": name}})
    end = {"reason": "oom_gpu", "hint": "Choose a smaller memory preset, then resume.", "tail": ""}
    log.append("run.failed", {**end, "resume_checkpoint": f"{name}-000004-state", "resume_step": 480})
    return folder


def told(outputs: Path, name: str = "cat") -> None:
    """One round, in a process of its own as the runner starts it. It may say nothing, whatever happens."""
    command = sending_command("--outputs", str(outputs), "--run", name)
    done = subprocess.run(command, cwd=ROOT, env=sending_environment(), capture_output=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def outcomes(folder: Path) -> list[tuple[str, str, str | None]]:
    found = [event for event in read_events(folder) if event.type.startswith("alert.")]
    return [(event.type, event.data["name"], event.data["error"]) for event in found]


def dead_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def files_with(outputs: Path, secret: str) -> list[str]:
    """Every file below `outputs` that holds the secret."""
    files = [path for path in outputs.rglob("*") if path.is_file()]
    return sorted(str(path.relative_to(outputs)) for path in files if secret.encode() in path.read_bytes())


def test_a_webhook_gets_title_words_and_kind(outputs: Path, hook: Hook) -> None:
    add_target(outputs, "hook", hook.url)
    folder = ended(outputs)
    for _ in range(2):
        told(outputs)
    assert outcomes(folder) == [("alert.sent", "hook", None)]
    assert hook.paths == [f"/{SECRET}/"], "once, with its secret where it belongs"
    got = hook.got[0]
    assert got["title"] == "cat failed at step 0 (oom_gpu)" and got["type"] == "failure"
    assert got["message"].startswith(
        "Choose a smaller memory preset, then resume.\n"
        "It is not resumed by itself: another try would only fail in the same way (oom_gpu).\n"
        "Checkpoint to go on from: cat-000004-state (step 480)\n"
        f"To resume: ./fluxgym resume cat --outputs {outputs}\n"
    )
    assert files_with(outputs, SECRET) == [".alerts.json"]


def test_500_then_200_arrives_at_the_second_try(outputs: Path, hook: Hook) -> None:
    hook.answers = [500, 200]
    add_target(outputs, "hook", hook.url)
    folder = ended(outputs)
    told(outputs)
    assert outcomes(folder) == [] and hook.got == []
    told(outputs)
    assert outcomes(folder) == [("alert.sent", "hook", None)] and len(hook.got) == 1


@pytest.mark.parametrize("more", ["", "&optional=yes"])
def test_what_no_later_try_can_mend_is_said_at_once(outputs: Path, hook: Hook, more: str) -> None:
    hook.answers = [401]
    add_target(outputs, "hook", hook.url + more)
    folder = ended(outputs)
    told(outputs)
    why = "it answered 401 (it does not accept the password or token)"
    assert outcomes(folder) == [("alert.failed", "hook", why)] and len(hook.paths) == 1


def test_a_dead_and_a_silent_target_keep_nobody_else_waiting(outputs: Path, hook: Hook) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        add_target(outputs, "dead", f"json://127.0.0.1:{dead_port()}/{SECRET}")
        add_target(outputs, "hook", hook.url)
        add_target(outputs, "silent", f"json://127.0.0.1:{silent.getsockname()[1]}/{SECRET}")
        folder = ended(outputs)
        sending = subprocess.Popen(
            sending_command("--outputs", str(outputs), "--run", "cat"), cwd=ROOT, env=sending_environment()
        )
        try:
            wait_until(lambda: outcomes(folder))
            assert sending.poll() is None, "the silent one is still waited for"
            assert outcomes(folder) == [("alert.sent", "hook", None)]
            assert sending.wait(30) == 0
        finally:
            sending.kill()
            sending.wait()
    assert outcomes(folder) == [("alert.sent", "hook", None)], "the others are for the next round"
    with pytest.raises(UserError) as caught:
        send_test(outputs, "dead")
    assert str(caught.value) == "the test did not reach dead: it can't be reached, or did not answer"


def test_an_address_that_apprise_refuses_is_said_in_our_words(outputs: Path) -> None:
    add_target(outputs, "chat", f"tgram://{SECRET}")
    folder = ended(outputs)
    told(outputs)
    why = "its address can't be used; remove it and add it again (see docs/alerts.md)"
    assert outcomes(folder) == [("alert.failed", "chat", why)]


def test_a_process_that_hangs_ends_itself_and_the_next_one_goes_on(outputs: Path, hook: Hook) -> None:
    add_target(outputs, "hook", hook.url + "&rto=30")
    folder = ended(outputs)
    hook.hold.clear()
    code = f"from fluxcore.alerts import sending as s; s.LONGEST_SECONDS = 2; s.main({['--outputs', str(outputs), '--run', 'cat']})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=sending_environment(), timeout=20)
    assert done.returncode == -signal.SIGALRM and outcomes(folder) == []
    hook.hold.set()
    told(outputs)
    assert outcomes(folder) == [("alert.sent", "hook", None)]


@pytest.mark.filterwarnings("ignore:Requiring AUTH")  # there is no TLS to a server of this machine
def test_mail_with_a_password(outputs: Path) -> None:
    mails: list[Any] = []

    class Keep:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            mails.append((envelope.rcpt_tos, message_from_bytes(envelope.content)))
            return "250 OK"

    def knows(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        assert isinstance(data, LoginPassword)
        return AuthResult(success=data == LoginPassword(b"me", SECRET.encode()), handled=False)

    port = dead_port()
    server = Controller(
        Keep(), "127.0.0.1", port, authenticator=knows, auth_required=True, auth_require_tls=False, decode_data=False
    )
    server.start()
    try:
        address = f"127.0.0.1:{port}/?from=gym@example.com&to=me@example.com&mode=insecure"
        add_target(outputs, "mail", f"mailto://me:{SECRET}@{address}")
        add_target(outputs, "wrong", f"mailto://me:{SECRET}x@{address}")
        folder = ended(outputs)
        send_test(outputs, "mail")
        with pytest.raises(UserError) as caught:
            send_test(outputs, "wrong")
        assert SECRET not in str(caught.value)
        told(outputs)
    finally:
        server.stop()
    assert outcomes(folder) == [("alert.sent", "mail", None)]
    (_, test), (to, mail) = mails
    assert to == ["me@example.com"] and str(make_header(decode_header(test["Subject"]))) == "FluxGym: a test"
    assert str(make_header(decode_header(mail["Subject"]))) == "cat failed at step 0 (oom_gpu)"
    text = "".join(
        part.get_payload(decode=True).decode() for part in mail.walk() if part.get_content_maintype() == "text"
    )
    assert "cat-000004-state (step 480)" in text and "./fluxgym resume cat" in text
    assert files_with(outputs, SECRET) == [".alerts.json"]


def test_apprise_says_what_is_an_address(outputs: Path) -> None:
    for good in ("ntfys://ntfy.sh/topic", "https://discord.com/api/webhooks/4174/Ab_c", "jsons://host/path"):
        check_url(good)
    for bad in ("nothing://host", f"tgram://{SECRET}", f"https://example.com/{SECRET}", "", "x"):
        with pytest.raises(UserError) as caught:
            check_url(bad)
        assert SECRET not in str(caught.value)


def test_the_command_line_asks_for_the_address_and_never_shows_it(outputs: Path, hook: Hook, capsys: Any) -> None:
    here = ("--outputs", outputs)
    assert "nobody is told yet" in call(capsys, "alerts", *here).line
    command = [sys.executable, "-P", "-m", "fluxcore", "alerts", "add", "hook", "--on", "failed,stalled"]
    done = subprocess.run(
        [*command, "--outputs", str(outputs)],
        input=hook.url + "\n", text=True, capture_output=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0 and "hook (json://****) will be told" in done.stderr and SECRET not in done.stderr
    listed = call(capsys, "alerts", *here)
    assert "json://****" in listed.out and "failed, stalled" in listed.out and SECRET not in listed.out
    tested = call(capsys, "alerts", "test", "hook", *here)
    assert tested.code == 0 and tested.out == "hook: sent\n" and hook.got[0]["title"] == "FluxGym: a test"
    for arguments, code in (
        (("add", "hook", hook.url), 64),
        (("add", hook.url), 64),
        (("add", "other", f"nothing://{SECRET}"), 64),
        (("add", "other", hook.url, "--on", "sometimes"), 64),
        (("add", "all", hook.url), 64),
        (("remove", "other"), 64),
        (("test", "other"), 64),
        (("nonsense",), 64),
    ):
        answer = call(capsys, "alerts", *arguments, *here)
        assert answer.code == code and SECRET not in answer.line
    hook.answers = [404]
    assert call(capsys, "alerts", "test", "hook", *here).code == 64
    assert call(capsys, "alerts", "test", *here).code == 1
    assert call(capsys, "alerts", "remove", "hook", *here).code == 0
    assert "nobody is told yet" in call(capsys, "alerts", *here).line


def test_a_config_takes_no_address(outputs: Path, tmp_path: Path, capsys: Any) -> None:
    answer = call(
        capsys, "new", "cat", "--images", pictures(tmp_path / "p"), "--outputs", outputs,
        "--set", f"alerts=ntfys://ntfy.sh/{SECRET}",
    )  # fmt: skip
    assert answer.code == 64 and "alerts takes all, off, or names" in answer.line and SECRET not in answer.line
    assert files_with(outputs, SECRET) == []


# -- with a runner ----------------------------------------------------------------------------------------------------


def sending_processes(outputs: Path) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"fluxcore.alerts.sending" in words and os.fsencode(outputs) in words:
                found.append(int(entry.name))
    return found


def alert_names(place: Place, name: str) -> list[str]:  # noqa: F811
    found = read_events(place.outputs / name)
    return [event.data["name"] for event in found if event.type == "alert.sent"]


def test_a_runner_that_is_killed_while_it_tells_tells_nobody_twice_and_no_secret_leaks(
    place: Place,  # noqa: F811
    hook: Hook,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    in_environment = "3nv1r0nmentSecret"
    monkeypatch.setenv("FLUXGYM_ALERTS", f"env={hook.url.replace(SECRET, in_environment)}&rto=20")
    add_target(place.outputs, "hook", hook.url + "&rto=20")
    hook.hold.clear()
    ensure_runner(place.outputs)
    place.make("cat", {"auto_resume": 0}, steps=100, exit_at=3, exit_code=5, say="not a number", step_seconds=0.02)
    request_start(place.outputs, "cat", "cli")
    wait_until(lambda: len(hook.paths) == 2)  # both hang in the middle of being told
    workers = sending_processes(place.outputs)
    assert len(workers) == 1 and os.getsid(workers[0]) == workers[0], "a Ctrl-C for the runner is none for it"
    command = Path(f"/proc/{workers[0]}/cmdline").read_bytes()
    assert SECRET.encode() not in command and in_environment.encode() not in command
    place.kill_runner()
    ensure_runner(place.outputs)
    wait_until(lambda: set(sending_processes(place.outputs)) - set(workers))  # the next runner tries to tell as well
    wait_until(lambda: sending_processes(place.outputs) == workers)
    hook.hold.set()
    wait_until(lambda: len(alert_names(place, "cat")) == 2)
    wait_until(lambda: sending_processes(place.outputs) == [])
    assert sorted(alert_names(place, "cat")) == ["env", "hook"] and len(hook.got) == 2 == len(hook.paths)
    assert files_with(place.outputs, SECRET) == [".alerts.json"]
    assert files_with(place.outputs, in_environment) == []
    status = run("events", "cat", "--outputs", place.outputs)
    assert SECRET not in status.out + status.err and in_environment not in status.out + status.err


def test_the_trainer_does_not_get_the_secrets_of_the_environment(
    place: Place,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLUXGYM_ALERTS", f"env=json://127.0.0.1:{dead_port()}/{SECRET}")
    ensure_runner(place.outputs)
    place.make("cat", steps=10_000)
    request_start(place.outputs, "cat", "cli")
    state = place.until("cat", lambda state: state.step >= 2)
    for pid in (state.attempts[0].pid, state.attempts[0].shim_pid):
        assert SECRET.encode() not in Path(f"/proc/{pid}/environ").read_bytes()
    runner = runner_alive(place.outputs)
    assert runner is not None
    os.kill(runner.pid, signal.SIGTERM)


def test_the_runner_does_not_load_apprise() -> None:
    code = "import runner.__main__, runner.loop, sys; print([name for name in sys.modules if 'apprise' in name])"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
