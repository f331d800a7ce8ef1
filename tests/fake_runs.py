"""Runs as a trainer and a runner would have left them, written through the real event log. For page tests and looks."""

from __future__ import annotations

import json
import math
import random
import struct
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from PIL import Image

from fluxcore.config import resolve_config
from fluxcore.log import EventLog, format_ts
from fluxcore.runs import RunFolder, create_run
from fluxcore.runs.processes import boot_id
from tests.stub_trainer import save_state

PROMPTS = ("r1so a red apple", "r1so a grinning cat", "r1so a sailboat", "r1so a mushroom")


class FakeRun:
    """A run whose events are given times of their own."""

    def __init__(self, outputs: Path, name: str, minutes_ago: float = 60, **settings: Any) -> None:
        given = {"lora_name": name, "concept_sentence": "r1so", "base_model": "flux-mini", "max_train_epochs": 16}
        given |= {"num_repeats": 120}  # 4 pictures, 8 a step: 960 steps
        self.config = resolve_config(given | settings)
        self.folder: RunFolder = create_run(outputs, self.config, "app", self._pictures)
        self.now = datetime.now(UTC) - timedelta(minutes=minutes_ago)
        self.attempt = 0
        self.step = 0
        self.trainer: subprocess.Popen | None = None

    @staticmethod
    def _pictures(target: Path) -> None:
        for i in range(4):
            Image.new("RGB", (64, 64), (40 * i, 60, 200 - 30 * i)).save(target / f"picture{i}.png")
            (target / f"picture{i}.txt").write_text(f"r1so thing {i}\n")

    def append(self, source: str, type: str, data: dict[str, Any], *, wait: float = 0.0) -> Any:
        """One event `wait` seconds after the one before."""
        self.now += timedelta(seconds=wait)
        attempt = self.attempt if self.attempt and source in ("trainer", "runner") else None
        with EventLog(self.folder.path, source, now=lambda: format_ts(self.now), attempt=attempt) as log:
            return log.append(type, data)

    def start(self, *, pid: int | None = None, create_time: float = 0.0, resume_step: int | None = None) -> None:
        """Requested and started; where no `pid` is given a sleeping process plays the trainer (never this one: a
        runner that finds the run may end its process). `end_trainer` ends it."""
        if pid is None:
            self.trainer = subprocess.Popen(["sleep", "900"])
            pid, create_time = self.trainer.pid, psutil.Process(self.trainer.pid).create_time()
        request = self.append("app", "run.requested", {"config": "", "resume_from": None, "reason": "start"})
        self.attempt += 1
        self.append(
            "runner",
            "run.started",
            {
                "request": request.id,
                "pid": pid,
                "boot_id": boot_id(),
                "shim_pid": 1,
                "argv": [],
                "gpus": [],
                "create_time": create_time,
                "host": "test",
                "resume_from": None,
                "resume_step": resume_step,
            },
            wait=1,
        )
        self.append("trainer", "phase.started", {"phase": "train", "total": 960, "unit": "steps"}, wait=3)

    def end_trainer(self) -> None:
        """End the process that plays the trainer."""
        if self.trainer:
            self.trainer.kill()
            self.trainer.wait()

    def steps(self, count: int, total: int = 960, seconds: float = 1.1, epochs: int = 16) -> None:
        """`count` steps with a falling, noisy loss."""
        noise = random.Random(self.step)
        with EventLog(self.folder.path, "trainer", now=lambda: format_ts(self.now), attempt=self.attempt) as log:
            for _ in range(count):
                self.step += 1
                self.now += timedelta(seconds=seconds)
                loss = 0.28 + 0.35 * math.exp(-self.step / 150) + noise.gauss(0, 0.045)
                log.append(
                    "train.step",
                    {
                        "step": self.step,
                        "total_steps": total,
                        "epoch": 1 + self.step * epochs // (total + 1),
                        "loss": loss,
                        "lr": 8e-4,
                        "grad_norm": 0.4,
                        "step_seconds": seconds,
                        "images_per_second": 1 / seconds,
                        "memory_gib": 17.8,
                    },
                )

    def sample(self, prompts: Sequence[str] = PROMPTS) -> None:
        """One sample for each prompt at this step."""
        self.folder.samples.mkdir(exist_ok=True)
        for index, prompt in enumerate(prompts):
            path = self.folder.sample(index, 42, step=self.step)
            blend = min(1.0, self.step / 800)
            Image.new(
                "RGB", (512, 512), (int(240 - 150 * blend), int(200 - 90 * index / 4), int(90 + 120 * blend))
            ).save(path)
            data = {"step": self.step, "epoch": 1, "index": index, "prompt": prompt, "seed": 42}
            self.append("trainer", "sample.saved", data | {"path": self.folder.relative(path)})

    def measure(self, loss: float) -> None:
        """The loss on held-out pictures, and a LoRA file of the epoch that has it."""
        epoch = 1 + self.step * 16 // 961
        data = {"step": self.step, "epoch": epoch, "loss": loss, "pictures": 2, "best": True}
        self.append("trainer", "validation.measured", data | {"best_loss": loss, "best_step": self.step})
        path = self.weights(f"{self.folder.name}-{epoch:06d}.safetensors", kilobytes=1)
        data = {"step": self.step, "epoch": epoch, "path": path, "kind": "weights", "bytes": 1000, "sha256": "0"}
        self.append("trainer", "checkpoint.saved", data | {"validation_loss": loss})

    def machine(self) -> None:
        """What the runner sees of GPU and host."""
        gpu = {
            "index": 0,
            "uuid": "GPU-1",
            "name": "NVIDIA RTX 4090",
            "utilization_percent": 96,
            "memory_used_gib": 18.2,
            "memory_total_gib": 24,
            "power_watts": 288,
            "power_limit_watts": 450,
            "temperature_c": 71,
            "throttle_reasons": [],
        }
        host = {
            "cpu_percent": 104,
            "rss_gib": 9.2,
            "read_bytes": 1,
            "write_bytes": 1,
            "disk_free_gib": 41,
            "memory_available_gib": 50,
        }
        self.append("runner", "gpu.sampled", gpu)
        self.append("runner", "host.sampled", host)

    def weights(self, name: str | None = None, kilobytes: int = 38_000) -> str:
        """A whole, if empty, safetensors file."""
        path = self.folder.path / (name or f"{self.folder.name}.safetensors")
        header = json.dumps(
            {"a": {"dtype": "U8", "shape": [kilobytes * 1000], "data_offsets": [0, kilobytes * 1000]}}
        ).encode()
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
            file.truncate(8 + len(header) + kilobytes * 1000)
        return path.name


def a_night(outputs: Path) -> dict[str, FakeRun]:
    """One run of each kind; `my-cat` is live until its `end_trainer`."""
    runs = {}
    run = runs["tulips"] = FakeRun(outputs, "tulips", minutes_ago=190)
    run.start()
    for _ in range(4):
        run.steps(240, seconds=0.9)
        run.sample()
    run.append(
        "runner", "run.completed", {"weights": run.weights(), "steps": 960, "seconds": 900.0, "final_loss": 0.29}
    )
    run.end_trainer()
    run = runs["old-film"] = FakeRun(outputs, "old-film", minutes_ago=100)
    run.start()
    run.steps(310, seconds=2)
    evidence = {"phase": "train", "seconds_without_step": 301.2, "utilization_percent": [0, 0, 0], "limit_seconds": 300}
    save_state(run.folder.path, "old-film-000004-state", 300, 4)
    resume = {"resume_checkpoint": "old-film-000004-state", "resume_step": 300}
    run.append(
        "runner", "run.stalled", {"verdict": "gpu_idle", "evidence": evidence, "stacks": None} | resume, wait=301
    )
    run.append("runner", "run.killed", {"pids": [1], "signals": ["TERM"], "seconds": 1.0, "survivors": []} | resume)
    run.end_trainer()
    run = runs["too-large"] = FakeRun(outputs, "too-large", minutes_ago=75)
    run.start()
    run.append(
        "runner",
        "run.failed",
        {
            "exit_code": 6,
            "signal": None,
            "reason": "oom_gpu",
            "tail": "torch.OutOfMemoryError: CUDA out of memory",
            "hint": "The GPU's memory was full: choose a smaller GPU memory preset, a smaller resolution or batch.",
            "resume_checkpoint": None,
            "resume_step": None,
        },
        wait=30,
    )
    run.end_trainer()
    run = runs["my-cat"] = FakeRun(outputs, "my-cat", minutes_ago=12)
    run.start()
    run.steps(120)
    run.sample()
    run.steps(240)
    run.sample()
    run.steps(120)
    run.sample()
    run.machine()
    run.append("trainer", "phase.started", {"phase": "train", "total": 960, "unit": "steps"})
    run.folder.train_log.write_text("".join(f"step {i} loss 0.3\n" for i in range(300)))
    run.folder.monitor_log.write_text("2026-11-23 20:01:15 - INFO - monitors my-cat\n")
    FakeRun(outputs, "sketches", minutes_ago=5)
    return runs
