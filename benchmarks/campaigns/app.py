"""The app's part in a campaign: a process that asks for things as fast as people never would, until it is killed.

    python -m benchmarks.campaigns.app OUTPUTS SEED

Each event that it was told is written goes to standard output as `RUN WRITER:N`, in one write: nothing of that may be
lost.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

from fluxcore.config import parse_saved
from fluxcore.log import Event, EventLog
from fluxcore.runs import (
    RunError,
    list_checkpoints,
    list_run_folders,
    load_run,
    request_resume,
    request_start,
    request_stop,
    save_config,
    set_monitoring,
)

ACTIONS = {"note": 6, "title": 2, "config": 2, "monitoring": 1, "start": 3, "resume": 4, "go back": 2, "stop": 1}


def main(outputs: Path, seed: int) -> None:
    """Ask, for ever."""
    chance = random.Random(seed)
    while True:
        names = [folder.name for folder in list_run_folders(outputs)]
        if names:
            name = chance.choice(names[-4:])
            action = chance.choices(list(ACTIONS), list(ACTIONS.values()))[0]
            try:
                event = ask(outputs, name, action, chance)
            except RunError:
                continue  # refused, as it should be in that state
            os.write(1, f"{name} {event.id}\n".encode())
        time.sleep(chance.uniform(0.0, 0.1))


def ask(outputs: Path, name: str, action: str, chance: random.Random) -> Event:
    """One request or remark. Raises RunError where it is refused."""
    folder, state = load_run(outputs, name)
    if action == "start":
        return request_start(outputs, name, "app", restart=bool(state.attempts) and chance.random() < 0.3)
    if action == "resume":
        return request_resume(outputs, name, "app")
    if action == "go back":
        whole = [found.name for found in list_checkpoints(folder) if found.kind == "state" and found.complete]
        return request_resume(outputs, name, "app", from_state=chance.choice(whole or ["none"]))
    if action == "stop":
        return request_stop(outputs, name, "app")
    if action == "monitoring":
        return set_monitoring(outputs, name, "app", chance.random() < 0.7)
    if action == "config":
        return save_config(outputs, parse_saved(state.config), "app")
    with EventLog(folder.path, "app") as log:
        if action == "title":
            return log.append("run.titled", {"title": f"title {chance.random()}"})
        return log.append("run.noted", {"note": "x" * chance.choice([10, 1000, 50_000])})


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
