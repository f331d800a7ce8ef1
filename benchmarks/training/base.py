"""flux-mini's folder with a text encoder that diffusers' script can use, and with `--large` a large transformer.

    python -m benchmarks.training.base FOLDER [--large]

Random weights: what a step costs, not what it draws. The script gives CLIP 77 tokens whatever its config says.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fluxcore.models.registry import find_model


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--large", action="store_true", help="a transformer of 145 million parameters")
    asked = parser.parse_args()

    import torch
    from diffusers import FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    pipeline = FluxPipeline.from_pretrained(find_model("flux-mini").path)
    clip = pipeline.text_encoder.config.to_dict() | {"max_position_embeddings": 77}
    pipeline.text_encoder = CLIPTextModel(CLIPTextConfig(**clip))
    pipeline.tokenizer.model_max_length = 77
    if asked.large:
        blocks = {"num_layers": 3, "num_single_layers": 9}
        width = {"num_attention_heads": 12, "attention_head_dim": 64, "axes_dims_rope": [16, 24, 24]}
        pipeline.transformer = FluxTransformer2DModel.from_config({**pipeline.transformer.config, **width, **blocks})
        count = sum(parameter.numel() for parameter in pipeline.transformer.parameters())
        assert 140e6 < count < 150e6, f"{count:,} parameters"
    pipeline.save_pretrained(asked.folder)


if __name__ == "__main__":
    main()
