"""An attempt's life after its start: adoption, the verdict, and exactly one end in the log."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from fluxcore.log import number, parse_ts
from fluxcore.runs import resume_choice
from fluxcore.runs.auto_resume import auto_resume_follows
from fluxcore.runs.checkpoints import list_checkpoints, safetensors_problem
from fluxcore.runs.outlook import evidence_words, fitting_hint, going_on
from fluxcore.runs.processes import Identity
from fluxcore.runs.records import Attempt

from .endings import LOOK_BYTES, LOOK_LINES, explain, read_tail, stop_hint, was_stopped
from .executor import Executor, Exit, Record
from .hints import Facts, gpu_trouble
from .kill import TreeKill
from .run import Run


def record(executor: Executor, run: Run) -> Record:
    """What the shim recorded of the newest attempt, completed by what the log says."""
    attempt = run.state.attempt
    if attempt is None:
        return Record()
    found = executor.look(run.folder, attempt.number)
    if found.trainer is None and attempt.pid:
        trainer = Identity(attempt.pid, attempt.create_time, attempt.boot_id, attempt.start_ticks)
        found = replace(found, trainer=trainer)
    if run.checked != attempt.number and found.trainer is not None:
        run.checked, run.is_copy = attempt.number, executor.is_of_another(run.folder, attempt.number, found)
        if run.is_copy:
            run.note("this folder is a copy of a live run's; the processes of that are left alone", "WARNING")
    if run.is_copy and run.checked == attempt.number:
        found = replace(found, trainer=None, shim=None)
    run.record = found
    return found


def is_gone(executor: Executor, found: Record) -> bool:
    """Whether the trainer has ended and all that will ever be known of its exit is known."""
    if found.exit is not None:
        return True
    # While the shim lives it is about to write the exit down.
    return not executor.alive(found.trainer) and not executor.alive(found.shim)


def resume_point(run: Run) -> dict[str, Any]:
    """The checkpoint that a resume would take now, validated now; both None where there is none."""
    choice = resume_choice(run.folder, run.state)
    return {"resume_checkpoint": choice.name if choice else None, "resume_step": choice.step if choice else None}


def adopt(run: Run, attempt: Attempt) -> None:
    """Take over a live trainer that another runner started."""
    if run.append("run.adopted", {"pid": attempt.pid, "runner_pid": os.getpid()}, attempt=attempt.number):
        run.note(f"attempt {attempt.number} adopted: trainer pid {attempt.pid}")


def declare_stalled(run: Run, attempt: Attempt, data: dict[str, Any]) -> bool:
    """Append `run.stalled` with its evidence, the checkpoint to go on from, and the trainer's stacks where possible.

    False where that can't be written now; then nothing may be killed, or it would look like someone else's doing.
    """
    point = resume_point(run)
    trouble = gpu_trouble(run.watch.gpus) if run.watch else None
    hint = f"{trouble}, then {again(point)}." if trouble else ""
    more = {**point, "stacks": run.dump.path if run.dump else None, **({"hint": hint} if hint else {})}
    if not run.append("run.stalled", {**data, **more}, attempt=attempt.number):
        return False
    seen = evidence_words(data["evidence"]).rstrip(".")
    run.note(f"stalled ({data['verdict']}): {seen}; ending it; {_where(point)}", "ERROR")
    if run.dump is not None:
        what = f"where its threads stood: {run.dump.path}" if run.dump.path else f"no stacks: {run.dump.problem}"
        run.note(what, "INFO" if run.dump.path else "WARNING")
    if hint:
        run.note(hint, "ERROR")
    return True


def finish(run: Run, found: Record, kill: TreeKill, now: float) -> bool:
    """Write down how the newest attempt ended, once its processes are gone; False where that must be tried again."""
    state, attempt = run.state, run.state.attempt
    assert attempt is not None
    point = resume_point(run)
    number = attempt.number
    if attempt.outcome == "run.stalled":
        if not run.append("run.killed", {**kill.event(now), **point}, attempt=number):
            return False
        run.note(f"killed after {kill.event(now)['seconds']} s with {', '.join(kill.signals) or 'no signal'}")
        _say_what_is_next(run)
        return True
    if attempt.outcome is not None:
        return True

    if kill.why == "leftovers" and kill.pids and not kill.noted:
        kill.noted = True
        run.note(f"processes that outlived their trainer were killed: {sorted(set(kill.pids))}", "WARNING")
    ended = found.exit or Exit(None)
    tail = read_tail(run.folder.train_log, found.log_offset)
    text = read_tail(run.folder.train_log, found.log_offset, LOOK_LINES, LOOK_BYTES)
    whole = run.folder.final_weights.is_file() and not safetensors_problem(run.folder.final_weights)
    all_done = bool(state.total_steps) and state.step >= state.total_steps
    ending = explain(ended, whole, text, all_done, _facts(run, attempt, ended, point))
    if ending.ok:
        data = {
            "weights": run.folder.final_weights.name,
            "steps": state.step,
            "seconds": ended.seconds if ended.seconds is not None else _seconds(run, attempt),
            "final_loss": state.loss,
        }
        if not run.append("run.completed", data, attempt=number):
            return False
        run.note(f"completed after {state.step} steps: {data['weights']}")
        return True
    reason = state.stop_reason if state.stop_requested else kill.reason
    if reason and was_stopped(ended, asked_here="SIGTERM" in kill.signals):
        if kill.used_kill and attempt.killed is None:
            if not run.append("run.killed", {**kill.event(now), **point}, attempt=number):
                return False
            how = (
                "outlived the trainer" if kill.outlived else f"did not end within the grace ({kill.grace_seconds:g} s)"
            )
            run.note(f"killed: {sorted(set(kill.killed))} {how}", "WARNING")
        lost = max(0, state.step - (point["resume_step"] or 0))
        hint = stop_hint(reason, str(state.served_config(attempt).get("trainer")), again(point))
        gone = "" if "SIGTERM" in kill.signals or ended.signal == "SIGTERM" or ended.exit_code == 143 else _gone(ended)
        if gone:
            steps = f"; steps lost since its last checkpoint: {lost}" if lost else ""
            hint = f"{gone[0].upper()}{gone[1:]}{steps}; {again(point)} to go on."
        more = {**({"lost_steps": lost} if lost else {}), **({"hint": hint} if hint else {})}
        stopped = {"reason": reason, "step": state.step, **more, **point}
        if not run.append("run.stopped", stopped, attempt=number):
            return False
        why = "" if reason == "user" else f" ({reason})"
        said = f"stopped{why} at step {state.step}; {_where(point)}"
        since = " since then" if point["resume_checkpoint"] else ""
        said += f"; steps lost{since}: {lost}" if lost else ""
        run.note(said + (f"; {gone}" if gone else ""), "WARNING" if gone else "INFO")
        return True
    failure: dict[str, Any] = {"exit_code": ended.exit_code, "signal": ended.signal, "reason": ending.reason}
    if not run.append("run.failed", {**failure, "hint": ending.hint, "tail": tail, **point}, attempt=number):
        return False
    hint = fitting_hint(run.state, ending.hint, parse_ts(run.state.updated) if run.state.updated else None)
    run.note(f"failed ({ending.reason}, exit code {ended.exit_code}): {hint}", "ERROR")
    _say_what_is_next(run)
    return True


def _say_what_is_next(run: Run) -> None:
    """Why nothing goes on by itself, from where it can and how; a resume by itself has a line of its own."""
    now = parse_ts(run.state.updated) if run.state.updated else None
    if not auto_resume_follows(run.state, now):
        for sentence in going_on(run.state, run.folder, now=now):
            run.note(sentence)


def _facts(run: Run, attempt: Attempt, ended: Exit, point: dict[str, Any]) -> Facts:
    """What a hint may be made of."""
    state, watch = run.state, run.watch
    memory = [number(state.gpus.get(uuid, {}).get("memory_total_gib")) for uuid in attempt.gpus]
    before = watch.oom_kills if watch else None
    newest = point["resume_step"] or 0
    states = [one for one in list_checkpoints(run.folder) if one.kind == "state" and one.complete]
    return Facts(
        config=state.served_config(attempt),
        gpus=watch.gpus if watch else {},
        gpu_memory_gib=min((gib for gib in memory if gib), default=None),
        memory_available_gib=watch.memory_available_gib if watch else None,
        oom_kills=None if before is None or ended.oom_total is None else max(0, ended.oom_total - before),
        again=again(point),
        earlier=next((one.name for one in reversed(states) if one.step and one.step < newest), None),
    )


def again(point: dict[str, Any]) -> str:
    """What a person does after a failure, in a word or two."""
    return "resume" if point["resume_checkpoint"] else "start again with --restart"


def _gone(ended: Exit) -> str:
    """Of a trainer that was to be stopped and had ended before anybody here could: how."""
    how = "nobody knows how, its parent process is gone too" if ended.exit_code is None else ended.signal
    return f"the trainer had ended by itself before it could be stopped ({how or f'exit code {ended.exit_code}'})"


def _where(point: dict[str, Any]) -> str:
    saved = point["resume_checkpoint"]
    return f"checkpoint to go on from: {saved}" if saved else "there is no checkpoint to go on from"


def _seconds(run: Run, attempt: Attempt) -> float:
    if not run.state.updated:
        return 0.0
    return round(max(0.0, (parse_ts(run.state.updated) - parse_ts(attempt.started)).total_seconds()), 3)
