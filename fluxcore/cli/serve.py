"""`app`, `down`, `runner`: the two servers."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from fluxcore.access import is_loopback, load_token
from fluxcore.atomic import write_atomic
from fluxcore.errors import UserError
from fluxcore.runs.files import PROJECT_ROOT
from fluxcore.runs.processes import Identity, identify, is_alive
from fluxcore.tail import last_line

from .options import Outputs, outputs_folder
from .out import note, say
from .runs import start_runner

LOG_FILE, PID_FILE = "fluxgym.log", "fluxgym.pid"
START_SECONDS, END_SECONDS = 60.0, 10.0


def app(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 7860,
    address: Annotated[str, typer.Option(help="The address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    detach: Annotated[bool, typer.Option("--detach", help="Return the prompt; `./fluxgym down` ends it.")] = False,
    outputs: Outputs = None,
) -> int:
    """Open FluxGym in the browser: starts the runner and the app, and prints the address."""
    if not (PROJECT_ROOT / "streamlit_app.py").is_file():
        raise UserError(f"there is no streamlit_app.py in {PROJECT_ROOT}; this copy of FluxGym is not whole")
    if detach and (running := read_pid_file()):
        raise UserError(f"FluxGym already runs at {running[1]} (pid {running[0].pid}); end it with `./fluxgym down`")
    check_port(address, port)
    folder = outputs_folder(outputs)
    start_runner(folder)
    # Kept in the outputs folder, so that a phone that was let in stays in after a restart.
    token = os.environ.get("FLUXGYM_TOKEN") or ("" if is_loopback(address) else load_token(folder))
    server = start_server(address, port, folder, token, detach)
    site = f"http://{shown_host(address)}:{port}/"
    try:
        wait_until_it_answers(server, address, port)
        if detach:
            write_pid_file(server.pid, site)
        # The one line that a person clicks on; the token stands in no log.
        say(f"{site}?token={quote(token)}" if token else site)
        if detach:
            note(f"`./fluxgym down` ends it, trainings go on; it logs into {LOG_FILE}")
            return 0
        return serve_until_ended(server)
    except BaseException:
        end_process(server)
        raise


def down() -> None:
    """End the app that `app --detach` started. Trainings and their runner go on."""
    found = read_pid_file()
    if found is None:
        (PROJECT_ROOT / PID_FILE).unlink(missing_ok=True)
        raise UserError("no detached FluxGym app runs")
    identity, site = found
    for sign, seconds in ((signal.SIGTERM, END_SECONDS), (signal.SIGKILL, END_SECONDS)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(identity.pid, sign)
        deadline = time.monotonic() + seconds
        while is_alive(identity) and time.monotonic() < deadline:
            time.sleep(0.05)
        if not is_alive(identity):
            break
    if is_alive(identity):
        raise UserError(f"the app (pid {identity.pid}) could not be ended")
    (PROJECT_ROOT / PID_FILE).unlink(missing_ok=True)
    note(f"the app at {site} is ended; trainings go on")


def runner(
    stop_all: Annotated[
        bool, typer.Option("--stop-all", help="Instead: stop every run at a checkpoint and the runner too, then end.")
    ] = False,
    outputs: Outputs = None,
) -> None:
    """Supervise in the foreground; TERM ends it and leaves trainings running."""
    folder = outputs_folder(outputs)
    os.chdir(PROJECT_ROOT)
    more = ["--stop-all"] if stop_all else []
    os.execv(sys.executable, [sys.executable, "-m", "runner", "--outputs", str(folder), *more])


def check_port(address: str, port: int) -> None:
    """Raise UserError where nothing can listen at `address`:`port`."""
    try:
        family, kind, proto, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    except OSError:
        raise UserError(f"{address!r} is not an address of this machine; use 127.0.0.1, or 0.0.0.0 for all") from None
    with socket.socket(family, kind, proto) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(where)
        except OSError as error:
            raise UserError(
                f"port {port} at {address} can't be used ({error.strerror}); choose another with --port"
            ) from None


def shown_host(address: str) -> str:
    """The host of the link: for "all addresses" the one by which this machine is reached from outside."""
    if address not in ("0.0.0.0", "::", ""):
        return f"[{address}]" if ":" in address else address
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))  # sends nothing: it only asks which of our addresses would be used
        return str(probe.getsockname()[0])
    return "127.0.0.1"


def start_server(address: str, port: int, outputs: Path, token: str, detach: bool) -> subprocess.Popen[bytes]:
    """Start Streamlit; detached it has a session of its own and writes into fluxgym.log."""
    command = [sys.executable, "-m", "streamlit", "run", "streamlit_app.py"]
    command += ["--server.port", str(port), "--server.address", address, "--server.headless", "true"]
    command += ["--browser.gatherUsageStats", "false"]
    environment = {**os.environ, "FLUXGYM_OUTPUTS": str(outputs), "FLUXGYM_ADDRESS": address}
    environment.pop("FLUXGYM_TOKEN", None)
    if token:
        environment["FLUXGYM_TOKEN"] = token
    with open(PROJECT_ROOT / LOG_FILE, "ab") as log:
        return subprocess.Popen(
            command,
            cwd=PROJECT_ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=detach,
        )


def wait_until_it_answers(server: subprocess.Popen[bytes], address: str, port: int) -> None:
    """Return once the server speaks HTTP. Raises UserError where it ends or stays silent."""
    host = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "[::1]"}.get(address, shown_host(address))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise UserError(f"the app did not start: {_said_last()}")
        try:
            opener.open(f"http://{host}:{port}/_stcore/health", timeout=2).close()
            return
        except urllib.error.HTTPError:
            return  # the gate answers: the server is up
        except OSError:
            time.sleep(0.1)
    raise UserError(f"the app did not answer in {START_SECONDS:.0f} s; see {PROJECT_ROOT / LOG_FILE}")


def serve_until_ended(server: subprocess.Popen[bytes]) -> int:
    """Stay until the server ends; Ctrl-C, TERM and a closed terminal end it. Trainings go on."""

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    for sign in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, leave)
    note("Ctrl-C ends the app; trainings go on")
    try:
        code = server.wait()
    except KeyboardInterrupt:
        end_process(server)
        note("the app is ended; trainings go on")
        return 0
    if -code in (signal.SIGKILL, signal.SIGTERM):
        why = "or by the system for want of memory; " if code == -signal.SIGKILL else ""
        raise UserError(f"the app was ended from outside ({signal.Signals(-code).name}), {why}trainings go on")
    raise UserError(f"the app ended by itself (exit {code}): {_said_last()}")


def end_process(process: subprocess.Popen[bytes]) -> None:
    """TERM, then KILL."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def write_pid_file(pid: int, site: str) -> None:
    """`fluxgym.pid`: the pid in the first line, what tells it from a reused one in the next, then the address."""
    identity = identify(pid)
    ticks, boot = (identity.start_ticks, identity.boot_id) if identity else (0, "")
    write_atomic(PROJECT_ROOT / PID_FILE, f"{pid}\n{ticks} {boot}\n{site}\n".encode())


def read_pid_file() -> tuple[Identity, str] | None:
    """The detached app that really runs, and its address; None where there is none, or the pid is another's by now."""
    try:
        pid, second, site = (PROJECT_ROOT / PID_FILE).read_text().splitlines()[:3]
        ticks, _, boot = second.partition(" ")
        identity = Identity(int(pid), 0.0, boot, int(ticks))
    except (OSError, ValueError):
        return None
    return (identity, site) if identity.start_ticks and is_alive(identity) else None


def _said_last() -> str:
    log = PROJECT_ROOT / LOG_FILE
    said = last_line(log)
    return f"{said} (more in {log})" if said else f"see {log}"
