"""The bare loop: forward, backward, clip, update of the same transformer with the same LoRA, and nothing else.

    python -m benchmarks.training.bare TRANSFORMER_FOLDER --batch 1 --tokens 16 --text-tokens 64 --rank 8 --steps 200

Prints one JSON object: `steps_per_second`, without the first WARM_UP steps.
"""

from __future__ import annotations

import argparse
import json
import time

WARM_UP = 10


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    for name in ("batch", "tokens", "text-tokens", "rank", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    asked = parser.parse_args()

    import torch
    from diffusers import FluxPipeline, FluxTransformer2DModel
    from peft import LoraConfig

    from fluxcore.models.flux import LORA_TARGETS

    torch.manual_seed(0)
    model = FluxTransformer2DModel.from_pretrained(asked.folder)
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=asked.rank, lora_alpha=asked.rank, target_modules=LORA_TARGETS))
    model.train()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    shape = model.config
    clean = torch.randn(asked.batch, asked.tokens, shape.in_channels)
    noise = torch.randn_like(clean)
    side = int(asked.tokens**0.5)
    given = {
        "pooled_projections": torch.randn(asked.batch, shape.pooled_projection_dim),
        "encoder_hidden_states": torch.randn(asked.batch, asked.text_tokens, shape.joint_attention_dim),
        "txt_ids": torch.zeros(asked.text_tokens, 3),
        "img_ids": FluxPipeline._prepare_latent_image_ids(1, side, side, "cpu", torch.float32),
        "guidance": torch.ones(asked.batch),
    }
    started = 0.0
    for step in range(asked.steps):
        if step == WARM_UP:
            started = time.perf_counter()
        sigma = torch.rand(asked.batch)
        noisy = torch.lerp(clean, noise, sigma[:, None, None])
        velocity = model(hidden_states=noisy, timestep=sigma, return_dict=False, **given)[0]
        loss = (velocity - (noise - clean)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    print(json.dumps({"steps_per_second": (asked.steps - WARM_UP) / (time.perf_counter() - started)}))


if __name__ == "__main__":
    main()
