"""From a request to a trainer, exactly once: the intent is in the log before anything is started."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

from fluxcore.runs import RunError, find_state, resume_choice
from fluxcore.trainers import DEFAULT_TRAINER

from .disk import check_start
from .executor import Launch, Record, trainer_command
from .run import Run

if TYPE_CHECKING:
    from .loop import Runner

MOST_INTENTS = 3
CANT_START = "the trainer can't be started on this machine; see monitor.log"
SHIM_SECONDS = 10.0
"""How long a spawned shim may take to claim its attempt before another is started for the same one."""


def begin(runner: Runner, run: Run, gpus: list[str], visible: int) -> None:
    """Write down the intent to serve the run's oldest request, then start its shim. `visible`: GPUs that there are."""
    request = run.state.requests[0]
    config = run.state.configs.get(request.config, run.state.config)
    # A state that the config names is where the run begins; a restart begins afresh.
    begins_from = None if run.state.attempts else config.get("resume_from_checkpoint")
    try:
        resume_from, resume_step = resolve_resume(run, request.resume_from or begins_from)
    except RunError as error:
        refuse(run, request.id, str(error))
        return
    if no_room := check_start(runner, run, config, resume_step):
        refuse(run, request.id, no_room)
        return
    intent = {
        "request": request.id,
        "attempt": run.state.last_attempt + 1,
        "config": request.config,
        "resume_from": resume_from,
        "resume_step": resume_step,
        "gpus": gpus,
        # With one GPU there is nothing to choose, and a wrong choice (MIG) would hide it.
        "env": {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if visible > 1 else {},
    }
    if run.append("run.spawning", intent):
        spawn(runner, run)


def resolve_resume(run: Run, wanted: str | None) -> tuple[str | None, int | None]:
    """The state folder to resume from and its step, whole at this moment. Raises RunError with what is wrong."""
    if not wanted:
        return None, None
    if wanted == "latest":
        found = resume_choice(run.folder, run.state)
        if found is None:
            raise RunError(f"{run.name} has no complete checkpoint to resume from")
    else:
        found = find_state(run.folder, wanted)
        if found is None:
            raise RunError(f"{run.name} has no checkpoint {wanted!r}")
        if not found.complete:
            raise RunError(f"the checkpoint {wanted!r} is incomplete ({found.problem})")
    return found.name, found.step


def spawn(runner: Runner, run: Run) -> None:
    """Start the shim of the intent that stands in the log."""
    intent = run.state.spawning
    if intent is None:
        return
    number = int(intent["attempt"])
    env = {str(key): str(value) for key, value in (intent.get("env") or {}).items()}
    _, count = run.spawned.get(number, (0.0, 0))
    run.spawned[number] = (runner.clock.monotonic(), count + 1)
    try:
        runner.executor.spawn(Launch(run.folder, number, command_line(runner, run, intent), env))
    except OSError as error:
        run.note(f"the trainer's shim can't be started: {error}", "ERROR")


def command_line(runner: Runner, run: Run, intent: dict[str, Any]) -> list[str]:
    """The trainer's arguments."""
    config = run.state.configs.get(str(intent.get("config")), run.state.config)
    argv = [
        *trainer_command(str(config.get("trainer", DEFAULT_TRAINER))),
        "--outputs",
        str(runner.outputs),
        "--run",
        run.name,
    ]
    argv += ["--attempt", str(intent["attempt"]), "--request", str(intent["request"])]
    return [*argv, "--resume-from", str(intent["resume_from"])] if intent.get("resume_from") else argv


def see_through(runner: Runner, run: Run) -> None:
    """Follow an intent to `run.started`, also one that an earlier runner wrote and died over."""
    intent = run.state.spawning
    assert intent is not None
    number = int(intent["attempt"])
    record = runner.executor.look(run.folder, number)
    if record.trainer is not None:
        announce(runner, run, intent, record)
        return
    now = runner.clock.monotonic()
    spawned_at, count = run.spawned.get(number, (float("-inf"), 0))
    if not record.claimed:
        if now - spawned_at > SHIM_SECONDS:
            if count < MOST_INTENTS:
                spawn(runner, run)  # the same attempt: of two shims only one can claim it
            elif runner.executor.give_up(run.folder, number):
                refuse(run, str(intent["request"]), CANT_START)
        return
    if record.given_up:
        refuse(run, str(intent["request"]), CANT_START)
        return
    if record.claimed_by is not None and runner.executor.alive(record.claimed_by):
        return
    if count == 0:  # an earlier runner's shim: give it its moment too
        run.spawned[number] = (now, 1)
        return
    if now - spawned_at < (1.0 if record.claimed_by else SHIM_SECONDS):
        return  # it may be about to write who it is
    record = runner.executor.look(run.folder, number)  # the last word of a shim that is dead by now
    if record.trainer is not None:
        announce(runner, run, intent, record)
        return
    # The shim died before it wrote a trainer down, and without that the trainer never starts: serve the request anew.
    if run.state.intents >= MOST_INTENTS:
        refuse(run, str(intent["request"]), "the trainer's parent process died three times at its start; try again")
        return
    again = {key: value for key, value in intent.items() if key != "ts"}
    if run.append("run.spawning", {**again, "attempt": run.state.last_attempt + 1}):
        run.note("the shim died before the trainer started; starting again", "WARNING")
        spawn(runner, run)


def announce(runner: Runner, run: Run, intent: dict[str, Any], record: Record) -> None:
    """Append `run.started` from what the shim recorded."""
    trainer, shim = record.trainer, record.shim
    assert trainer is not None
    number = int(intent["attempt"])
    data = {
        "request": intent["request"],
        "config": intent["config"],
        "pid": trainer.pid,
        "create_time": trainer.create_time,
        "start_ticks": trainer.start_ticks,
        "boot_id": trainer.boot_id,
        "shim_pid": shim.pid if shim else None,
        "argv": command_line(runner, run, intent),
        "gpus": intent.get("gpus") or [],
        "host": socket.gethostname(),
        "resume_from": intent.get("resume_from"),
        "resume_step": intent.get("resume_step"),
    }
    if run.append("run.started", data, attempt=number):
        run.known_attempt, run.sampled_at, run.cpu_before = number, float("-inf"), None
        run.former_name = ""
        start = f"resumed from {data['resume_from']} (step {data['resume_step']})" if data["resume_from"] else "started"
        run.note(f"attempt {number} {start}: trainer pid {trainer.pid}, shim pid {data['shim_pid']}")


def refuse(run: Run, request: str, reason: str) -> None:
    """Answer a request with no."""
    if run.append("request.refused", {"request": request, "reason": reason}):
        run.note(f"request {request} refused: {reason}", "WARNING")
