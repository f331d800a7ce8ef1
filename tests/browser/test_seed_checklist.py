"""The seed's verification checklist, item by item: a terminal, a browser, and both of them gone in the middle."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from fluxcore.cli.serve import read_pid_file
from fluxcore.runs import load_run
from studio.shots import settle
from tests.browser.conftest import ROOT, STUB_TRAINER, end_everything_of
from tests.browser.test_story import drop_pictures, set_field, step_shown, wait_for_state
from tests.place import wait_until

pytestmark = pytest.mark.browser
FLUXGYM = [sys.executable, "-m", "fluxcore"]


@contextmanager
def terminal(**environment: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A shell on a terminal of its own, as a login over SSH has it; closing the terminal hangs up on all in it."""
    master, slave = pty.openpty()
    settings = termios.tcgetattr(slave)
    settings[3] &= ~termios.ECHO  # so that all that is read was printed
    termios.tcsetattr(slave, termios.TCSANOW, settings)

    def own() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    shell = subprocess.Popen(
        ["bash", "--norc", "--noediting", "-i"],
        cwd=ROOT,
        env=os.environ | environment | {"PS1": ""},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        preexec_fn=own,
    )
    os.close(slave)
    try:
        yield master, shell
    finally:
        with suppress(OSError):
            os.close(master)
        shell.kill()
        shell.wait()


def typed(master: int, command: str, wanted: str, seconds: float = 90) -> re.Match[str]:
    """Type a command and wait for what it is to print."""
    os.write(master, f"{command}\n".encode())
    said, deadline = "", time.monotonic() + seconds
    while time.monotonic() < deadline:
        if select.select([master], [], [], 0.2)[0]:
            said += os.read(master, 65536).decode(errors="replace")
            if found := re.search(wanted, said):
                return found
    raise AssertionError(f"{command!r} did not print {wanted!r} but {said!r}")


def test_the_seeds_checklist(chromium, tmp_path):
    if there := read_pid_file():
        pytest.skip(f"a detached app runs from this folder already: {there[1]}")
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stub = {"steps": 400, "step_seconds": 0.15, "save_every": 20}
    environment = {"FLUXGYM_TRAINER": STUB_TRAINER, "STUB": json.dumps(stub), "PYTHONPATH": str(ROOT)}
    try:
        with terminal(**environment) as (master, shell):
            # Start FluxGym with nohup: no nohup is needed, and the prompt comes back.
            command = " ".join([*FLUXGYM, "app", "--detach", "--port", str(port), "--outputs", str(outputs)])
            url = typed(master, command, r"(http://127\.0\.0\.1:\d+)/")[1]
            typed(master, "echo back $((20 + 3))", "back 23")

            # Configure a test LoRA
            context = chromium.new_context(viewport={"width": 1400, "height": 1000})
            page = context.new_page()
            page.set_default_timeout(20_000)
            page.goto(url)
            settle(page)
            set_field(page, "Name", "test-lora")
            drop_pictures(page, 3)
            # Enable checkpointing + monitoring
            for switch in ("Keep checkpoints", "Monitoring"):
                assert page.get_by_role("checkbox", name=switch).is_checked(), f"{switch} is on by default"
            # Start training
            page.get_by_role("button", name="Start training").click()
            page.wait_for_url("**/run?name=test-lora")
            wait_for_state(outputs, "test-lora", "running")
            # See state file created: cat outputs/test-lora/ui_state.json
            shown = typed(master, f"cat {outputs}/test-lora/ui_state.json", r'"lora_name": ?"test-lora"')
            assert shown
            saved = json.loads((outputs / "test-lora" / "ui_state.json").read_text())
            assert (saved["enable_checkpointing"], saved["enable_monitoring"]) == (True, True)
            # See monitor running: cat outputs/test-lora/monitor.pid
            pid = int(typed(master, f"cat {outputs}/test-lora/monitor.pid; echo", r"(\d+)\r?\n")[1])
            assert psutil.pid_exists(pid)
            # Refresh browser
            page.reload()
            settle(page)
            # See "Active Training Sessions" banner
            banner = page.locator(".st-key-banner")
            # See your training listed (running, in green)
            banner.get_by_text("test-lora").wait_for()
            running = banner.locator(".stMarkdownBadge", has_text="running")
            running.wait_for()
            red, green, blue = map(int, re.findall(r"\d+", running.evaluate("one => getComputedStyle(one).color"))[:3])
            assert green > red and green > blue
            # Click "Monitor Status & Logs"
            page.get_by_role("tab", name="Monitor").click()
            # See monitor is running
            page.get_by_text(re.compile(rf"pid {pid}|{pid}")).first.wait_for()
            page.get_by_text("What the monitor wrote last").wait_for()
            page.get_by_text("attempt 1 started").first.wait_for()
            app = read_pid_file()
            # Disconnect SSH, and close the laptop
            context.close()
            os.close(master)
            shell.wait(20)
        at = load_run(outputs, "test-lora")[1].step
        wait_until(lambda: load_run(outputs, "test-lora")[1].step > at, 30)
        # Reconnect
        assert read_pid_file() == app, "the app lived on"
        context = chromium.new_context(viewport={"width": 380, "height": 800})
        page = context.new_page()
        page.set_default_timeout(20_000)
        # Open UI: everything still there
        page.goto(url)
        settle(page)
        assert page.get_by_label("Trigger word", exact=True).is_visible()
        page.locator(".st-key-banner").get_by_text("test-lora").wait_for()
        before = wait_until(lambda: step_shown(page), 20)
        assert before > 0
        wait_until(lambda: step_shown(page) > before, 30)
        page.locator(".st-key-banner").get_by_role("button", name="Stop").click()
        wait_for_state(outputs, "test-lora", "stopped")
        context.close()
    finally:
        subprocess.run([*FLUXGYM, "down"], cwd=ROOT, capture_output=True)
        end_everything_of(outputs)
    assert read_pid_file() is None
    assert not Path(outputs / "test-lora" / "monitor.pid").exists() or not psutil.pid_exists(pid)
