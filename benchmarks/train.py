"""`./fluxgym bench train`: FluxGym's trainer against the bare loop and against diffusers' own Flux LoRA script.

Steps a second of flux-mini (batch 1 and 4) and of a transformer of 145 million parameters at 256 image tokens (every
fourth block computed twice in ours), time from the process's start to the first step, wall time of a whole job, and
peak memory. Rounds interleaved; a ratio is the middle one of its rounds. `--diffusers PATH` names
`examples/dreambooth/train_dreambooth_lora_flux.py` of a copy of diffusers; it gets the same base, pictures, rank and
layers.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from benchmarks.campaigns.report import Figure, show
from benchmarks.training import GPU_PEAK
from benchmarks.training.bare import WARM_UP
from fluxcore.config import resolve_config
from fluxcore.dataset import copy_dataset
from fluxcore.log import read_events
from fluxcore.models.registry import OWN_VARIABLE
from fluxcore.runs import create_run
from fluxcore.runs.files import PROJECT_ROOT

RANK = 8
TEXT_TOKENS = 64
"""T5 tokens of a caption, as flux-mini has them; diffusers' script gets the same."""
IMPORTS = "import torch, accelerate, peft\nfrom diffusers import FluxPipeline"
LAYERS = (
    "attn.to_q,attn.to_k,attn.to_v,attn.to_out.0,attn.add_q_proj,attn.add_k_proj,attn.add_v_proj,attn.to_add_out,"
    "ff.net.0.proj,ff.net.2,ff_context.net.0.proj,ff_context.net.2,proj_mlp,proj_out,norm.linear,norm1.linear,"
    "norm1_context.linear"
)
"""Those that FluxGym trains, as the script takes them."""
_BAR = re.compile(r"Steps:\s+\d+%.*?(\d+)/\d+")
_GPU_PEAK = re.compile(rf"{GPU_PEAK} (\d+)")


@dataclass(frozen=True)
class Case:
    """What is trained: a base model's folder, picture size (of a square), batch size and steps; and how."""

    name: str
    base: Path
    resolution: int
    batch: int
    steps: int
    text_tokens: int = TEXT_TOKENS
    precision: str = "no"
    checkpointing: bool = False
    interval: int = 0
    """Ours computes every so-many-th block twice (0: none), which diffusers' script can do of all blocks or of none."""
    on_gpu: bool = False

    @property
    def tokens(self) -> int:
        """Image tokens: 16 pixels to a side each."""
        return (self.resolution // 16) ** 2


@dataclass(frozen=True)
class Job:
    """One process that trained: seconds from its start, peak memory in MiB (of the GPU where it trained on one)."""

    steps_per_second: float
    first_step: float
    whole: float
    peak: float


def main() -> int:
    """The command. Returns 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffusers", type=Path, metavar="PATH", help="diffusers' train_dreambooth_lora_flux.py")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200, help="of flux-mini; the large one does a tenth")
    parser.add_argument("--case", choices=("batch-1", "batch-4", "large"), help="default: all three")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fluxgym-bench-") as place:
        mini, large = Path(place) / "mini", Path(place) / "large"
        finished([sys.executable, "-m", "benchmarks.training.base", str(mini)])
        finished([sys.executable, "-m", "benchmarks.training.base", str(large), "--large"])
        use_bases([mini, large], TEXT_TOKENS, Path(place))
        tenth = max(2 * WARM_UP, asked.steps // 10)
        cases = {
            "batch-1": Case("flux-mini, batch 1", mini, 64, 1, asked.steps),
            "batch-4": Case("flux-mini, batch 4", mini, 64, 4, asked.steps),
            "large": Case("145 M transformer, 256 image tokens, batch 1", large, 256, 1, tenth, interval=4),
        }
        missed = 0
        for name, case in cases.items():
            if asked.case in (None, name):  # each is shown when it is done: the large one takes long
                missed |= show("the trainer", measure(case, asked.rounds, asked.diffusers, Path(place)))
    return missed


def use_bases(bases: list[Path], tokens: int, place: Path) -> None:
    """Give the trainings to come these folders as base models, each called as its folder with `-base` behind."""
    entries = [f'[{base.name}-base]\npath = "{base}"\ntokens = {tokens}\n' for base in bases]
    (place / "models.toml").write_text("\n".join(entries))
    os.environ[OWN_VARIABLE] = str(place / "models.toml")


def measure(case: Case, rounds: int, script: Path | None, place: Path) -> list[Figure]:
    """Figures of one case."""
    imports = statistics.median(finished([sys.executable, "-c", IMPORTS])[1] for _ in range(3))
    ours, bares, theirs, warm, compiled = list[Job](), list[float](), list[Job](), list[float](), list[float]()
    all_kept = list[Job]()
    mini = case.resolution == 64
    for number in range(rounds):
        print(f"{case.name}: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        ours.append(train(case, place / f"{case.name}-{number}"))
        if mini and case.batch == 1:
            warm.append(train(case, place / f"{case.name}-{number}", attempt=2).first_step)
            compiled.append(train(case, place / f"{case.name}-{number}-compiled", compile="on").steps_per_second)
        if case.interval:
            all_kept.append(train(replace(case, interval=0), place / f"{case.name}-{number}-all-kept"))
        bares.append(bare(case))
        if script:
            theirs.append(peer(case, script, place / f"{case.name}-{number}-peer"))
    speeds = [job.steps_per_second for job in ours]
    ratio = statistics.median(own / other for own, other in zip(speeds, bares, strict=True))
    figures = [
        Figure(f"{case.name}: steps/s", f"{statistics.median(speeds):.1f}"),
        Figure("  by the bare loop's", f"{ratio:.2f} ({statistics.median(bares):.1f}/s)", "0.95", ratio >= 0.95),
    ]
    if warm:
        first = statistics.median(warm)
        shown = f"{first:.1f} s" + (
            f" (theirs {statistics.median(job.first_step for job in theirs):.1f} s)" if theirs else ""
        )
        figures.append(Figure("  process's start → first step, warm caches", shown, "6 s", first <= 6))
    if theirs:
        figures += beside(case, ours, theirs, imports)
        if compiled:
            faster = statistics.median(
                own / other.steps_per_second for own, other in zip(compiled, theirs, strict=True)
            )
            shown = f"{faster:.2f} ({statistics.median(compiled):.1f}/s)"
            figures.append(_more("  the same, blocks compiled, without the warm-up", shown, faster, 1.5))
    return figures + (with_all_kept(all_kept, bares, theirs, imports) if all_kept else [])


def beside(case: Case, ours: list[Job], theirs: list[Job], imports: float, *, targets: bool = True) -> list[Figure]:
    """Our jobs by those of diffusers' script, round by round; `imports`: MiB of memory that count for neither."""
    pairs, mini = list(zip(ours, theirs, strict=True)), case.resolution == 64
    faster = statistics.median(own.steps_per_second / other.steps_per_second for own, other in pairs)
    speed = statistics.median(job.steps_per_second for job in theirs)
    whole = statistics.median(own.whole / other.whole for own, other in pairs)
    less = statistics.median((own.peak - imports) / (other.peak - imports) for own, other in pairs)
    seconds, peak = (statistics.median(values) for values in zip(*((job.whole, job.peak) for job in ours), strict=True))
    memory = "peak of the allocator" if case.on_gpu else "peak memory, less the imports,"
    fast, short, small = (1.15 if mini and case.batch == 1 else None), (0.7 if mini else None), (None if mini else 0.8)
    if not targets:
        fast = short = small = None
    return [
        _more("  steps/s by diffusers' script's", f"{faster:.2f} ({speed:.3g}/s)", faster, fast),
        _less(f"  wall time of {case.steps} steps by theirs", f"{whole:.2f} ({seconds:.1f} s)", whole, short),
        _less(f"  {memory} by theirs", f"{less:.2f} ({peak - imports:.0f} MiB)", less, small),
    ]


def with_all_kept(ours: list[Job], bares: list[float], theirs: list[Job], imports: float) -> list[Figure]:
    """Our jobs with every activation kept, as the bare loop and diffusers' script do it; `theirs` may be none."""
    peak, speed = (
        statistics.median(each) for each in zip(*((job.peak, job.steps_per_second) for job in ours), strict=True)
    )
    faster = statistics.median(own.steps_per_second / other for own, other in zip(ours, bares, strict=True))
    shown = [Figure("  ours with every activation kept: steps/s by the bare loop's", f"{faster:.2f} ({speed:.1f}/s)")]
    if theirs:
        pairs = list(zip(ours, theirs, strict=True))
        less = statistics.median((own.peak - imports) / (other.peak - imports) for own, other in pairs)
        quicker = statistics.median(own.steps_per_second / other.steps_per_second for own, other in pairs)
        shown.append(
            Figure("  the same: steps/s, memory by theirs", f"{quicker:.2f}, {less:.2f} ({peak - imports:.0f} MiB)")
        )
    return shown


def _more(what: str, shown: str, value: float, wanted: float | None) -> Figure:
    return Figure(what, shown, f"{wanted}" if wanted else "", value >= wanted if wanted else None)


def _less(what: str, shown: str, value: float, wanted: float | None) -> Figure:
    return Figure(what, shown, f"at most {wanted}" if wanted else "", value <= wanted if wanted else None)


def train(case: Case, outputs: Path, attempt: int = 1, compile: str = "off") -> Job:
    """One job of FluxGym's trainer over examples/riso, without samples; its final LoRA is saved.

    The base in 32 bit, as both others have it. (It takes a CPU half of a small step to unpack one in 8 bit, as the
    memory presets hold it.) A second attempt begins afresh as well, and finds the first one's caches.
    """
    settings: dict[str, object] = {
        "lora_name": "bench",
        "base_model": f"{case.base.name}-base",
        "resolution": case.resolution,
        "train_batch_size": case.batch,
        "max_train_steps": case.steps,
        "num_repeats": 1000,
        "network_dim": RANK,
        "network_alpha": RANK,
        "learning_rate": "1e-4",
        "enable_checkpointing": False,
        "save_every_n_epochs": 0,
        "mixed_precision": case.precision,
        "save_precision": "float",
        "gradient_checkpointing": case.checkpointing or case.interval > 0,
        "gradient_checkpointing_interval": max(1, case.interval),
        "fp8_base": False,
        "compile": compile,
    }
    if attempt == 1:
        outputs.mkdir()
        create_run(outputs, resolve_config(settings), "cli", lambda to: copy_dataset(riso(), to) and None)
    begun = time.time()
    command = [sys.executable, "-m", "fluxcore.training", "--outputs", str(outputs), "--run", "bench"]
    whole, peak = finished([*command, "--attempt", str(attempt)])
    events = [event for event in read_events(outputs / "bench") if event.attempt == attempt]
    steps = [event for event in events if event.type == "train.step"]
    at = [event.time.timestamp() for event in steps]
    assert len(at) == case.steps
    if case.on_gpu:
        peak = steps[-1].data["memory_gib"] * 1024
    return Job((len(at) - WARM_UP) / (at[-1] - at[WARM_UP - 1]), at[0] - begun, whole, peak)


def bare(case: Case) -> float:
    """Steps a second of the bare loop."""
    command = [sys.executable, "-m", "benchmarks.training.bare", str(case.base / "transformer")]
    numbers = {"batch": case.batch, "tokens": case.tokens, "text-tokens": TEXT_TOKENS, "rank": RANK}
    for name, value in {**numbers, "steps": case.steps}.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=PROJECT_ROOT, env=environment())
    return float(json.loads(done.stdout.splitlines()[-1])["steps_per_second"])


def peer(case: Case, script: Path, folder: Path) -> Job:
    """One job of diffusers' script; its steps are timed by its own progress bar.

    No `--repeats`: it would encode each picture so many times before the first step, and keep them all.
    """
    folder.mkdir()
    pictures = folder / "pictures"
    pictures.mkdir()
    for picture in riso().glob("*.png"):
        (pictures / picture.name).write_bytes(picture.read_bytes())
    options = {
        "pretrained_model_name_or_path": case.base,
        "instance_data_dir": pictures,
        "instance_prompt": "r1so",
        "output_dir": folder / "out",
        "resolution": case.resolution,
        "train_batch_size": case.batch,
        "max_train_steps": case.steps,
        "rank": RANK,
        "lora_alpha": RANK,
        "lora_layers": LAYERS,
        "max_sequence_length": case.text_tokens,
        "checkpointing_steps": 10**6,
        "learning_rate": "1e-4",
        "lr_warmup_steps": 0,
        "mixed_precision": case.precision,
        "seed": 1,
    }
    command = [sys.executable, "-m", "benchmarks.training.peer", str(script.absolute()), "--cache_latents"]
    command += ["--gradient_checkpointing"] if case.checkpointing else []
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=folder, env=environment()
    )
    assert process.stderr is not None
    seen, said = _bars(process.stderr)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"diffusers' script failed:\n{said[-3000:]}")
    whole = time.perf_counter() - started
    on_gpu = _GPU_PEAK.search(said)
    timed = [(step, at) for step, at in seen if step >= WARM_UP]
    speed = (timed[-1][0] - timed[0][0]) / (timed[-1][1] - timed[0][1])
    return Job(speed, seen[0][1] - started, whole, int(on_gpu[1]) / 2**20 if on_gpu else used.ru_maxrss / 1024)


def _bars(stream: IO[bytes]) -> tuple[list[tuple[int, float]], str]:
    """Steps and when its progress bar first showed each, and all that was said."""
    seen: dict[int, float] = {}
    said = ""
    while chunk := os.read(stream.fileno(), 65536):
        now = time.perf_counter()
        said += chunk.decode(errors="replace")
        for match in _BAR.finditer(said[-4000:]):
            if int(match[1]):
                seen.setdefault(int(match[1]), now)
    return sorted(seen.items()), said


def finished(command: list[str]) -> tuple[float, float]:
    """Run a command; its wall seconds and peak memory in MiB. What it says is shown where it fails."""
    started = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, cwd=PROJECT_ROOT, env=environment())
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            text = said.read().decode(errors="replace")
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{text[-3000:]}")
    return time.perf_counter() - started, used.ru_maxrss / 1024


def environment() -> dict[str, str]:
    """Ours, the project importable."""
    return {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}


def riso() -> Path:
    """The pictures."""
    return PROJECT_ROOT / "examples" / "riso"


if __name__ == "__main__":
    sys.exit(main())
