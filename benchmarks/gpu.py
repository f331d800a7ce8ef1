"""`./fluxgym bench gpu`: a full-size FLUX.1 with random weights on this machine's GPU, preset by preset.

What a step costs and takes does not depend on what the weights say, so none are downloaded. For each memory preset that
the GPU has room for: pictures a second of the trainer's own step, the same by a bare forward-backward-clip-update loop
over the same held transformer, and the allocator's peak beside what `./fluxgym plan` computes.

`--diffusers PATH` adds whole jobs of the trainer beside those of diffusers' `train_dreambooth_lora_flux.py`: the same
base in bfloat16, pictures, rank, layers and gradient checkpointing, rounds interleaved. `--base flux-mini --cpu` tries
the command itself on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.campaigns.report import Figure, show
from benchmarks.train import IMPORTS, Case, Job, beside, finished, peer, train, use_bases
from benchmarks.training.bare import WARM_UP as JOB_WARM_UP
from fluxcore.config import VRAM_PRESETS, RunConfig, resolve_config
from fluxcore.models.registry import find_model
from fluxcore.planner.hardware import CONTEXT_BYTES, size_of
from fluxcore.planner.plan import RESERVE, make_plan, measured
from fluxcore.planner.request import request_of
from fluxcore.planner.shapes import model_files
from fluxcore.runs.files import PROJECT_ROOT

WARM_UP = 3


def main() -> int:
    """The command. Returns 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="flux-dev", help="whose shape the transformer has")
    parser.add_argument("--presets", default="", metavar="8G,24G,…", help="default: all that the GPU has room for")
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cpu", action="store_true", help="on the processor")
    parser.add_argument("--diffusers", type=Path, metavar="PATH", help="diffusers' train_dreambooth_lora_flux.py")
    parser.add_argument("--rounds", type=int, default=3, help="of the jobs beside diffusers'")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(child(asked.child, asked)))
        return 0
    if find_model(asked.base).family != "flux":
        raise SystemExit(f"bench gpu measures FLUX.1's kind, not {asked.base}: leave --base out, or name another one")
    title, room = ("this processor", None) if asked.cpu else _gpu()
    presets = asked.presets.split(",") if asked.presets else [p for p in VRAM_PRESETS if room and size_of(p) <= room]
    figures = []
    for preset in presets or ["24G"]:
        print(f"{preset} …", file=sys.stderr, flush=True)
        figures += _measure(preset, asked)
    if asked.diffusers:
        figures += _beside_diffusers(asked)
    return show(f"{find_model(asked.base).name}'s shape, random weights, {asked.resolution} px, on {title}", figures)


def _gpu() -> tuple[str, int]:
    """Name and bytes of the first GPU, asked in a process that ends: it would keep some of its memory."""
    ask = "import torch; p = torch.cuda.get_device_properties(0); print(p.total_memory, p.name)"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit("there is no GPU that torch can use; `--cpu --base flux-mini` tries the command without one")
    size, name = done.stdout.split(maxsplit=1)
    return name.strip(), int(size)


def config_for(preset: str, asked: argparse.Namespace) -> RunConfig:
    """The run that a person with that preset would start."""
    size = {"resolution": asked.resolution, "train_batch_size": asked.batch, "max_train_steps": asked.steps}
    return resolve_config({"lora_name": "bench", "base_model": asked.base, "vram": preset, **size})


def _measure(preset: str, asked: argparse.Namespace) -> list[Figure]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--child", preset, "--base", asked.base]
    command += ["--resolution", str(asked.resolution), "--batch", str(asked.batch), "--steps", str(asked.steps)]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT_ROOT)}
    command += ["--cpu"] if asked.cpu else []
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        return [Figure(f"{preset}: training", f"failed: {last}", "", False)]
    found = json.loads(done.stdout.splitlines()[-1])
    config = config_for(preset, asked)
    phases = make_plan(config, 10, measured(request_of(config))).phases
    parts = next(phase.parts for phase in phases if phase.name == "train")
    plan = sum(parts.values()) - CONTEXT_BYTES - parts[RESERVE]
    ratio = found["pictures"] / found["bare"]
    figures = [
        Figure(f"{preset}: pictures/s", f"{found['pictures']:.2f}"),
        Figure("  by the bare loop's", f"{ratio:.2f}", "0.95", ratio >= 0.95),
    ]
    if found["peak"] is None:
        return [*figures, Figure("  planned for the training", f"{plan / 2**30:.2f} GiB without the CUDA context")]
    off = found["peak"] / plan - 1
    peak, reserved, wanted, more = (
        f"{value / 2**30:.2f}" for value in (found["peak"], found["reserved"], plan, plan + parts[RESERVE])
    )
    shown = f"{peak} GiB, planned {wanted} ({off:+.0%}); reserved {reserved}, planned {more}"
    return [*figures, Figure("  peak of the allocator", shown, "within 15%", abs(off) <= 0.15)]


def _beside_diffusers(asked: argparse.Namespace) -> list[Figure]:
    """Whole jobs of both trainers over one base with random weights, which takes its size of the disk meanwhile.

    It is put where TMPDIR says: for FLUX.1-dev 23 GiB. diffusers' script loads it in 32 bit: 45 GiB of host memory.
    """
    if asked.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    tokens = find_model(asked.base).tokens
    with tempfile.TemporaryDirectory(prefix="fluxgym-bench-") as place:
        base = Path(place) / "random"
        case = Case(
            f"{asked.base}, batch {asked.batch}, beside diffusers'",
            base,
            asked.resolution,
            asked.batch,
            asked.steps + JOB_WARM_UP,
            text_tokens=tokens,
            precision="no" if asked.cpu else "bf16",
            checkpointing=True,
            on_gpu=not asked.cpu,
        )
        try:
            finished([sys.executable, "-m", "benchmarks.training.base", str(base), "--shape", asked.base])
            use_bases([base], tokens, Path(place))
            imports = 0.0 if case.on_gpu else finished([sys.executable, "-c", IMPORTS])[1]
            ours, theirs = list[Job](), list[Job]()
            for number in range(asked.rounds):
                print(f"beside diffusers': round {number + 1} of {asked.rounds}", file=sys.stderr, flush=True)
                ours.append(train(case, Path(place) / f"ours-{number}"))
                theirs.append(peer(case, asked.diffusers, Path(place) / f"theirs-{number}"))
        except SystemExit as error:  # one of the processes failed; the presets' figures are shown nevertheless
            return [Figure(case.name, f"failed: {str(error).strip().splitlines()[-1]}", "", False)]
    speed = statistics.median(job.steps_per_second for job in ours)
    return [Figure(f"{case.name}: steps/s", f"{speed:.3g}"), *beside(case, ours, theirs, imports, targets=False)]


def child(preset: str, asked: argparse.Namespace) -> dict[str, Any]:
    """Pictures a second, of the trainer's step and bare, and the peak in bytes (None on a processor)."""
    import torch
    from accelerate import Accelerator

    from fluxcore.models.family import PromptBatch, family_of
    from fluxcore.models.loading import PromptEmbedding
    from fluxcore.training.data import Batch
    from fluxcore.training.network import DTYPES
    from fluxcore.training.optimizers import make_optimizer
    from fluxcore.training.train import Training

    config, model = config_for(preset, asked), find_model(asked.base)
    device, dtype = torch.device("cpu" if asked.cpu else "cuda"), DTYPES[config.mixed_precision]
    family = family_of(model)
    shape = model_files(model)
    transformer, parameters = _transformer(shape["transformer"], config, family, device, dtype)
    optimizer = make_optimizer(config, parameters)
    training = Training(SimpleNamespace(), config, SimpleNamespace(attempt=None))  # type: ignore[arg-type]
    training.family = family
    training.device = device
    pipeline = SimpleNamespace(transformer=transformer)
    side = asked.resolution // 2 ** (len(shape["vae"]["block_out_channels"]) - 1)
    pooled, sequence = transformer.config.pooled_projection_dim, (model.tokens, transformer.config.joint_attention_dim)

    def batch() -> Batch:
        clean = torch.randn(asked.batch, transformer.config.in_channels // 4, side, side)
        prompt = PromptEmbedding(torch.randn(pooled), torch.randn(*sequence))
        count = len(clean)
        return Batch(clean, torch.randn_like(clean), torch.randn(count), [prompt] * count, torch.ones(count))

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    accelerator = Accelerator(mixed_precision="no")

    def ours(step: int) -> None:
        training.backward(accelerator, pipeline, step, [batch()], asked.batch)
        update()

    one = batch()
    clean, noise = family.pack(one.clean).to(device), family.pack(one.noise).to(device)
    prompts = PromptBatch.stack(one.prompts, device, dtype)
    sigma = torch.full((asked.batch,), 0.5, device=device)
    noisy = torch.lerp(clean, noise, sigma[:, None, None]).to(dtype)

    def bare(_: int) -> None:
        velocity = family.predict(pipeline, noisy, sigma, prompts, config.guidance_scale, family.grid(one.clean))
        (velocity.float() - (noise - clean)).square().mean().backward()
        update()

    return {
        "pictures": asked.batch / _seconds(ours, asked.steps, device),
        "bare": asked.batch / _seconds(bare, asked.steps, device),
        "peak": None if asked.cpu else torch.cuda.max_memory_allocated(),
        "reserved": None if asked.cpu else torch.cuda.max_memory_reserved(),
    }


def _transformer(
    shape: dict[str, Any], config: RunConfig, family: Any, device: Any, dtype: Any
) -> tuple[Any, list[Any]]:
    """A transformer of that config.json with small random weights, held as the trainer holds it; what is trained."""
    import torch
    from diffusers import FluxTransformer2DModel

    from fluxcore.models.checkpointing import checkpoint_blocks
    from fluxcore.models.frozen import hold_base, train_in_32_bit
    from fluxcore.models.held import held
    from fluxcore.training.network import add_network

    with torch.device("meta"):
        transformer = FluxTransformer2DModel.from_config(shape).to(dtype)
    transformer.to_empty(device="cpu").requires_grad_(False)
    for parameter in transformer.parameters():
        parameter.data.normal_(std=0.02)
    add_network(transformer, config, family)
    parameters = train_in_32_bit(transformer, dtype, device)
    hold_base(transformer, device, held(config), config.blocks_to_swap)
    transformer.to(device)
    if config.gradient_checkpointing:
        checkpoint_blocks(transformer, config.gradient_checkpointing_interval)
    transformer.train()
    return transformer, parameters


def _seconds(step: Any, steps: int, device: Any) -> float:
    """Seconds of one step, the first few left out."""
    import torch

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    started = now()
    for number in range(1, steps + WARM_UP + 1):
        if number == WARM_UP + 1:
            started = now()
        step(number)
    return (now() - started) / steps


if __name__ == "__main__":
    sys.exit(main())
