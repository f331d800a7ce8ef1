"""A FLUX of 145 million parameters with random weights and flux-mini's encoders: what a step costs, not what it draws.

python -m benchmarks.training.base FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

from fluxcore.models.registry import find_model


def main() -> None:
    folder = Path(sys.argv[1])
    import torch
    from diffusers import FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    mini = find_model("flux-mini").path
    assert mini is not None
    pipeline = FluxPipeline.from_pretrained(mini)
    config = dict(pipeline.transformer.config) | {
        "num_attention_heads": 12,
        "attention_head_dim": 64,
        "axes_dims_rope": [16, 24, 24],
        "num_layers": 3,
        "num_single_layers": 9,
    }
    pipeline.transformer = FluxTransformer2DModel.from_config(config)
    count = sum(parameter.numel() for parameter in pipeline.transformer.parameters())
    assert 140e6 < count < 150e6, f"{count:,} parameters"
    pipeline.save_pretrained(folder)


if __name__ == "__main__":
    main()
