"""`queue`: which runs wait, for what, and holding them back for a while."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from fluxcore.history.run_row import timestamp
from fluxcore.runs.installation import pause_queue, read_installation, resume_queue, waiting_in_line
from fluxcore.runs.outlook import NO_RUNNER, waits_for
from fluxcore.runs.supervision import runner_alive

from .options import Json, Outputs, outputs_folder
from .out import note, say, table, to_json
from .runs import SOURCE, start_runner


class Action(StrEnum):
    """What to do with the queue."""

    pause = "pause"
    resume = "resume"


def queue(
    action: Annotated[
        Action | None,
        typer.Argument(
            metavar="[pause|resume]", help="Let nothing start, or go on; default: show it.", show_default=False
        ),
    ] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="With pause: why, for whoever looks.")] = "",
    json: Json = False,
    outputs: Outputs = None,
) -> None:
    """The runs that wait, and for what. `queue pause` lets nothing start, running trainings go on; `queue resume`."""
    root = outputs_folder(outputs)
    if action is Action.pause:
        pause_queue(root, SOURCE, reason)
        note("the queue is paused: nothing starts before `./fluxgym queue resume`; running trainings go on")
        return
    if action is Action.resume:
        resume_queue(root, SOURCE, reason)
        if waiting_in_line(root):
            start_runner(root)
        note("the queue goes on")
        return
    installation, waiting = read_installation(root), waiting_in_line(root)
    runner = runner_alive(root) is not None
    rows: list[dict[str, Any]] = [
        {
            "position": state.queue_position,
            "run": state.name,
            "asked": timestamp(state.requests[0].ts),
            "waiting_for": waits_for(state, runner=runner, paused=installation.paused),
            "automatic": state.requests[0].is_automatic,
        }
        for state in waiting
    ]
    if json:
        say(to_json(rows))
        return
    if installation.paused:
        why = f" ({installation.reason})" if installation.reason else ""
        since = timestamp(installation.paused_since)
        say(f"the queue is paused since {since:%Y-%m-%d %H:%M:%S} UTC{why}; `./fluxgym queue resume` lets it go on")
    if rows:
        columns = ["", "run", "asked (UTC)", "waits for"]
        lines = [[row["position"], row["run"], row["asked"], row["waiting_for"]] for row in rows]
        table(columns, lines, right={""})
        if not runner:
            say(NO_RUNNER)
    else:
        say(f"no run waits in {root}")
