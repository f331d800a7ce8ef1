"""`status`, `logs`, `events`, `checkpoints`: looking at runs. All of it is read from the logs and the folders."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from fluxcore.history.run_row import run_row
from fluxcore.history.views import RUN_COLUMNS
from fluxcore.log import EventError, FolderReader, number, read_events, utc_now
from fluxcore.log.catalog import TYPES
from fluxcore.log.event import decode, encode
from fluxcore.runs import (
    RunFolder,
    RunState,
    list_checkpoints,
    load_all,
    load_run,
    resume_choice,
    seconds_between,
)
from fluxcore.runs.outlook import LOST, NO_RUNNER, all_evidence, evidence_words, going_on, waits_for, what_happened
from fluxcore.tail import last_lines
from fluxcore.units import duration, gib, size

from .options import Json, Name, Outputs, outputs_folder
from .out import cell, note, say, table, to_json

POLL_SECONDS = 0.3
CHUNK = 1 << 20
HEARD_LINES = 500
OF_SETTINGS = frozenset({"nan_loss", "oom_gpu", "oom_host", "bad_config"})
"""Failures whose hint may name a setting to change."""

Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on while the run lives.")]


def status(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One run only.", show_default=False)] = None,
    json: Json = False,
    outputs: Outputs = None,
) -> None:
    """The runs: state, progress, loss, and what went wrong."""
    root = outputs_folder(outputs)
    if name is not None:
        states = [load_run(root, name)[1]]
    else:
        states, problems = load_all(root)
        for problem in problems:
            note(f"left out: {problem}")
    rows = [{**run_row(state), "state": _observed(state, root)} for state in states]
    if json:
        say(to_json([{column: row[column] for column in RUN_COLUMNS} for row in rows]))
    elif name is not None:
        _details(states[0], rows[0], RunFolder.of(root, name), _line_up(root))
    elif rows:
        columns = ["run", "state", "step", "%", "epoch", "loss", "took", "left", "attempts", "reason"]
        line = _line_up(root)
        lines = [_line(row, state, line) for row, state in zip(rows, states, strict=True)]
        table(columns, lines, right={"step", "%", "epoch", "loss", "took", "left", "attempts"})
        if line["paused"] and any(state.state == "queued" for state in states):
            say("the queue is paused: nothing starts before `./fluxgym queue resume`")
        if not line["runner"] and any(state.is_busy for state in states):
            say(NO_RUNNER)
    else:
        say(f"no runs in {root}" + ("" if root.is_dir() else " (there is no such folder)"))


def _observed(state: RunState, outputs: Path) -> str:
    from fluxcore.runs.supervision import observed_state

    return observed_state(state, outputs)


def _line_up(outputs: Path) -> dict[str, bool]:
    """Whether a runner serves the folder, and whether its queue is paused."""
    from fluxcore.runs import read_installation
    from fluxcore.runs.supervision import runner_alive

    return {"runner": runner_alive(outputs) is not None, "paused": read_installation(outputs).paused}


def _line(row: dict[str, Any], state: RunState, line: dict[str, bool]) -> list[Any]:
    if state.is_coming:  # what the attempt before it came to is not this one's
        row = {**row, "step": state.coming_step or 0, "epoch": "", "loss": None, "total_steps": None}
    total = row["total_steps"]
    share = f"{100 * row['step'] / total:.0f}" if total else ""
    steps = f"{row['step']}/{total}" if total else (row["step"] or "")
    took, left = duration(row["seconds"], unknown=""), duration(state.eta_seconds, unknown="")
    reason = row["reason"] or state.verdict or ("disk low" if state.disk_low else "")
    if state.state == "queued":
        reason = f"waits for {waits_for(state, runner=line['runner'], paused=line['paused'])}"
    elif state.refusal:
        reason = f"refused: {state.refusal}"
    elif row["state"] == "lost":
        reason = "its process is gone"
    return [
        row["run"],
        row["state"],
        steps,
        share,
        row["epoch"] or "",
        row["loss"],
        took,
        left,
        row["attempts"],
        reason,
    ]


def _details(state: RunState, row: dict[str, Any], folder: RunFolder, line: dict[str, bool]) -> None:
    hidden = {"config", "step", "epoch", "loss", "best_loss", "total_steps"} if state.is_coming else {"config"}
    shown = {key: value for key, value in row.items() if key not in hidden and value not in (None, "", [])}
    if state.is_coming and state.attempts:
        shown["goes on from step" if state.coming_step else "begins at step"] = state.coming_step or 0
    if state.is_live and not state.is_coming:
        shown |= _live(state, folder)
    if state.eta_seconds is not None:
        shown["left"] = duration(state.eta_seconds)
    if state.state == "queued":
        shown |= {
            "position": state.queue_position,
            "waits for": waits_for(state, runner=line["runner"], paused=line["paused"]),
        }
    if state.disk_low:
        free, needed = (gib(2**30 * (number(state.disk_low.get(key)) or 0)) for key in ("free_gib", "needed_gib"))
        shown["disk low"] = f"{free} free, {needed} needed"
    if state.notices and not state.is_coming:
        shown["mind"] = " ".join(state.notices.values())
    if state.refusal:
        shown["refused"] = state.refusal
    said = what_happened(state)
    if said:
        shown["what happened"] = said
    if said and state.must_be_killed:
        shown["then"] = "Its processes are being ended."
    elif said and (seen := all_evidence(folder, state)[0]):
        shown["evidence"] = evidence_words(seen)
    if dumps := folder.stack_dumps():
        attempt, path = dumps[0]
        shown["stacks"] = f"{path} (of attempt {attempt})"
    shown["monitoring"] = "on" if state.monitoring else "off"
    if state.bad_lines:
        shown["unreadable lines"] = f"{state.bad_lines} in the event log; they are skipped, all others count"
    shown["folder"] = str(folder.path)
    for key, value in shown.items():
        say(f"{key:<18} {cell(value)}")
    if row["state"] == "lost":
        say(LOST)
    if state.is_busy and not line["runner"]:
        say(NO_RUNNER)
    if said and not state.must_be_killed:
        sentences = going_on(state, folder)
        for sentence in sentences:
            say(sentence)
        if state.reason in OF_SETTINGS and sentences[-1].startswith("To "):
            say("With `--set KEY=VALUE` behind it a setting is changed first; it may be repeated.")


def _live(state: RunState, folder: RunFolder) -> dict[str, Any]:
    """What its trainer does and on what, as far as it is known, and how old that is."""
    attempt, shown = state.live_attempt, dict[str, Any]()
    if state.phase:
        counted = state.phase_unit != "bytes" and state.phase_done is not None and state.phase_total
        of = f" {state.phase_done:,.0f} of {state.phase_total:,.0f} {state.phase_unit}".rstrip() if counted else ""
        shown["phase"] = state.phase + of
    if attempt is not None:
        shown["trainer's pid"] = attempt.pid
        shown["GPUs"] = ", ".join(attempt.gpus) or "none"
    for uuid, gpu in state.gpus.items():
        used, total, busy = (number(gpu.get(key)) for key in ("memory_used_gib", "memory_total_gib", _BUSY))
        memory = f", {used:.1f} of {total:.0f} GiB" if used is not None and total is not None else ""
        reading = f"{busy:.0f} % busy" if busy is not None else "not known how busy"
        shown[f"GPU {gpu.get('index', uuid)}"] = f"{reading}{memory}, {_ago(gpu.get('ts'))}"
    cpu, memory_gib = number(state.host.get("cpu_percent")), number(state.host.get("rss_gib"))
    if cpu is not None and memory_gib is not None:
        shown["processes"] = f"{cpu:.0f} % CPU, {memory_gib:.1f} GiB, {_ago(state.host.get('ts'))}"
    if heard := _last_heard(folder):
        shown["last heard of it"] = _ago(heard)
    return shown


_BUSY = "utilization_percent"


def _last_heard(folder: RunFolder) -> str | None:
    """When the trainer last wrote an event, as the end of the log says; None where that has none of it."""
    for text in reversed(last_lines(folder.events, HEARD_LINES)):
        with contextlib.suppress(EventError):
            event = decode(text.encode())
            if event.source == "trainer":
                return event.ts
    return None


def _ago(ts: Any) -> str:
    seconds = seconds_between(str(ts), utc_now()) if ts else None
    return f"{duration(seconds)} ago" if seconds is not None else "not known when"


def logs(name: Name, follow: Follow = False, outputs: Outputs = None) -> None:
    """What the trainer printed, all attempts."""
    folder, _ = load_run(outputs_folder(outputs), name)
    offset = 0

    def more() -> None:
        nonlocal offset
        try:
            with open(folder.train_log, "rb") as file:
                file.seek(offset)
                while chunk := file.read(CHUNK):
                    sys.stdout.buffer.write(chunk)
                    offset += len(chunk)
        except FileNotFoundError:
            return
        sys.stdout.buffer.flush()

    more()
    if follow:
        _follow(folder, lambda _: more())


def events(
    name: Name,
    follow: Follow = False,
    type: Annotated[list[str] | None, typer.Option("--type", metavar="T", help="Only this type; may repeat.")] = None,
    outputs: Outputs = None,
) -> None:
    """The event log, one JSON object a line."""
    folder, _ = load_run(outputs_folder(outputs), name)
    wanted = set(type or [])
    known = [found.name for found in TYPES]
    for one in sorted(wanted.difference(known)):  # a later version's log may have it all the same
        alike = get_close_matches(one, known, 1)
        note(f"{one} is no type of event that FluxGym writes" + (f"; did you mean {alike[0]}?" if alike else ""))

    def show(batch: list[Any]) -> None:
        for event in batch:
            if not wanted or event.type in wanted:
                sys.stdout.buffer.write(encode(event, longest=None))
        sys.stdout.buffer.flush()

    if follow:
        _follow(folder, show)
    else:
        show(read_events(folder.path))


def _follow(folder: RunFolder, show: Callable[[list[Any]], None]) -> None:
    """Call `show` with new events until the run is over and no automatic attempt follows; Ctrl-C ends it as well."""
    from fluxcore.runs.auto_resume import auto_resume_follows

    reader, state = FolderReader(folder.path), RunState(folder.name)
    try:
        while True:
            batch = reader.read_new()
            for event in batch:
                state.apply(event)
            show(batch)
            live = state.is_busy or auto_resume_follows(state)
            if not batch and (not live or _observed(state, folder.path.parent) == "lost"):
                show([])
                return
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        return


def checkpoints(name: Name, json: Json = False, outputs: Outputs = None) -> None:
    """States to resume from and LoRA files, and which one `resume` would take."""
    folder, state = load_run(outputs_folder(outputs), name)
    chosen = resume_choice(folder, state)
    rows: list[dict[str, Any]] = [
        {
            "name": found.name,
            "kind": found.kind,
            "step": found.step,
            "epoch": found.epoch,
            "bytes": found.bytes,
            "complete": found.complete,
            "problem": found.problem,
            "resume": chosen is not None and chosen.path == found.path,
        }
        for found in list_checkpoints(folder, state)
    ]
    if json:
        say(to_json(rows))
    elif rows:
        columns = ["name", "kind", "step", "epoch", "size", "", ""]
        lines = [
            [row["name"], row["kind"], row["step"], row["epoch"], size(row["bytes"]),
             "complete" if row["complete"] else f"incomplete: {row['problem']}", "← resume" if row["resume"] else ""]
            for row in rows
        ]  # fmt: skip
        table(columns, lines, right={"step", "epoch", "size"})
    else:
        say(f"{name} has no checkpoints yet")
