"""`monitor`: whether a run is watched, and by whom; switched off and on while it trains."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from fluxcore.runs import RunState, load_run
from fluxcore.runs.supervision import runner_alive
from fluxcore.tail import last_lines

from .options import Json, Name, Outputs, outputs_folder
from .out import note, say, to_json
from .runs import SOURCE

LINES = 10


class Switch(StrEnum):
    """What to do with a run's monitoring."""

    on = "on"
    off = "off"


def monitor(
    name: Name,
    switch: Annotated[
        Switch | None,
        typer.Argument(metavar="[on|off]", help="Judge stalls or not, also while it trains.", show_default=False),
    ] = None,
    json: Json = False,
    outputs: Outputs = None,
) -> None:
    """Whether stalls of a run are judged, and the last lines of its monitor.log. Off: it is sampled, never killed."""
    root = outputs_folder(outputs)
    if switch is not None:
        from fluxcore.runs import set_monitoring

        set_monitoring(root, name, SOURCE, switch is Switch.on)
        state = load_run(root, name)[1]
        asked = switch is Switch.on
        until = "" if asked == state.config.get("enable_monitoring", True) else _until(state)
        note(f"monitoring of {name} is {switch.value}{until}")
        return
    folder, state = load_run(root, name)
    runner = runner_alive(root)
    lines = last_lines(folder.monitor_log, LINES)
    if json:
        pid = runner.pid if runner else None
        row = {"run": name, "enabled": state.monitoring, "state": state.state, "runner": pid, "lines": lines}
        say(to_json([row]))
        return
    instead = f"nothing is judged; `./fluxgym monitor {name} on` changes that"
    what = "stalls are ended and explained" if state.monitoring else instead
    say(f"monitoring is {'on' if state.monitoring else 'off'}: {what}")
    say(f"the runner {f'is alive, pid {runner.pid}' if runner else 'is not alive: ./fluxgym runner starts one'}")
    for line in lines:
        say(line)


def _until(state: RunState) -> str:
    """How long a switch holds that its config has otherwise."""
    setting = f"--set enable_monitoring={str(state.monitoring).lower()}"
    if state.switched_ahead:
        return f" for its next start or resume; `{setting}` with that keeps it so"
    return f" until somebody starts or resumes it again; `{setting}` with that keeps it so"
