"""A trainer in miniature: writes the events, checkpoints and files of the real one, and misbehaves when told to.

Takes the real trainer's options. Steered by a JSON object in `STUB` (environment) or in the run's `stub.json`:
steps, step_seconds, save_every, hang_at (step after which nothing happens any more), spin_at, ignore_term, exit_code,
exit_at, children (list of "child", "setsid", "double"), say (last line on stderr), no_weights, slow_start.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SLEEPER = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def tiny_safetensors(path: Path) -> None:
    header = json.dumps({"lora": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")


def save_state(folder: Path, name: str, step: int, epoch: int = 1) -> Path:
    """A complete state folder, as the runner's checks see it; it appears whole."""
    final, aside = folder / name, folder / f".{name}.tmp"
    aside.mkdir(exist_ok=True)
    (aside / "train_state.json").write_text(json.dumps({"current_epoch": epoch, "current_step": step}))
    tiny_safetensors(aside / "model.safetensors")
    (aside / "optimizer.bin").write_bytes(b"o")
    (aside / "random_states_0.pkl").write_bytes(b"r")
    if final.exists():
        return final
    os.rename(aside, final)
    return final


def start_children(kinds: list[str]) -> None:
    for kind in kinds:
        if kind == "double":
            code = (
                f"import subprocess,sys; subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], start_new_session=True)"
            )
            subprocess.Popen([sys.executable, "-c", code], start_new_session=True).wait()
        else:
            subprocess.Popen([sys.executable, "-c", SLEEPER], start_new_session=kind == "setsid")


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

    from fluxcore.log import EventLog

    stopping = []
    signal.signal(signal.SIGTERM, signal.SIG_IGN if orders.get("ignore_term") else lambda *_: stopping.append(1))
    time.sleep(orders.get("slow_start", 0))
    log = EventLog(folder, "trainer", attempt=options.attempt)
    print("stub trainer: ready", flush=True)
    start_children(orders.get("children", []))
    steps, step = int(orders.get("steps", 3)), 0
    if options.resume_from:
        step = json.loads((folder / options.resume_from / "train_state.json").read_text())["current_step"]
    log.append("phase.started", {"phase": "train", "total": steps, "unit": "step"})

    def save(name: str) -> None:
        save_state(folder, name, step)
        log.append("checkpoint.saved", {"step": step, "epoch": 1, "path": name, "kind": "state", "bytes": 1})

    while step < steps:
        if step == orders.get("hang_at"):
            while not stopping:
                time.sleep(0.01)
        while step == orders.get("spin_at"):
            pass
        if step == orders.get("exit_at"):
            print(orders.get("say", ""), file=sys.stderr, flush=True)
            return int(orders.get("exit_code", 1))
        if stopping:
            save(f"{options.run}-step{step:08d}-state")
            return 143
        time.sleep(orders.get("step_seconds", 0.01))
        step += 1
        seconds = orders.get("step_seconds", 0.01)
        log.append(
            "train.step", {"step": step, "total_steps": steps, "epoch": 1, "loss": 1 / step, "step_seconds": seconds}
        )
        if orders.get("save_every") and step % orders["save_every"] == 0 and step < steps:
            save(f"{options.run}-step{step:08d}-state")
    if not orders.get("no_weights"):
        tiny_safetensors(folder / f"{options.run}.safetensors")
    return 0


if __name__ == "__main__":
    sys.exit(main())
