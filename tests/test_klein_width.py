"""FLUX.2 klein at its real widths, one block of each kind, made on the fly: from a file to a LoRA and its names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.loaders import Flux2LoraLoaderMixin
from safetensors.torch import save_file
from test_klein_lora import NAMES

from fluxcore.config import parse_config
from fluxcore.models.family import PromptBatch
from fluxcore.models.flux2 import FLUX_2_KLEIN
from fluxcore.models.klein_files import load_transformer
from fluxcore.models.lora_size import klein_lora_size
from fluxcore.models.registry import find_model
from fluxcore.planner.shapes import model_files
from fluxcore.training.lora_file import save_lora
from fluxcore.training.lora_keys import KEY_NAMES
from fluxcore.training.network import add_network
from fluxcore.training.states import lora_state
from tests.klein_files import bfl_klein

RANK, TEXT_TOKENS, GRID = 4, 3, (2, 3)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width"), [("flux2-klein-base-4b", 3072), ("flux2-klein-9b", 4096)])
def test_a_file_of_the_real_width_is_read_and_its_lora_opens_in_diffusers(
    tmp_path: Path, name: str, width: int
) -> None:
    config = model_files(find_model(name))["transformer"] | {"num_layers": 1, "num_single_layers": 1}
    with torch.device("meta"):
        made = Flux2Transformer2DModel.from_config(config).to(torch.float8_e4m3fn)
    made.to_empty(device="cpu")
    for number, parameter in enumerate(made.parameters()):  # 0.03125 and so on: exact in 8 bits, and quick to write
        parameter.data.view(torch.uint8).fill_(0x10 + number % 3)
    file = tmp_path / "klein.safetensors"
    save_file({key: value.contiguous() for key, value in bfl_klein(made.state_dict()).items()}, file)

    transformer = load_transformer(file, torch.bfloat16)
    shape = {
        "attention_head_dim",
        "num_attention_heads",
        "in_channels",
        "joint_attention_dim",
        "timestep_guidance_channels",
    }
    assert {key: transformer.config[key] for key in shape} == {key: config[key] for key in shape}
    assert list(transformer.config.axes_dims_rope) == config["axes_dims_rope"]
    assert transformer.inner_dim == width
    for key, value in made.state_dict().items():
        assert torch.equal(transformer.state_dict()[key], value.to(torch.bfloat16)), key

    transformer.requires_grad_(False)
    add_network(transformer, parse_config({"network_dim": RANK, "network_alpha": float(RANK)}), FLUX_2_KLEIN)
    trained = [value for value in transformer.parameters() if value.requires_grad]
    assert sum(value.numel() for value in trained) == klein_lora_size(1, 1, width).trained * RANK
    rows, columns = GRID
    prompts = PromptBatch(
        torch.zeros(1, 0), torch.full((1, TEXT_TOKENS, config["joint_attention_dim"]), 0.1, dtype=torch.bfloat16)
    )
    noisy = torch.randn(1, rows * columns, config["in_channels"], generator=torch.Generator().manual_seed(0))

    class Pipeline:
        """As much of a pipeline as `predict` asks for."""

        _prepare_latent_ids = staticmethod(Flux2KleinPipeline._prepare_latent_ids)
        _prepare_text_ids = staticmethod(Flux2KleinPipeline._prepare_text_ids)

    pipeline = Pipeline()
    pipeline.transformer = transformer  # type: ignore[attr-defined]
    with torch.autocast("cpu", torch.bfloat16):
        velocity = FLUX_2_KLEIN.predict(pipeline, noisy.bfloat16(), torch.tensor([0.5]), prompts, 1.0, GRID)
    assert velocity.shape == noisy.shape
    velocity.float().square().mean().backward()
    assert all(value.grad is not None for value in trained)

    state = lora_state(transformer)
    file = tmp_path / "lora.safetensors"
    named = KEY_NAMES["flux2"].to_file(state, float(RANK), "sd-scripts")
    for stem, paths, n_in, n_out in NAMES:
        stem = f"lora_unet_{stem.replace('_3_', '_0_').replace('_19_', '_0_')}"
        rank = RANK * len(paths)  # one for each of the fused projections, side by side
        assert named[f"{stem}.lora_down.weight"].shape == (rank, n_in * width), stem
        assert named[f"{stem}.lora_up.weight"].shape == (n_out * width * len(paths), rank), stem
    assert len(named) == 3 * len(NAMES)
    save_lora(file, named, {})
    read = {key.removeprefix("transformer.") for key in Flux2LoraLoaderMixin.lora_state_dict(str(file))}
    assert read == set(state)
