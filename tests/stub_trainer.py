"""A trainer in miniature: writes the events, checkpoints and files of the real one, and misbehaves when told to.

Takes the real trainer's options. Steered by a JSON object in `STUB` (environment) or in the run's `stub.json`:
steps, step_seconds, before (list of [phase, items, seconds each] ahead of the training), save_every, save_seconds (how
long a save takes, spread over its files), in_place (states are written where they belong, as sd-scripts does, not
aside), sample_every, sample_seconds, hang_at (step after which nothing happens any more), spin_at, kill_at and
kill_signal (sends itself that), ignore_term, exit_code, exit_at, children (kinds of `stub_children.py`), say (last line
on stderr), tell (a list of [type, data]: events ahead of the first step), no_weights, slow_start; attempts: {"2": {…}} for that attempt alone.

Each start, save and end that is its own doing is a line of the run's ledger: `.stub` in its folder, or `RUN.jsonl` in
the folder that `STUB_LEDGER` names. That is what really happened, to compare the log with.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

MODEL_BYTES, OPTIMIZER_BYTES = 4096, 65_536


def tiny_safetensors(path: Path, size: int = 4) -> None:
    path.write_bytes(safetensors_of(size))


def safetensors_of(size: int, content: bytes = b"\0") -> bytes:
    header = json.dumps({"lora": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + filled(content, size)


def filled(content: bytes, size: int) -> bytes:
    return (content * (size // len(content) + 1))[:size]


def state_files(step: int, epoch: int = 1, attempt: int = 0) -> dict[str, bytes]:
    """What a whole state holds, in the order in which accelerate writes it: a function of its arguments."""
    mark = f"attempt {attempt} step {step} ".encode()
    where = {"current_epoch": epoch, "current_step": step} | ({"attempt": attempt} if attempt else {})
    return {
        "train_state.json": json.dumps(where).encode(),
        "model.safetensors": safetensors_of(MODEL_BYTES, mark),
        "optimizer.bin": filled(b"optimizer " + mark, OPTIMIZER_BYTES),
        "scheduler.bin": filled(b"scheduler " + mark, 1000),
        "random_states_0.pkl": filled(b"random " + mark, 1000),
    }


def save_state(
    folder: Path, name: str, step: int, epoch: int = 1, *, attempt: int = 0, seconds: float = 0, in_place: bool = False
) -> Path:
    """A complete state folder; it appears whole, or (`in_place`) file after file. Takes `seconds`."""
    final = folder / name
    if final.exists():
        return final
    aside = final if in_place else folder / f".{name}.tmp"
    aside.mkdir(exist_ok=True)
    files = state_files(step, epoch, attempt)
    for file, content in files.items():
        with open(aside / file, "wb", buffering=0) as out:
            half = len(content) // 2 if seconds and len(content) > 1000 else len(content)
            out.write(content[:half])
            time.sleep(seconds / len(files))
            out.write(content[half:])
    if not in_place:
        os.rename(aside, final)
    return final


class Stub:
    """One attempt."""

    def __init__(self, options: argparse.Namespace, orders: dict[str, Any]) -> None:
        self.options, self.orders = options, orders
        self.folder = Path(options.outputs) / options.run
        self.step, self.steps = 0, int(orders.get("steps", 3))
        self.saved = 0
        self.stopping = False
        self.ledger = ledger_of(self.folder)

    def note(self, **what: Any) -> None:
        """A line of the ledger, in one write."""
        line = json.dumps({"attempt": self.options.attempt, **what}) + "\n"
        with open(self.ledger, "ab", buffering=0) as file:
            file.write(line.encode())

    def on_term(self, *_: object) -> None:
        self.stopping = True

    def run(self) -> int:
        """The attempt, from its first line in the ledger to its last."""
        orders, options = self.orders, self.options
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        begun = {"at": time.clock_gettime(time.CLOCK_BOOTTIME), "resume_from": options.resume_from}
        self.note(what="start", pid=os.getpid(), start_ticks=ticks, **begun)
        signal.signal(signal.SIGTERM, signal.SIG_IGN if orders.get("ignore_term") else self.on_term)
        time.sleep(orders.get("slow_start", 0))
        from fluxcore.log import EventLog, PatientLog
        from fluxcore.runs import RunFolder, load_run
        from fluxcore.runs.checkpoints import set_aside

        self.log = PatientLog(EventLog(self.folder, "trainer", attempt=options.attempt))
        print("stub trainer: ready", flush=True)
        if orders.get("children"):
            from tests.stub_children import start_children

            start_children(orders["children"])
        try:
            if options.resume_from:
                state = json.loads((self.folder / options.resume_from / "train_state.json").read_text())
                self.step = self.saved = state["current_step"]
            set_aside(RunFolder(self.folder), self.step, load_run(self.folder.parent, self.folder.name)[1])
            code = self.train()
        except OSError as error:
            print(error, file=sys.stderr, flush=True)
            code = 7 if error.errno == errno.ENOSPC else 1
        self.log.drain(30)
        self.note(what="end", code=code, step=self.step)
        return code

    def phase(self, name: str, total: int | None = None) -> None:
        self.log.append("phase.started", {"phase": name, "total": total, "unit": "items" if total else None})

    def save(self, name: str) -> None:
        """A state, as the trainer saves one: a phase of its own where it takes time."""
        seconds = self.orders.get("save_seconds", 0)
        if seconds:
            self.phase("save")
        how = {"seconds": seconds, "in_place": self.orders.get("in_place", False)}
        save_state(self.folder, name, self.step, attempt=self.options.attempt, **how)
        time.sleep(seconds / 10)  # the real one syncs and counts bytes before it says so
        data = {"step": self.step, "epoch": 1, "path": name, "kind": "state", "bytes": 1}
        self.log.append("checkpoint.saved", data)
        self.saved = self.step
        if seconds:
            self.phase("train", self.steps)

    def train(self) -> int:
        """All steps; the exit code."""
        orders, steps, run = self.orders, self.steps, self.folder.name
        for phase, items, seconds in orders.get("before", []):
            self.phase(phase, items)
            for done in range(1, items + 1):
                time.sleep(seconds)
                self.log.append("phase.progress", {"phase": phase, "done": done, "total": items})
        for type, data in orders.get("tell", []):
            self.log.append(type, data)
        self.phase("train", steps)
        while self.step < steps:
            if self.step == orders.get("hang_at"):
                while not self.stopping:
                    time.sleep(0.01)
            while self.step == orders.get("spin_at"):
                pass
            if self.step == orders.get("kill_at"):
                self.note(what="suicide", signal=orders["kill_signal"])
                os.kill(os.getpid(), orders["kill_signal"])
            if self.step == orders.get("exit_at"):
                print(orders.get("say", ""), file=sys.stderr, flush=True)
                return int(orders.get("exit_code", 1))
            if self.stopping:
                if self.step > self.saved:
                    self.save(f"{run}-step{self.step:08d}-state")
                return 143
            seconds = orders.get("step_seconds", 0.01)
            time.sleep(seconds)
            self.step += 1
            step = {"step": self.step, "total_steps": steps, "epoch": 1, "loss": 1 / self.step, "step_seconds": seconds}
            self.log.append("train.step", step)
            if orders.get("save_every") and self.step % orders["save_every"] == 0 and self.step < steps:
                self.save(f"{run}-step{self.step:08d}-state")
            if orders.get("sample_every") and self.step % orders["sample_every"] == 0:
                self.phase("sample", 1)
                time.sleep(orders.get("sample_seconds", 0))
                self.log.append("phase.progress", {"phase": "sample", "done": 1, "total": 1})
                self.phase("train", steps)
        if not orders.get("no_weights"):
            tiny_safetensors(self.folder / f"{run}.safetensors")
        return 0


def ledger_of(folder: Path) -> Path:
    """Where the stub writes down what it does in a run."""
    place = os.environ.get("STUB_LEDGER")
    return Path(place) / f"{folder.name}.jsonl" if place else folder / ".stub"


def main() -> int:
    parser = argparse.ArgumentParser()
    for option in ("--outputs", "--run", "--request", "--resume-from"):
        parser.add_argument(option)
    parser.add_argument("--attempt", type=int)
    options = parser.parse_args()
    folder = Path(options.outputs) / options.run
    orders = json.loads(os.environ.get("STUB", "{}"))
    if (folder / "stub.json").exists():
        orders |= json.loads((folder / "stub.json").read_text())
    orders |= orders.get("attempts", {}).get(str(options.attempt), {})
    assert os.environ["FLUXGYM_RUN"] == str(folder.absolute()), "the mark for the sweep is missing"
    return Stub(options, orders).run()


if __name__ == "__main__":
    sys.exit(main())
