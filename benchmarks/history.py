"""`./fluxgym bench history`: a run of a million events, and a thousand runs of a thousand, from opening to refreshing.

Every figure is taken in a process of its own, with the logs in the page cache, its imports not counted.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.table import Table

from benchmarks import machine, memory_mib
from fluxcore.history import connect, run_sql
from fluxcore.history.charts import step_curve
from fluxcore.history.compaction import compact
from fluxcore.log import Event, EventLog
from fluxcore.log.event import encode

ROUNDS = 50


def write_run(file: BinaryIO, name: str, events: int, *, full: bool, end: bool = False) -> None:
    """A run as the trainer and the runner write it: five steps, then a sample of the GPU and one of the host.

    `full`: with every field that they write (about 340 bytes a line); else steps of about 200 bytes and few samples.
    """
    rng = random.Random(name)
    count = {"cli": 0, "runner": 0, "trainer": 0}

    def put(source: str, type: str, data: dict[str, Any], attempt: int | None = 1) -> None:
        count[source] += 1
        n = sum(count.values())
        second, rest = divmod(n * 700_000, 1_000_000)
        ts = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(1_790_000_000 + second)) + f".{rest:06d}Z"
        file.write(encode(Event(ts, name, type, source, f"{source}-4711-3f2a", count[source], data, attempt)))

    put("cli", "config.saved", {"config": {"lora_name": name, "base_model": "flux-mini"}}, None)
    put("cli", "run.requested", {"config": "cli-4711-3f2a:1", "resume_from": None}, None)
    put("runner", "run.started", {"request": "cli-4711-3f2a:2", "pid": 4711, "resume_step": None})
    step = 0
    while sum(count.values()) < events - end:
        place = sum(count.values()) % (7 if full else 100)
        if place == 5:
            gpu = {"index": 0, "uuid": "GPU-2f9c41d0", "name": "NVIDIA H200", "utilization_percent": 97}
            power = {"power_watts": 612.5, "power_limit_watts": 700.0, "temperature_c": 61, "throttle_reasons": []}
            put("runner", "gpu.sampled", gpu | {"memory_used_gib": 31.25, "memory_total_gib": 139.0} | power)
        elif place == 6:
            host = {"cpu_percent": 101.5, "rss_gib": 3.21, "read_bytes": 123456789, "write_bytes": 4567}
            put("runner", "host.sampled", host | {"disk_free_gib": 120.33, "memory_available_gib": 60.1})
        else:
            step += 1
            data = {"step": step, "total_steps": 960_000, "loss": round(rng.random(), 5)}
            if full:
                data |= {"epoch": 1 + step // 1000, "lr": 1e-4, "grad_norm": rng.random(), "step_seconds": 0.98765}
                data |= {"images_per_second": 4.05, "memory_gib": 31.2}
            put("trainer", "train.step", data)
    if end:
        put("runner", "run.completed", {"weights": f"{name}.safetensors", "steps": step})


def one_run(place: Path, events: int, full: bool) -> dict[str, float]:
    """Figures of one long run, each taken in a process of its own."""
    folder = place / ("full" if full else "lean") / "long"
    folder.mkdir(parents=True)
    with open(folder / "events.jsonl", "wb") as file:
        write_run(file, "long", events, full=full)
    size = (folder / "events.jsonl").stat().st_size
    return measure("one-run", folder.parent) | {"bytes": size / events}


def many_runs(place: Path, runs: int, events: int) -> dict[str, float]:
    """Figures of many finished runs, compacted, and one live one."""
    outputs = place / "many"
    for i in range(runs):
        folder = outputs / f"run-{i:04d}"
        folder.mkdir(parents=True)
        with open(folder / "events.jsonl", "wb") as file:
            write_run(file, folder.name, events, full=True, end=i > 0)
    logs = measure("many-runs", outputs)
    started = time.perf_counter()
    compact(outputs)
    compacted = time.perf_counter() - started
    return measure("many-runs", outputs) | {"open_from_logs": logs["open"], "compact": compacted}


def measure(what: str, outputs: Path) -> dict[str, float]:
    """Run one of the measurements below in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.history", "--child", what, str(outputs)],
        check=True,
        capture_output=True,
        text=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def child(what: str, outputs: Path) -> dict[str, float]:
    """The measurement itself: opening, then ROUNDS refreshes with something new."""
    import pandas  # noqa: F401  what charts are made with; its import is not in the figures

    gc.freeze()  # as the server does after its imports
    run = "long" if what == "one-run" else "run-0000"
    started = time.perf_counter()
    history = connect(outputs)
    look(history, what, run)
    opened = time.perf_counter() - started
    history.refresh()  # the quiet moment in which the history compresses what it read
    log = EventLog(outputs / run, "trainer", attempt=1)
    step = int(history.rows[run]["step"])
    seconds = []
    for _ in range(ROUNDS):
        for _ in range(1000 if what == "one-run" else 1):
            step += 1
            data = {"step": step, "total_steps": 960_000, "epoch": 1, "loss": random.random(), "lr": 1e-4}
            log.append("train.step", data | {"grad_norm": 0.5, "step_seconds": 1.0, "memory_gib": 31.2})
        started = time.perf_counter()
        history.refresh()
        look(history, what, run)
        seconds.append(time.perf_counter() - started)
    now, peak = memory_mib()
    seconds.sort()
    asked = [_ask(outputs, history) for _ in range(4)] if what == "one-run" else [0.0] * 4
    return {
        "ask": asked[0],  # a copy is made, which the next questions find
        "ask_again": sorted(asked[1:])[1],
        "open": opened,
        "refresh_p50": seconds[ROUNDS // 2],
        "refresh_p95": seconds[ROUNDS * 95 // 100],
        "memory": now,
        "peak": peak,
    }


def _ask(outputs: Path, history: Any) -> float:
    """Seconds of a question at the guarded SQL box."""
    started = time.perf_counter()
    assert run_sql(outputs, "SELECT count(*), avg(loss) FROM steps", history=history).rows[0][0] > 0
    return time.perf_counter() - started


def look(history: Any, what: str, run: str) -> None:
    """What a page shows: the loss chart of one run, or the list of all with state and last loss."""
    if what == "one-run":
        assert 900 < len(step_curve(history, run, "loss", points=1000)) <= 1000
    else:
        rows = history.query("SELECT run, state, step, loss FROM runs ORDER BY created DESC")
        assert len(rows) == len(history.rows) and all(row["loss"] is not None for row in rows)


MOST_MB = 400
"""Of memory, for the process that holds a run of a million events."""


def main() -> int:
    """The command. Returns 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--events-per-run", type=int, default=1000)
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "OUTPUTS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child[0], Path(arguments.child[1]))))
        return 0
    table = Table(title=f"History, opened and refreshed ({machine()})")
    for column in ("", "first open", "refresh p50", "refresh p95", "memory", "peak"):
        table.add_column(column, justify="right" if column else "left")
    with tempfile.TemporaryDirectory(prefix="fluxgym-bench-") as place:
        missed = False
        for full in (False, True):
            found = one_run(Path(place), arguments.events, full)
            title = f"one run of {arguments.events:,} events of {found['bytes']:.0f} bytes, loss chart of 1,000 points"
            table.add_row(title, *_cells(found))
            missed |= not full and _misses(found, 2.0, 50)
            title = "  a question at the SQL box over it: with new events in the log / with none since the last"
            table.add_row(title, f"{found['ask']:.2f} s", f"{found['ask_again'] * 1000:.0f} ms", "", "", "")
        table.add_row("  at most", "2.00 s", "", "50 ms", f"{MOST_MB * 1e6 / 1024**2:.0f} MiB ({MOST_MB} MB)", "")
        found = many_runs(Path(place), arguments.runs, arguments.events_per_run)
        title = f"{arguments.runs:,} runs of {arguments.events_per_run:,} events, compacted: list with state and loss"
        table.add_row(title, *_cells(found))
        missed |= _misses(found, 1.0, 60)
        table.add_row("  at most", "1.00 s", "", "60 ms", "", "")
        table.add_row("  the same from the logs alone", f"{found['open_from_logs']:.2f} s", "", "", "", "")
        table.add_row("  compacting them", f"{found['compact']:.2f} s", "", "", "", "")
    Console(width=150).print(table)
    return int(missed)


def _misses(found: dict[str, float], seconds: float, milliseconds: float) -> bool:
    held = found["memory"] * 1024**2 / 1e6
    return found["open"] > seconds or found["refresh_p95"] * 1000 > milliseconds or held > MOST_MB


def _cells(found: dict[str, float]) -> list[str]:
    return [
        f"{found['open']:.2f} s",
        f"{found['refresh_p50'] * 1000:.0f} ms",
        f"{found['refresh_p95'] * 1000:.0f} ms",
        f"{found['memory']:.0f} MiB",
        f"{found['peak']:.0f} MiB",
    ]


if __name__ == "__main__":
    sys.exit(main())
