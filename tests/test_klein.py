"""FLUX.2 klein behind the family's seam: a tiny one is encoded, trained, drawn, resumed, and its LoRA opens in diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image

from fluxcore.config import parse_config
from fluxcore.models.flux2 import FLUX_2_KLEIN
from fluxcore.training.lora_file import save_network
from fluxcore.training.network import add_network, continue_from, network_tensors
from fluxcore.training.states import lora_state
from tests.klein_files import make_klein
from tests.training_tools import events_of, lora_of, losses_of, new_run, same, some_pictures, train_here

SETTINGS = {
    "base_model": "tiny-klein", "resolution": 64, "mixed_precision": "no", "save_precision": "float", "network_dim": 4,
    "network_alpha": 2.0, "max_train_steps": 4, "sample_prompts": "red apple --s 3", "sample_every_n_steps": 4,
    "learning_rate": "3e-1",
}  # fmt: skip


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_klein(tmp_path_factory.mktemp("klein") / "klein")


@pytest.fixture
def models(klein: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "models.toml"
    file.write_text(f'[tiny-klein]\ntitle = "tiny"\nfamily = "flux2-klein"\npath = "{klein}"\ntokens = 32\n')
    monkeypatch.setenv("FLUXGYM_MODELS", str(file))


def test_pictures_and_prompts_are_encoded_as_the_pipeline_does(klein: Path) -> None:
    pipeline = Flux2KleinPipeline.from_pretrained(klein)
    image_side = FLUX_2_KLEIN.load_image_side(klein, torch.float32, torch.device("cpu"))
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    latents = FLUX_2_KLEIN.encode_pictures(image_side, pixels)
    with torch.no_grad():
        expected = pipeline._encode_vae_image(pixels, None)
        text = FLUX_2_KLEIN.load_text_side(klein, 32, torch.float32, torch.device("cpu")).encode("red apple")
        assert torch.equal(text.sequence, pipeline.encode_prompt("red apple", max_sequence_length=32)[0][0])
    assert torch.equal(latents, expected)
    assert FLUX_2_KLEIN.grid(latents) == (8, 12) and FLUX_2_KLEIN.pixel_multiple(image_side) == 4
    assert torch.equal(FLUX_2_KLEIN.pack(latents), Flux2KleinPipeline._pack_latents(latents))
    assert text.pooled.numel() == 0


def test_a_lora_is_trained_resumed_and_opened_by_diffusers(models: None, klein: Path, tmp_path: Path) -> None:
    whole = new_run(tmp_path, "whole", some_pictures, save_every_n_steps=2, **SETTINGS)
    training = train_here(whole)
    again = new_run(tmp_path, "again", some_pictures, **SETTINGS)
    train_here(again, stop_after=2)
    train_here(again, attempt=2, resume_from=again.step_state(2))
    assert losses_of(again) == losses_of(whole) and same(lora_of(again), lora_of(whole))

    pipeline = Flux2KleinPipeline.from_pretrained(klein)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(str(whole.path), weight_name="whole.safetensors")
    with_lora = _drawn(pipeline)
    last = events_of(whole, "sample.saved")[-1].data
    ours = np.asarray(Image.open(whole.path / last["path"]).convert("RGB"), dtype=int)
    assert np.abs(ours - with_lora).max() <= 2
    pipeline.unload_lora_weights()
    assert np.abs(ours - _drawn(pipeline)).max() > 2
    targets = {n for n, m in training.pipeline.transformer.named_modules() if hasattr(m, "lora_A")}
    assert len(targets) == 12 + 2 * 2


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [{"use_dora": True}, {"network_algo": "lokr", "network_alpha": 2.0}])
def test_a_dora_and_a_lokr_open_in_diffusers_and_are_continued(
    kind: dict[str, Any], klein: Path, tmp_path: Path
) -> None:
    config = parse_config({"network_dim": 4, **kind})
    whole = Flux2KleinPipeline.from_pretrained(klein)
    states = []
    for again in (False, True):
        model = FLUX_2_KLEIN.load_image_side(klein, torch.float32, torch.device("cpu")).transformer
        add_network(model, config, FLUX_2_KLEIN)
        if again:
            continue_from(model, tmp_path / "network.safetensors", config, FLUX_2_KLEIN)
        else:
            for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(7))
            tensors = network_tensors(lora_state(model), config, FLUX_2_KLEIN, torch.float32)
            save_network(tmp_path / "network.safetensors", tensors, {})
            whole.load_lora_weights(str(tmp_path), weight_name="network.safetensors")
            x = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
            for name in ("transformer_blocks.0.attn.to_q", "single_transformer_blocks.1.attn.to_qkv_mlp_proj"):
                ours, theirs = model.get_submodule(name), whole.transformer.get_submodule(name)
                assert torch.allclose(ours(x), theirs(x), atol=1e-5), name
                assert not torch.allclose(ours(x), ours.base_layer(x), atol=1e-3), name
        states.append(lora_state(model))
    assert all(torch.allclose(value, states[1][name], atol=1e-6) for name, value in states[0].items())


def _drawn(pipeline: Flux2KleinPipeline) -> np.ndarray:
    return np.asarray(
        pipeline(
            prompt="red apple", width=64, height=64, num_inference_steps=3, guidance_scale=1.0, max_sequence_length=32,
            generator=torch.Generator().manual_seed(42),
        ).images[0].convert("RGB"),
        dtype=int,
    )  # fmt: skip


def test_the_samplers_shift_goes_by_tokens_and_steps(klein: Path) -> None:
    image_side = FLUX_2_KLEIN.load_image_side(klein, torch.float32, torch.device("cpu"))
    # By hand from the two lines that Black Forest Labs fitted, for 10 and 200 steps, at 4096 tokens.
    ten, two_hundred = 8.73809524e-05 * 4096 + 1.89833333, 0.00016927 * 4096 + 0.45666666
    assert FLUX_2_KLEIN.sampling_mu(image_side, 4096, 10) == pytest.approx(ten)
    assert FLUX_2_KLEIN.sampling_mu(image_side, 4096, 200) == pytest.approx(two_hundred)
    assert FLUX_2_KLEIN.sampling_mu(image_side, 4096, 50) == pytest.approx(ten + (two_hundred - ten) * 40 / 190)
