"""`./fluxgym bench log`: how fast one process appends step events in safe mode (lock, tail check), and reads them back.

`--peers` measures trackio, TensorBoard's writer, MLflow (SQLite) and W&B (offline) beside it, each in an environment of
its own under `.work/peers` (it installs them: a network or a package index is needed).
"""

from __future__ import annotations

import argparse
import fcntl
import inspect
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from fluxcore.history.frame import read_steps
from fluxcore.log import EventLog, LogReader
from fluxcore.runs.files import PROJECT_ROOT

PEERS = PROJECT_ROOT / ".work" / "peers"
SCALARS = 100_000
ROUNDS = 10
LEAST_RATE, MOST_US = 150_000, 15
LEAST_RATIOS = {"trackio": (3, 3), "tensorboard": (0, 10)}
"""How many times faster than a peer: to write, and to read back."""

PEER_SCRIPTS = {
    "trackio": """
import json, os, sys, tempfile, time
os.environ["TRACKIO_DIR"] = tempfile.mkdtemp()
import pandas, trackio
from trackio.sqlite_storage import SQLiteStorage
n = int(sys.argv[1])
started = time.perf_counter()
run = trackio.init(project="bench", name="run", embed=False)
for i in range(n):
    trackio.log({"loss": 1 / (i + 1)}, step=i)
trackio.finish()
wrote = time.perf_counter() - started
frame, read = middle_of_three(lambda: pandas.DataFrame(SQLiteStorage.get_logs("bench", "run")))
print(json.dumps({"rows": len(frame), "wrote": wrote, "read": read}))
""",
    "tensorboard": """
import json, sys, tempfile, time
import pandas
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
n, folder = int(sys.argv[1]), tempfile.mkdtemp()
started = time.perf_counter()
writer = EventFileWriter(folder)
for i in range(n):
    value = Summary.Value(tag="loss", simple_value=1 / (i + 1))
    writer.add_event(Event(wall_time=time.time(), step=i, summary=Summary(value=[value])))
writer.close()
wrote = time.perf_counter() - started
def look():
    events = EventAccumulator(folder, size_guidance={"scalars": 0}).Reload()
    return pandas.DataFrame(events.Scalars("loss"))
frame, read = middle_of_three(look)
print(json.dumps({"rows": len(frame), "wrote": wrote, "read": read}))
""",
    "mlflow": """
import json, os, sys, tempfile, time
os.environ["MLFLOW_DISABLE_TELEMETRY"] = os.environ["DO_NOT_TRACK"] = "true"
import logging
logging.disable(logging.WARNING)
import mlflow, pandas
n = int(sys.argv[1])
mlflow.set_tracking_uri(f"sqlite:///{tempfile.mkdtemp()}/mlflow.db")
with mlflow.start_run() as run:
    mlflow.log_metric("warm-up", 1.0)
    started = time.perf_counter()
    for i in range(n):
        mlflow.log_metric("loss", 1 / (i + 1), step=i)
    wrote = time.perf_counter() - started
def look():
    found = mlflow.MlflowClient().get_metric_history(run.info.run_id, "loss")
    return pandas.DataFrame([(one.step, one.timestamp, one.value) for one in found])
frame, read = middle_of_three(look)
print(json.dumps({"rows": len(frame), "wrote": wrote, "read": read}))
""",
    "wandb, offline": """
import json, os, sys, tempfile, time
os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": tempfile.mkdtemp()}
import wandb
n = int(sys.argv[1])
run = wandb.init(project="bench", settings=wandb.Settings(x_disable_stats=True))
started = time.perf_counter()
for i in range(n):
    run.log({"loss": 1 / (i + 1)}, step=i)
run.finish()
print(json.dumps({"rows": n, "wrote": time.perf_counter() - started}))
""",
}
PEER_PACKAGES = {
    "trackio": ["trackio==0.43.0", "pandas"],
    "tensorboard": ["tensorboard==2.21.0", "pandas"],
    "mlflow": ["mlflow==3.17.2"],
    "wandb, offline": ["wandb==0.31.0"],
}
FEWER = {"mlflow": 2_000}
"""A peer that would take a quarter of an hour for them all."""


def main() -> int:
    """The command. Returns 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--events", type=int, default=200_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fluxgym-bench-") as place:
        missed = append(Path(place), arguments.events)
    ours = {"rows": SCALARS, **write_and_read()}
    rows = {"FluxGym": ours}
    if arguments.peers:
        rows |= {name: peer(name) for name in PEER_SCRIPTS}
    table = Table(title=f"Scalars, written one by one and read back into a frame ({machine()})")
    for column in ("", "scalars", "written /s", "ours is × faster", "read back", "ours is × faster, a scalar"):
        table.add_column(column, justify="right" if column else "left")
    for name, row in rows.items():
        rate, our_rate = row["rows"] / row["wrote"], ours["rows"] / ours["wrote"]
        read = ours["read"] / ours["rows"]
        table.add_row(
            name,
            f"{row['rows']:,.0f}",
            f"{rate:,.0f}",
            f"{our_rate / rate:.1f}",
            f"{row['read'] * 1000:,.0f} ms" if "read" in row else "only after an upload",
            f"{row['read'] / row['rows'] / read:.1f}" if "read" in row else "",
        )
    Console(width=120).print(table)
    for name, (write, back) in LEAST_RATIOS.items():
        if row := rows.get(name):
            missed |= ours["rows"] / ours["wrote"] < write * row["rows"] / row["wrote"]
            missed |= row["read"] / row["rows"] < back * ours["read"] / ours["rows"]
    return int(missed)


def append(folder: Path, count: int) -> bool:
    """Print the rate and the latencies of appends of about 190 bytes, in ROUNDS: a shared machine varies.

    Whether the middle one of them misses a target.

    A round's first half gives the rate, its second the latencies (timing each append takes time itself); it is followed
    by one of the bare system calls.
    """
    data = {"step": 1, "total_steps": 960, "loss": 0.1234}
    log = EventLog(folder, "trainer", run="my-cat", attempt=1)
    clock: Callable[[], int] = time.perf_counter_ns
    rounds = []
    share = count // ROUNDS
    for number in range(ROUNDS):
        taken = []
        first, middle, end = number * share, number * share + share // 2, (number + 1) * share
        started = time.perf_counter()
        for step in range(first, middle):
            data["step"] = step
            log.append("train.step", data)
        seconds = time.perf_counter() - started
        for step in range(middle, end):
            data["step"] = step
            before = clock()
            log.append("train.step", data)
            taken.append(clock() - before)
        taken.sort()
        line = (folder / "events.jsonl").read_bytes()[:512].split(b"\n")[0] + b"\n"
        bare_us = bare(folder, line, share)
        p50, p99 = (taken[len(taken) * part // 100] / 1000 for part in (50, 99))
        rounds.append(((middle - first) / seconds, p50, p99, bare_us))
    size = (folder / "events.jsonl").stat().st_size / count
    reader = LogReader(folder / "events.jsonl")
    assert len(reader.read_new()) == count and not reader.bad_lines
    print(
        f"append, one process, {size:.0f} bytes, lock and tail check "
        f"(at least {LEAST_RATE:,}/s, p99 at most {MOST_US} µs):"
    )
    rounds.sort(reverse=True)
    for what, (rate, p50, p99, bare_us) in {"best": rounds[0], "middle": rounds[ROUNDS // 2]}.items():
        print(
            f"  {what} of {ROUNDS} rounds: {rate:,.0f}/s; p50 {p50:.1f} µs, p99 {p99:.1f} µs; "
            f"JSON, lock, seek, write and unlock by themselves: {bare_us:.1f} µs"
        )
    rate, _, p99, _ = rounds[ROUNDS // 2]
    return rate < LEAST_RATE or p99 > MOST_US


def bare(folder: Path, line: bytes, count: int) -> float:
    """Microseconds of the calls that no safe append can do without: what the machine itself takes."""
    fd = os.open(folder / "bare", os.O_RDWR | os.O_APPEND | os.O_CREAT)
    data = orjson.loads(line)
    started = time.perf_counter()
    for _ in range(count):
        encoded = orjson.dumps(data)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.lseek(fd, 0, os.SEEK_END)
        os.write(fd, encoded)
        fcntl.flock(fd, fcntl.LOCK_UN)
    seconds = time.perf_counter() - started
    os.close(fd)
    return seconds / count * 1e6


def write_and_read() -> dict[str, float]:
    """Seconds for SCALARS steps into a log, and from the log into a pandas frame."""
    with tempfile.TemporaryDirectory(prefix="fluxgym-bench-") as place:
        folder = Path(place) / "run"
        folder.mkdir()
        started = time.perf_counter()
        with EventLog(folder, "trainer", attempt=1) as log:
            for i in range(SCALARS):
                log.append("train.step", {"step": i, "loss": 1 / (i + 1)})
        wrote = time.perf_counter() - started
        import pandas  # noqa: F401  the peers' import is not in their figure either

        frame, read = middle_of_three(lambda: read_steps(folder, ["step", "ts", "loss"]).to_pandas())
        assert len(frame) == SCALARS
    return {"wrote": wrote, "read": read}


def middle_of_three(read: Callable[[], Any]) -> tuple[Any, float]:
    """What was read last, and the seconds of the middle one of three readings, ours and the peers' alike.

    The first sets up what is not asked about.
    """
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        found = read()
        seconds.append(time.perf_counter() - started)
    return found, sorted(seconds)[1]


def peer(name: str) -> dict[str, float]:
    """The same with a peer, in its own environment."""
    folder = PEERS / name.split(",")[0]
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *PEER_PACKAGES[name]], check=True)
    timing = "from __future__ import annotations\nimport time\n" + inspect.getsource(middle_of_three)
    done = subprocess.run(
        [str(python), "-c", timing + PEER_SCRIPTS[name], str(FEWER.get(name, SCALARS))],
        check=True,
        capture_output=True,
        text=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    sys.exit(main())
