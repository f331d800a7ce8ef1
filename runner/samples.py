"""One round of readings of a live attempt: its GPUs, its process tree, disk and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import attempts
from .run import Run

if TYPE_CHECKING:
    from .loop import Runner

GIB = 2**30


def take_sample(runner: Runner, run: Run) -> None:
    """Append `gpu.sampled` and `host.sampled` where the run's period has passed, and tell its watch."""
    attempt, watch = run.state.live_attempt, run.watch
    if attempt is None or watch is None:
        return
    now, period = runner.clock.monotonic(), float(run.option("sample_gpu_seconds"))
    # Half a turn early is better than a period late.
    if now - run.sampled_at < period - 0.05:
        return
    run.sampled_at = now
    readings = [sample for sample in runner.gpus.sample() if sample["uuid"] in attempt.gpus] if attempt.gpus else []
    for sample in readings:
        run.append("gpu.sampled", sample, attempt=attempt.number)
    watch.readings(readings, period)

    activity = runner.executor.activity(run.folder, attempt.number, attempts.record(runner.executor, run))
    watch.activity(activity)
    cpu_percent = None
    if activity is not None:
        if run.cpu_before is not None and now > run.cpu_before[0]:
            used = activity.cpu_seconds - run.cpu_before[1]
            cpu_percent = round(100 * max(0.0, used) / (now - run.cpu_before[0]), 1)
        run.cpu_before = (now, activity.cpu_seconds)
    data = {
        "cpu_percent": cpu_percent,
        "rss_gib": round(activity.rss_bytes / GIB, 4) if activity else None,
        "read_bytes": activity.read_bytes if activity else None,
        "write_bytes": activity.write_bytes if activity else None,
        "disk_free_gib": runner.host.disk_free_gib(run.folder.path),
        "memory_available_gib": runner.host.memory_available_gib(),
    }
    run.append("host.sampled", data, attempt=attempt.number)
