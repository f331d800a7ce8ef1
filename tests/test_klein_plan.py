"""The planner on FLUX.2 klein: its counts against closed forms and published sizes, a tiny one against a real step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fluxcore.config import resolve_config
from fluxcore.models.lora_size import KLEIN_4B, KLEIN_9B, caption_values, klein_lora_size, lora_size
from fluxcore.models.registry import BaseModel, find_model
from fluxcore.planner.plan import advice, make_plan
from fluxcore.planner.request import request_of
from fluxcore.planner.shapes import PlanError, model_files

GIB = 2**30
# What `python -m fluxcore.planner.measure` says at 512 pixels, rank 4, with gradient checkpointing: 4B in bf16 and fp8,
# 9B in fp8.
COMMON = {
    "vae_bytes": 336185492, "encode_bytes": 671088640, "encode_reserve": [0, 0], "decode_bytes": 805830656,
    "decode_reserve": [0, 0], "train_reserve": [0, 0], "sample_reserve": [0, 0],
}  # fmt: skip
BF16_4B: dict[str, Any] = {
    "parameters": 3875544576, "base_bytes": 7751089152, "double_bytes": 490734592, "single_bytes": 245367296,
    "largest_bytes": 169869312, "lora_parameters": 6021120, "lora_edges": 1506080, "train_bytes": 634937352,
    "kept_bytes": 250978308, "step_flops": 31527217397760, "sample_bytes": 291053570, "text_bytes": 8044936704,
    "text_peak_bytes": 252575744, **COMMON,
}  # fmt: skip
FP8_9B: dict[str, Any] = {
    "parameters": 9078581248, "base_bytes": 9439825920, "double_bytes": 436569088, "single_bytes": 218268160,
    "largest_bytes": 151142400, "lora_parameters": 10878976, "lora_edges": 2720896, "train_bytes": 2090741768,
    "kept_bytes": 421928964, "step_flops": 69891384147968, "sample_bytes": 1569488898, "text_bytes": 16381471232,
    "text_peak_bytes": 310771712, **COMMON,
}  # fmt: skip


def klein_parameters(width: int, doubles: int, singles: int, text: int) -> int:
    """Of a klein transformer by hand: no biases, no guidance, one modulation for all blocks, norms of queries and keys."""
    head, channels, hidden = 128, 128, 3 * width
    double = 2 * (4 * width * width + width * 2 * hidden + hidden * width + 2 * head)
    single = width * (3 * width + 2 * hidden) + (width + hidden) * width + 2 * head
    around = 256 * width + width * width + (text + channels) * width + width * channels
    around += width * (6 + 6 + 3 + 2) * width
    return doubles * double + singles * single + around


def test_the_counts_are_the_closed_forms_and_the_published_files_sizes() -> None:
    import torch

    from fluxcore.planner.measure import build_transformer

    for name, shape, found in (
        ("flux2-klein-base-4b", (3072, 5, 20, 7680), BF16_4B), ("flux2-klein-9b", (4096, 8, 24, 12288), FP8_9B),
    ):  # fmt: skip
        config = model_files(find_model(name))["transformer"]
        width, doubles, singles, text = shape
        assert (config["num_layers"], config["num_single_layers"]) == (doubles, singles)
        assert klein_parameters(*shape) == found["parameters"]
        model = build_transformer(config | {"num_layers": 1, "num_single_layers": 1}, torch.bfloat16)
        assert sum(parameter.numel() for parameter in model.parameters()) == klein_parameters(width, 1, 1, text)
    # ComfyUI's users see 7.22 GiB of flux-2-klein-4b.safetensors and 7.49 GiB of qwen_3_4b.safetensors, both bf16.
    assert BF16_4B["base_bytes"] / GIB == pytest.approx(7.22, abs=0.005)
    assert BF16_4B["text_bytes"] / GIB == pytest.approx(7.49, abs=0.005)
    for size, found in ((KLEIN_4B, BF16_4B), (KLEIN_9B, FP8_9B)):
        assert size.trained * 4 == found["lora_parameters"]


def tiny_request(**changes: Any) -> dict[str, Any]:
    files = model_files(find_model("flux2-klein-4b"))
    transformer = files["transformer"] | {
        "attention_head_dim": 16, "axes_dims_rope": [4] * 4, "in_channels": 16, "joint_attention_dim": 48,
        "num_attention_heads": 2, "num_layers": 2, "num_single_layers": 4, "timestep_guidance_channels": 32,
    }  # fmt: skip
    request = {
        **files, "transformer": transformer, "precision": "bf16", "held": "none", "rank": 4, "checkpointing": False,
        "batch": 2, "tokens": 32, "size": [128, 128], "sample_size": [64, 64],
    }  # fmt: skip
    return request | changes


def test_a_tiny_ones_step_is_composed_as_it_is_and_takes_what_a_real_one_does() -> None:
    import torch
    from diffusers import Flux2Transformer2DModel

    from fluxcore.models.frozen import train_in_32_bit
    from fluxcore.planner import measure

    few = r".*\.attn\.(to_q|to_qkv_mlp_proj)"  # of the layers, for the test's time
    request = tiny_request(targets=few)
    composed = measure.transformer_in_fakes(request)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with measure._default(torch.bfloat16):
            model = Flux2Transformer2DModel.from_config(request["transformer"]).requires_grad_(False)
        measure.add_lora(model, 4, few)
        for module in model.modules():  # the LoRA of add_lora is on the meta device
            for name, value in module.named_parameters(recurse=False):
                if value.is_meta:
                    setattr(module, name, torch.nn.Parameter(torch.zeros(value.shape)))
        for parameter in train_in_32_bit(model, torch.bfloat16, measure.CPU):
            parameter.grad = torch.zeros_like(parameter)
        model.train()
        live, kept = measure.run_step(model, torch.bfloat16, 2, (128, 128), 32, 8)
    assert composed["train_bytes"] == pytest.approx(live.peak, rel=0.02)
    assert (composed["kept_bytes"], composed["step_flops"]) == (pytest.approx(kept, rel=0.02), live.flops)
    assert composed["parameters"] == sum(value.numel() for value in model.parameters() if not value.requires_grad)


def test_the_layers_with_a_lora_are_the_trainers() -> None:
    import torch

    from fluxcore.planner import measure

    model = measure.build_transformer(tiny_request()["transformer"], torch.bfloat16)
    measure.add_trained(model, {"network_dim": 4})
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert trained == klein_lora_size(2, 4, 32).trained * 4


def test_a_tiny_text_encoder_is_counted_with_the_layers_that_it_keeps() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from fluxcore.planner import measure

    text = model_files(find_model("flux2-klein-4b"))["text_encoder"] | {
        "vocab_size": 100, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1,
        "head_dim": 8,
    }  # fmt: skip
    with FakeTensorMode(allow_non_fake_inputs=True):
        found = measure._qwen3(tiny_request(text_encoder=text, tokens=64))
    layer = 16 * 16 + 2 * 8 * 16 + 16 * 16 + 3 * 16 * 32 + 2 * 8 + 2 * 16  # q, k and v, out; MLP; norms
    assert found["text_bytes"] == pytest.approx(2 * (100 * 16 + 36 * layer + 16), rel=0.01)
    assert found["text_peak_bytes"] > 36 * 64 * 16 * 2 + 3 * 64 * 16 * 2


@pytest.mark.parametrize("vram", ["8G", "12G", "16G", "20G", "24G"])
def test_each_preset_holds_both_sizes(vram: str) -> None:
    """All of them hold the base in fp8."""
    fp8_4b = BF16_4B | {
        "base_bytes": 4074396672, "double_bytes": 245638144, "single_bytes": 122806784, "largest_bytes": 85045248,
        "train_bytes": 1219342344,
    }  # fmt: skip
    size = int(vram[:-1]) * GIB
    for name, found in (("flux2-klein-base-4b", fp8_4b), ("flux2-klein-base-9b", FP8_9B)):
        config = resolve_config({"base_model": name, "vram": vram})
        made = make_plan(config, 20, found)
        assert made.fits(int(0.93 * size)), (name, made.peak)
        assert config.encode_on_cpu or made.phases[0].name == "captions"
        assert config.timestep_sampling == "flux_shift"
        if name.endswith("4b"):
            assert config.blocks_to_swap == 0
    if vram in ("12G", "16G"):  # 15 GiB of Qwen3-8B don't fit, and the plan would say so
        config = resolve_config({"base_model": "flux2-klein-9b", "vram": vram, "encode_on_cpu": False})
        made = make_plan(config, 20, FP8_9B)
        assert made.peak.name == "captions" and advice(config, made, size) == ({"encode_on_cpu": True}, True)


def test_advice_swaps_as_many_blocks_as_there_are() -> None:
    config = resolve_config(
        {"base_model": "flux2-klein-4b", "vram": "48G", "encode_on_cpu": True, "gradient_checkpointing_interval": 1}
    )
    made = make_plan(config, 20, BF16_4B)
    changes, enough = advice(config, made, 3 * GIB)
    assert changes == {"fp8_base": True, "blocks_to_swap": 12} and enough
    assert advice(config, made, 1 * GIB)[0]["blocks_to_swap"] == 20, "there are no more"
    swapped = make_plan(resolve_config(config.model_dump() | {"blocks_to_swap": 20}), 20, BF16_4B)
    assert swapped.swapped_bytes == 5 * BF16_4B["double_bytes"] + 20 * BF16_4B["single_bytes"]


def test_the_lists_entries_say_what_a_folder_of_the_same_says(tmp_path: Path) -> None:
    for name, heads, distilled in (("base-4b", 24, False), ("4b", 24, True), ("base-9b", 32, False), ("9b", 32, True)):
        folder = tmp_path / name
        (folder / "transformer").mkdir(parents=True)
        index = {"_class_name": "Flux2KleinPipeline", "is_distilled": distilled}
        (folder / "model_index.json").write_text(json.dumps(index))
        values = {"num_attention_heads": heads, "attention_head_dim": 128, "guidance_embeds": False}
        (folder / "transformer" / "config.json").write_text(json.dumps(values))
        found, listed = find_model(str(folder)), find_model(f"flux2-klein-{name}")
        for what in ("family", "tokens", "sample_steps", "defaults", "presets"):
            assert getattr(found, what) == getattr(listed, what), (name, what)


def test_a_klein_folder_is_read_itself_and_sizes_go_by_names(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    values = {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(values | {"joint_attention_dim": 48}))
    folder = BaseModel("mine", "mine", family="flux2-klein", path=tmp_path, tokens=32)
    assert lora_size(folder) == klein_lora_size(1, 2, 32) and caption_values(folder) == 32 * 48
    with pytest.raises(PlanError, match="config.json"):
        model_files(folder)
    assert caption_values(find_model("flux2-klein-9b")) == 512 * 12288
    files = {"pretrained_model_name_or_path": "/m/flux-2-klein-base-9b-fp8.safetensors"}
    assert lora_size(BaseModel("mine", "mine", family="flux2-klein", files=files)) == KLEIN_9B
    assert "text_encoder_2" not in request_of(resolve_config({"base_model": "flux2-klein-4b"}))
