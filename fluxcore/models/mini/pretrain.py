"""Make flux-mini from nothing but a font:

    apt-get install fonts-noto-color-emoji
    python -m fluxcore.models.mini.pretrain --work .work/flux-mini

Stages, each resumed from its checkpoint in the work folder: `vae`, `flow` (transformer and text encoders), `distil`
(classifier-free guidance into the guidance embedding), `decoder` (the VAE's decoder goes on alone, which leaves the
latents as they are), `export`. What the committed weights were made with is in MODEL_CARD.md beside this file.

With `--start-from fluxcore/models/mini/pipeline` the finished weights are trained further: their VAE is kept, and
`flow` begins with their transformer and text encoders instead of untrained ones.
"""

from __future__ import annotations

import argparse
import json
import platform
from datetime import UTC, datetime
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from ..loading import load_pipeline
from .emoji import Emoji, load_emoji
from .export import PIPELINE, build_pipeline, export
from .flow import Corpus, distil_stage, flow_stage, train_distil, train_flow
from .text import build_clip_tokenizer, build_t5_tokenizer
from .vae import decoder_stage, set_shift_and_scale, train_decoder, train_vae, vae_stage

STAGES = ("vae", "flow", "distil", "decoder", "export")


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints (ignored by git)")
    parser.add_argument("--stages", default=",".join(STAGES), help="comma-separated, in order")
    parser.add_argument("--start-from", type=Path, help="a pipeline folder whose weights are trained further")
    parser.add_argument("--vae-steps", type=int, default=2600)
    parser.add_argument("--flow-steps", type=int, default=6000)
    parser.add_argument("--distil-steps", type=int, default=600)
    parser.add_argument("--decoder-steps", type=int, default=800)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=PIPELINE)
    arguments = parser.parse_args()
    unknown = set(arguments.stages.split(",")) - set(STAGES)
    if unknown:
        parser.error(f"unknown stages {', '.join(sorted(unknown))}")
    torch.set_num_threads(arguments.threads)
    run(arguments, load_emoji())


def run(arguments: argparse.Namespace, emoji: Emoji) -> None:
    """Run the wanted stages."""
    work, stages = arguments.work, arguments.stages.split(",")
    seconds: dict[str, float] = {}
    start = load_pipeline(arguments.start_from) if arguments.start_from else None
    if start:
        vae: AutoencoderKL = start.vae
    else:
        first = vae_stage(work, arguments.vae_steps)
        if "vae" in stages:
            train_vae(first, emoji)
        first.use_ema()
        vae, seconds["vae"] = first.modules["vae"], first.seconds  # type: ignore[assignment]
    latents = set_shift_and_scale(vae, emoji)
    corpus = Corpus.of(
        latents, emoji.captions, build_clip_tokenizer(emoji.captions), build_t5_tokenizer(emoji.captions)
    )
    begin = (
        {"transformer": start.transformer, "clip": start.text_encoder, "t5": start.text_encoder_2} if start else None
    )
    flow = flow_stage(work, arguments.flow_steps, corpus, begin)
    if "flow" in stages:
        train_flow(flow, corpus)
    flow.use_ema()
    modules, seconds["flow"] = flow.modules, flow.seconds
    if "distil" in stages or (work / "distil.pt").exists():
        distil = distil_stage(work, arguments.distil_steps, flow.modules)
        if "distil" in stages:
            train_distil(distil, corpus, flow.modules)
        distil.use_ema()
        modules, seconds["distil"] = distil.modules, distil.seconds
    if "decoder" in stages or (work / "decoder.pt").exists():
        decoder = decoder_stage(work, arguments.decoder_steps, vae)
        if "decoder" in stages:
            train_decoder(decoder, vae, emoji)
        decoder.use_ema()
        seconds["decoder"] = decoder.seconds
    if "export" in stages:
        size = export(build_pipeline(vae, modules, corpus), arguments.out)
        record = {
            "made": datetime.now(UTC).isoformat(timespec="seconds"),
            "emoji": len(emoji.captions),
            "steps": {stage: getattr(arguments, f"{stage}_steps") for stage in STAGES if stage != "export"},
            "seconds": {stage: round(value) for stage, value in seconds.items()},
            "bytes": size,
            "torch": torch.__version__,
            "started_from": str(arguments.start_from) if start else None,
            "machine": f"{platform.machine()}, {torch.get_num_threads()} threads",
        }
        (arguments.out / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
        print(f"{arguments.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
