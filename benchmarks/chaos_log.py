"""`./fluxgym bench chaos-log`: kill -9 over concurrent writers, and what is read back of what was acknowledged.

Four writers append to one log as fast as they can and report each acknowledged event through a pipe; one after another
is killed and replaced. A reader follows the log meanwhile. Beside it the control: the same with a bare O_APPEND write,
no lock and no repair of torn tails.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from fluxcore.log import LogReader

SIZES = {"200 B": 40, "5 KB": 4_800, "200 KB": 199_800}

WRITER = """
import os, sys, time
from pathlib import Path
from fluxcore.log import EventLog
from fluxcore.log.event import Event, encode, new_writer_id, utc_now
folder, size, mode = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
note = {"note": "x" * size}
if mode == "safe":
    log = EventLog(folder, "cli", run="run")
    def append():
        return log.append("run.noted", note, durable=False).id
else:
    fd = os.open(folder / "events.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    writer, n = new_writer_id("cli"), 0
    def append():
        global n
        n += 1
        os.write(fd, encode(Event(utc_now(), "run", "run.noted", "cli", writer, n, note)))
        return f"{writer}:{n}"
while True:
    for _ in range(max(2, min(50, 250_000 // size))):
        os.write(1, (append() + "\\n").encode())
    time.sleep(0.001)  # else four of them leave the reader no processor to follow them with
"""


@dataclass
class Result:
    """What one campaign found."""

    kills: int
    acknowledged: int
    lost: int
    bad_lines: int
    reader_failures: int
    seconds: float


class Writer:
    """A writing process, and what it said was written."""

    def __init__(self, folder: Path, size: int, mode: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(size), mode], stdout=subprocess.PIPE, bufsize=0
        )
        self.said = bytearray()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        while chunk := self.process.stdout.read(65536):
            self.said += chunk

    def kill(self) -> set[str]:
        """kill -9; gives the ids of the acknowledged events (a half line was not acknowledged)."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self._thread.join()
        return set(self.said.decode().split("\n")[:-1])


def campaign(size: int, kills: int, mode: str, writers: int = 4, most_bytes: int = 200_000_000) -> Result:
    """Kill `kills` of `writers` at work, at random moments; a fresh log whenever one gets large."""
    result = Result(0, 0, 0, 0, 0, 0.0)
    chance = random.Random(7)
    started = time.monotonic()
    while result.kills < kills:
        with tempfile.TemporaryDirectory(prefix="fluxgym-bench-") as place:
            folder = Path(place)
            path = folder / "events.jsonl"
            path.touch()
            acknowledged: set[str] = set()
            running = [Writer(folder, size, mode) for _ in range(writers)]
            reader, seen = LogReader(path), set[str]()
            while result.kills < kills and os.path.getsize(path) < most_bytes:
                victim = chance.randrange(writers)
                while not running[victim].said:  # at work
                    time.sleep(0.001)
                time.sleep(chance.random() * 0.02)
                acknowledged |= running[victim].kill()
                result.kills += 1
                running[victim] = Writer(folder, size, mode)
                try:
                    seen.update(event.id for event in reader.read_new())
                except Exception:
                    result.reader_failures += 1
            for writer in running:
                acknowledged |= writer.kill()
            seen.update(event.id for event in reader.read_new())
            result.acknowledged += len(acknowledged)
            result.lost += len(acknowledged - seen)
            result.bad_lines += reader.bad_lines
            seconds = time.monotonic() - started
            progress = f"{size} bytes, {mode}: {result.kills} of {kills} kills, {seconds:.0f} s"
            print(progress, file=sys.stderr, flush=True)
    result.seconds = time.monotonic() - started
    return result


def main() -> int:
    """The command. Returns 1 where the safe log lost an acknowledged event or its reader failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="over all sizes")
    parser.add_argument("--control-kills", type=int, default=150, help="over all sizes")
    arguments = parser.parse_args()
    table = Table(title=f"kill -9 over 4 concurrent writers ({machine()})")
    for column in ("line", "log", "kills", "acknowledged", "lost", "torn lines", "reader failures", "seconds"):
        table.add_column(column, justify="left" if column in ("line", "log") else "right")
    lost = 0
    for name, size in SIZES.items():
        for mode, kills in (("safe", arguments.kills), ("control", arguments.control_kills)):
            found = campaign(size, math.ceil(kills / len(SIZES)), mode)
            lost += found.lost + found.reader_failures if mode == "safe" else 0
            title = "FluxGym's" if mode == "safe" else "no lock, no repair"
            counts = (found.kills, found.acknowledged, found.lost, found.bad_lines, found.reader_failures)
            table.add_row(name, title, *(f"{count:,}" for count in counts), f"{found.seconds:.0f}")
    Console(width=120).print(table)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
