"""One round of readings of a live attempt: its GPUs, its process tree, disk and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fluxcore.runs.records import Attempt

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
    if not _is_due(now, run.sampled_at, period):
        return
    readings = _gpus_of(runner, run, attempt)
    if readings is None:  # on its way
        return
    run.sampled_at = now
    for sample in readings:
        _append(run, sample, attempt.number)
    watch.readings(readings, period)

    activity = runner.executor.activity(run.folder, attempt.number, attempts.record(runner.executor, run))
    read_at = runner.clock.monotonic()
    watch.activity(activity)
    cpu_percent = None
    if activity is not None:
        if run.cpu_before is not None and read_at > run.cpu_before[0]:
            used = activity.cpu_seconds - run.cpu_before[1]
            cpu_percent = round(100 * max(0.0, used) / (read_at - run.cpu_before[0]), 1)
        run.cpu_before = (read_at, activity.cpu_seconds)
    data = {
        "cpu_percent": cpu_percent,
        "rss_gib": round(activity.rss_bytes / GIB, 4) if activity else None,
        "read_bytes": activity.read_bytes if activity else None,
        "write_bytes": activity.write_bytes if activity else None,
        "disk_free_gib": runner.host.disk_free_gib(run.folder.path),
        "memory_available_gib": runner.host.memory_available_gib(),
        "oom_kills": activity.oom_kills if activity else None,
    }
    run.append("host.sampled", data, attempt=attempt.number)


def take_last_look(runner: Runner, run: Run) -> bool:
    """Append what has befallen a GPU of an attempt since its last sample: it may be what ended the trainer.

    False where the reading is on its way.
    """
    attempt = run.state.live_attempt
    if attempt is None or run.watch is None:
        return True
    readings = _gpus_of(runner, run, attempt)
    for sample in readings or []:
        if sample.get("xid_errors") or sample.get("problem"):
            _append(run, sample, attempt.number)
    return readings is not None


def _append(run: Run, sample: dict[str, Any], attempt: int) -> None:
    known = run.watch.gpus.get(sample["uuid"]) if run.watch else None
    before = known.problem if known else None
    run.append("gpu.sampled", sample, attempt=attempt)
    gpu, problem, xids = f"GPU {sample['index']}", sample.get("problem"), sample.get("xid_errors")
    if xids:
        run.note(f"{gpu} reported XID {', '.join(map(str, xids))}", "ERROR")
    if problem != before:
        said = {"lost": "is lost", "no_answer": "can't be read: its driver gives no answer"}
        run.note(f"{gpu} {said.get(str(problem), 'can be read again')}", "ERROR" if problem else "INFO")


def _is_due(now: float, before: float, period: float) -> bool:
    """Runs of one period are sampled at the same moments, so that they share a reading of the GPUs.

    Half a turn early is better than a period late.
    """
    return before == float("-inf") or (now + 0.05) // period > (before + 0.05) // period


def _gpus_of(runner: Runner, run: Run, attempt: Attempt) -> list[dict[str, Any]] | None:
    """Readings of the attempt's own GPUs, each with the XIDs that are new to it; None while they are on their way."""
    if not attempt.gpus:
        return []
    samples, watch = runner.gpus.sample(), run.watch
    if samples is None or watch is None:
        return None
    own = {sample["uuid"]: sample for sample in samples if sample["uuid"] in attempt.gpus}
    missing = [uuid for uuid in attempt.gpus if uuid not in own]
    nameless = [sample for sample in samples if sample["uuid"] is None]
    if len(missing) == len(nameless) == 1:  # it was lost before this runner could learn its name
        own[missing[0]] = {**nameless[0], "uuid": missing[0]}
    return [{**sample, **watch.new_xids(uuid, sample.get("xid_errors"))} for uuid, sample in own.items()]
