"""`./fluxgym bench hangs`: real hangs of the real trainer on flux-mini, found, killed, explained and resumed.

Each run trains a few steps of flux-mini under the real runner, with GPU readings of a driver of our own, and hangs at a
step: stopped (SIGSTOP), at a lock that nobody gives back, at a queue whose worker is dead (another one lives on), in a
busy loop at 100% utilisation, at a lock while it saves a state. The same run without a hang is what its resume is
compared with: the final LoRAs must be the same to the bit.

The hangs are put into the trainer by a `sitecustomize.py` on PYTHONPATH (`benchmarks/campaigns/inject`).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.campaigns.report import Figure, Progress, show
from benchmarks.campaigns.stage import Stage, stage
from benchmarks.campaigns.truth import ended_wrong
from fluxcore.config import resolve_config
from fluxcore.dataset import copy_dataset
from fluxcore.log import Event
from fluxcore.runs import RunFolder, create_run, request_start
from fluxcore.runs.checkpoints import inspect_state
from fluxcore.runs.files import PROJECT_ROOT

RISO = PROJECT_ROOT / "examples" / "riso"
INJECT = Path(__file__).parent / "campaigns" / "inject"
WHOLE = "whole"
STEPS, SAVE_EVERY, HANG_AT = 40, 10, 26
SAMPLE_SECONDS, GRACE_SECONDS = 0.5, 3.0
RUN_SECONDS = 400.0


@dataclass(frozen=True)
class Hang:
    """A way to hang, what the driver tells of it (percent busy), the verdict wanted, the state gone on from."""

    kind: str
    use: int
    verdict: str
    resume_step: int
    step: int = HANG_AT

    @property
    def run(self) -> str:
        return self.kind.replace(" ", "-")


# A stopped trainer that is continued for its TERM saves a last state; the others can't any more.
HANGS = (
    Hang("stopped", 0, "gpu_idle", HANG_AT),
    Hang("lock", 0, "gpu_idle", 20),
    Hang("dead worker", 0, "gpu_idle", 20),
    Hang("busy loop", 100, "no_progress", 20),
    Hang("lock in a save", 0, "no_progress", 20, step=30),
)


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns 1 where a hang was not found, killed and resumed to the same LoRA."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stall-seconds", type=float, default=10.0)
    parser.add_argument("--only", choices=[hang.kind for hang in HANGS], help="one kind of hang")
    asked = parser.parse_args(arguments)
    hangs = [hang for hang in HANGS if asked.only in (None, hang.kind)]
    with stage(slots=1, gpus=1) as place:
        if place.gpus is None:
            print("a C compiler is needed for the driver (gcc or cc)", file=sys.stderr)
            return 1
        del os.environ["FLUXGYM_TRAINER"]  # the real one
        os.environ["BENCH_HANGS"] = json.dumps({h.run: {"kind": h.kind, "step": h.step} for h in hangs})
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join([str(INJECT), *([before] if before else [])])
        place.serve()
        progress = Progress("runs", 1 + len(hangs), every=0)
        train(place, WHOLE, asked.stall_seconds)
        if place.state(WHOLE).state != "completed":
            print((place.outputs / WHOLE / "train.log").read_text()[-2000:], file=sys.stderr)
            return 1
        figures, problems = [], []
        for number, hang in enumerate(hangs, 2):
            train(place, hang.run, asked.stall_seconds, hang)
            progress.at(number, hang.kind)
            figure, wrong = look_back(place, hang)
            figures.append(figure)
            problems += [f"{hang.kind}: {problem}" for problem in wrong]
    return show(f"hangs of the real trainer, stall_seconds {asked.stall_seconds:g}", figures, problems)


def train(place: Stage, name: str, stall_seconds: float, hang: Hang | None = None) -> None:
    """Make and start a run, tell the driver's readings, and wait until it has completed or failed for good."""
    settings = {"base_model": "flux-mini", "concept_sentence": "r1so", "max_train_steps": STEPS, "train_batch_size": 2}
    settings |= {"save_every_n_epochs": 0, "save_every_n_steps": SAVE_EVERY, "network_dim": 4, "auto_resume": 1}
    settings |= {"stall_seconds": stall_seconds, "sample_gpu_seconds": SAMPLE_SECONDS}
    settings |= {"stop_grace_seconds": GRACE_SECONDS}
    config = resolve_config({"lora_name": name, **settings})
    create_run(place.outputs, config, "cli", lambda dataset: copy_dataset(RISO, dataset))
    request_start(place.outputs, name, "cli")
    folder, end = RunFolder(place.outputs / name), time.monotonic() + RUN_SECONDS
    while time.monotonic() < end:
        state = place.state(name)
        hangs_now = hang is not None and (folder.path / ".hung").exists() and len(state.attempts) == 1
        tell(place, hang.use if hang and hangs_now else 93)
        # The attempts are two: one hangs, the other one goes on by itself.
        if state.state == "completed" or (state.state in ("failed", "stopped") and not state.is_busy):
            return
        time.sleep(0.1)


def tell(place: Stage, use: int) -> None:
    """What the driver says from now on."""
    gpus = place.gpus
    assert gpus is not None
    if gpus.use != use:
        gpus.use = use
        gpus.tell()


def look_back(place: Stage, hang: Hang) -> tuple[Figure, list[str]]:
    """A row of the table, and what is wrong with how the hang was handled."""
    events, state = place.events(hang.run), place.state(hang.run)
    folder = RunFolder(place.outputs / hang.run)
    problems = ended_wrong(hang.run, events)
    stalled, killed = first(events, "run.stalled"), first(events, "run.killed")
    if stalled is None or killed is None:
        return Figure(hang.kind, "not found", "found", False), [f"not found; it is {state.state} ({state.reason})"]
    evidence = stalled.data["evidence"]
    waited, limit = evidence["seconds_without_progress"], evidence["limit_seconds"]
    if stalled.data["verdict"] != hang.verdict:
        problems.append(f"the verdict is {stalled.data['verdict']}, not {hang.verdict}")
    if waited > limit + SAMPLE_SECONDS + 1:
        problems.append(f"found after {waited} s, the limit is {limit} s")
    if killed.data["survivors"]:
        problems.append(f"{killed.data['survivors']} survived")
    point = killed.data["resume_checkpoint"]
    problems += annotation_problems(folder, point, killed.data["resume_step"], hang)
    if len(state.attempts) != 2 or not state.attempts[1].is_automatic or state.attempts[1].resume_from != point:
        problems.append(f"not resumed by itself from {point}: {state.attempts}")
    if state.state != "completed":
        problems.append(f"the resumed run is {state.state} ({state.reason})")
    elif tensors(folder.final_weights) != tensors(RunFolder(place.outputs / WHOLE).final_weights):
        problems.append("the resumed LoRA is another one than that of the whole run")
    if left := place.marked(hang.run):
        problems.append(f"processes {left} are left")
    how = f"{stalled.data['verdict']} after {waited} s (limit {limit} s), ended in {killed.data['seconds']} s"
    end = f"resumed from step {killed.data['resume_step']}: {'see below' if problems else 'same LoRA to the bit'}"
    return Figure(hang.kind, f"{how}, {end}", "", not problems), problems


def annotation_problems(folder: RunFolder, point: str | None, step: int | None, hang: Hang) -> list[str]:
    """What the log and monitor.log lack for a person to go on."""
    problems = []
    if step != hang.resume_step:
        problems.append(f"the checkpoint to go on from is step {step}, it should be {hang.resume_step}")
    if not point or not inspect_state(folder.path / point).complete:
        problems.append(f"the checkpoint {point} is not whole")
    said = folder.monitor_log.read_text()
    if "stalled" not in said or "checkpoint to go on from" not in said or "resuming by itself" not in said:
        problems.append("monitor.log does not tell it")
    return problems


def first(events: list[Event], type: str) -> Event | None:
    """The first event of a type."""
    return next((event for event in events if event.type == type), None)


def tensors(file: Path) -> tuple[dict[str, object], bytes]:
    """The tensors of a safetensors file: names, types, shapes, bytes; without its metadata, which has the time."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, data[8 + length :]


if __name__ == "__main__":
    sys.exit(main())
