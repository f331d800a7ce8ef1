"""flux-mini's folder with a text encoder that diffusers' script can use, and another transformer where asked.

    python -m benchmarks.training.base FOLDER [--large | --shape MODEL]

Random weights: what a step costs, not what it draws. The script gives CLIP 77 tokens whatever its config says.
`--shape flux-dev` has that model's transformer and VAE at full size, in bfloat16 (23 GiB), and text encoders as wide as
its but two layers deep: captions are encoded before the first step.
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
    parser.add_argument("--shape", metavar="MODEL", help="the transformer and VAE of a base model of FLUX.1's kind")
    asked = parser.parse_args()

    import torch
    from diffusers import AutoencoderKL, FluxPipeline, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    from fluxcore.planner.shapes import model_files

    torch.manual_seed(0)
    pipeline = FluxPipeline.from_pretrained(find_model("flux-mini").path)
    clip = pipeline.text_encoder.config.to_dict() | {"max_position_embeddings": 77}
    if asked.shape:
        shape = model_files(find_model(asked.shape))
        with torch.device("meta"):
            transformer = FluxTransformer2DModel.from_config(shape["transformer"]).to(torch.bfloat16)
        pipeline.transformer = transformer.to_empty(device="cpu")
        for parameter in transformer.parameters():
            parameter.data.normal_(std=0.02)
        pipeline.vae = AutoencoderKL.from_config(shape["vae"])
        clip |= {"hidden_size": shape["transformer"]["pooled_projection_dim"]}
        t5 = pipeline.text_encoder_2.config.to_dict() | {"d_model": shape["transformer"]["joint_attention_dim"]}
        pipeline.text_encoder_2 = T5EncoderModel(T5Config(**t5))
        pipeline.tokenizer_2.model_max_length = 512
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
