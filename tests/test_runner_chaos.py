"""Seeded nights of faults on a fake machine: whatever dies when, each attempt ends once and no request is lost."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from fluxcore.runs import ENDED_STATES
from tests.fakes import World

ENDS = {"run.completed", "run.failed", "run.stopped", "run.stalled"}


@pytest.mark.parametrize("seed", range(25))
def test_a_night_of_faults(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    world = World(tmp_path, cpu_slots=2)
    names = ["a", "b", "c"]
    for name in names:
        world.make(name, stall_seconds=30, stop_grace_seconds=10)
    steps = dict.fromkeys(names, 0)

    def live(name: str) -> bool:
        return any(key[0] == name for key in world.executor.trainers) and world.trainer(name).alive

    for _ in range(120):
        name = chance.choice(names)
        match chance.choice(["ask", "ask", "step", "step", "step", "save", "die", "finish", "stop", "runner", "shim", "hang", "deaf", "broken"]):  # fmt: skip
            case "ask":
                world.ask(name, chance.choice([None, "latest"]))
            case "step" if live(name):
                if steps[name] % 3 == 0:
                    world.trainer(name).log.append("phase.started", {"phase": "train"})
                steps[name] += 1
                world.step(name, steps[name])
            case "save" if live(name):
                world.checkpoint(name, steps[name])
            case "die" if live(name):
                world.trainer(name).exit(*chance.choice([(1, None), (2, None), (137, "SIGKILL"), (143, "SIGTERM")]))
            case "finish" if live(name):
                world.complete(name)
            case "stop":
                world.stop(name)
            case "runner":
                world.new_runner()
            case "shim" if live(name):
                world.trainer(name).shim_alive = False
            case "hang":
                world.turns(40, 1.0)
            case "deaf" if live(name):
                world.trainer(name).ignores_term = True
            case "broken":
                world.executor.broken_shims = 1
        world.turns(chance.randint(0, 2), chance.choice([0.0, 0.5, 3.0]))

    for name in names:  # the night is over: whatever still runs is asked to stop
        world.stop(name)
    world.turns(60, 2.0)
    for name in names:
        state = world.state(name)
        assert state.state in ENDED_STATES | {"draft"}, f"{name} is {state.state}"
        assert not state.requests and not state.spawning
        events = world.events(name)
        started = Counter(event.attempt for event in events if event.type == "run.started")
        ends = Counter(event.attempt for event in events if event.type in ENDS and event.attempt is not None)
        assert started == ends and set(started.values()) <= {1}
        answered = Counter(
            event.data["request"] for event in events if event.type in ("run.started", "request.refused")
        )
        assert set(answered.values()) <= {1}, "a request is answered once"
        stalled = {event.attempt for event in events if event.type == "run.stalled"}
        assert stalled <= {event.attempt for event in events if event.type == "run.killed"}
        assert not live(name)
    assert len(set(world.executor.trainers)) == sum(len(world.state(name).attempts) for name in names)
