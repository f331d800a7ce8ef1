"""`./fluxgym bench app-rerun`: the server's time for a rerun of each page, with 1,000 runs and one of a million events.

Before each rerun a live run and the long one get a step, and the shared history is made to look for it, as the first
session of a tick does; what the other sessions of that tick need is less. The time is that of the page's script alone,
taken in a process of its own; the browser's is not in it. On a machine
that does other work as well the processor's time says more.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine, memory_mib
from benchmarks.history import write_run
from fluxcore.log import EventLog
from fluxcore.runs.files import PROJECT_ROOT

ROUNDS = 40
WANTED_MS = 100
TABS = ("overview", "samples", "loss", "monitor", "log", "checkpoints", "config", "events")
PAGES: dict[str, tuple[str, dict[str, str]]] = {
    "Train": ("train", {}),
    "Runs": ("runs", {}),
    "Compare, three runs": ("compare", {"runs": "long,run-0000,run-0001"}),
    "History": ("history", {}),
    "Settings": ("settings", {}),
    "Run, a small live one": ("run", {"name": "run-0000"}),
    **{f"Run of a million events, {tab}": ("run", {"name": "long", "tab": tab}) for tab in TABS},
}


def make(outputs: Path, runs: int, events: int, long: int) -> None:
    """Many finished runs, a live one, and a long one that lives too."""
    for i in range(runs):
        folder = outputs / f"run-{i:04d}"
        folder.mkdir(parents=True)
        with open(folder / "events.jsonl", "wb") as file:
            write_run(file, folder.name, events, full=True, end=i > 0)
    (outputs / "long").mkdir()
    with open(outputs / "long" / "events.jsonl", "wb") as file:
        write_run(file, "long", long, full=True)


def child(outputs: Path) -> dict[str, Any]:
    """Milliseconds of ROUNDS reruns of each page and of the processor in them, both sorted; the first look; memory."""
    os.environ["FLUXGYM_OUTPUTS"] = str(outputs)
    from streamlit.runtime.scriptrunner.script_runner import ScriptRunner
    from streamlit.testing.v1 import AppTest

    from studio.live import live_runs

    taken: list[tuple[float, float]] = []
    run_script = ScriptRunner._run_script

    def timed(self: ScriptRunner, *given: Any) -> None:
        begun, busy = time.perf_counter(), time.thread_time()
        try:
            run_script(self, *given)
        finally:
            taken.append(((time.perf_counter() - begun) * 1000, (time.thread_time() - busy) * 1000))

    ScriptRunner._run_script = timed  # type: ignore[method-assign]
    begun = time.perf_counter()
    live_runs().all()
    cold = time.perf_counter() - begun
    for _ in range(2):  # at a quiet look the history compresses itself
        live_runs().expire()
        live_runs().all()
    logs = [EventLog(outputs / name, "trainer", attempt=1) for name in ("long", "run-0000")]
    steps = [int(live_runs().history.rows[name]["step"]) for name in ("long", "run-0000")]
    gc.collect()
    gc.freeze()
    gc.disable()  # as the server has it: see .streamlit/config.toml
    found: dict[str, Any] = {}
    for label, (page, query) in PAGES.items():
        app = AppTest.from_file(str(PROJECT_ROOT / "studio" / "main.py"), default_timeout=120).run()
        for key, value in query.items():
            app.query_params[key] = value
        if page != "train":
            app.switch_page(f"../pages/{page}.py")
        app.run()
        taken.clear()
        for _ in range(ROUNDS):
            for i, log in enumerate(logs):
                steps[i] += 1
                data = {"step": steps[i], "total_steps": 960_000, "loss": 0.3, "lr": 1e-4, "grad_norm": 0.5}
                log.append("train.step", data | {"epoch": 1, "step_seconds": 1.0, "memory_gib": 31.2})
            live_runs().expire()
            app.run()
        assert not app.exception, (label, app.exception)
        found[label] = [sorted(column) for column in zip(*taken, strict=True)]
        gc.collect()
    now, peak = memory_mib()
    return {"pages": found, "cold": cold, "memory": now, "peak": peak}


def main() -> int:
    """The command. Returns 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--events-per-run", type=int, default=1000)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(child(arguments.child)))
        return 0
    with tempfile.TemporaryDirectory(prefix="fluxgym-bench-") as place:
        outputs = Path(place) / "outputs"
        make(outputs, arguments.runs, arguments.events_per_run, arguments.events)
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.app_rerun", "--child", str(outputs)],
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    answer = json.loads(done.stdout.splitlines()[-1])
    table = Table(title=f"A rerun's time on the server, {arguments.runs:,} runs ({machine()})")
    for column in ("page", "p50", "p95", "processor, p50", "p95", ""):
        table.add_column(column, justify="left" if column == "page" else "right")
    late = False
    for label, (wall, busy) in answer["pages"].items():
        found = [f"{times[len(times) * percent // 100]:.0f} ms" for times in (wall, busy) for percent in (50, 95)]
        short = wall[len(wall) * 95 // 100] > WANTED_MS
        late |= short
        table.add_row(label, *found, "short of the wanted" if short else "")
    table.add_row("at most", "", f"{WANTED_MS} ms", "", "", "")
    console = Console(width=110)
    console.print(table)
    console.print(
        f"The logs read for the first time: {answer['cold']:.1f} s. Memory {answer['memory']:.0f} MiB, at its peak "
        f"{answer['peak']:.0f} MiB."
    )
    return int(late)


if __name__ == "__main__":
    sys.exit(main())
