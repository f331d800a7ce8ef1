"""FLUX.2 klein's LoRA under every program's names: diffusers' own reader takes them, and there and back is exact."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from diffusers.loaders import Flux2LoraLoaderMixin
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_flux2_lora_to_diffusers
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluxcore.models.lora_size import klein_lora_size
from fluxcore.training.lora_file import convert_lora, read_lora, save_lora
from fluxcore.training.lora_keys import KEY_NAMES, TO_FORMAT, LoraFormatError, to_peft, to_sd_scripts
from fluxcore.training.lora_names import FLUX_1, KLEIN, names_of

WIDTH, RANK = 16, 4
# Written out by hand: (sd-scripts' name, diffusers', in / width, out / width).
NAMES = [
    ("double_blocks_3_img_attn_qkv", [f"transformer_blocks.3.attn.to_{p}" for p in "qkv"], 1, 1),
    ("double_blocks_3_img_attn_proj", ["transformer_blocks.3.attn.to_out.0"], 1, 1),
    ("double_blocks_3_img_mlp_0", ["transformer_blocks.3.ff.linear_in"], 1, 6),
    ("double_blocks_3_img_mlp_2", ["transformer_blocks.3.ff.linear_out"], 3, 1),
    ("double_blocks_3_txt_attn_qkv", [f"transformer_blocks.3.attn.add_{p}_proj" for p in "qkv"], 1, 1),
    ("double_blocks_3_txt_attn_proj", ["transformer_blocks.3.attn.to_add_out"], 1, 1),
    ("double_blocks_3_txt_mlp_0", ["transformer_blocks.3.ff_context.linear_in"], 1, 6),
    ("double_blocks_3_txt_mlp_2", ["transformer_blocks.3.ff_context.linear_out"], 3, 1),
    ("single_blocks_19_linear1", ["single_transformer_blocks.19.attn.to_qkv_mlp_proj"], 1, 9),
    ("single_blocks_19_linear2", ["single_transformer_blocks.19.attn.to_out"], 4, 1),
]
OUTSIDE = [
    ("img_in", "x_embedder", "img_in"),
    ("time_in_in_layer", "time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    ("double_stream_modulation_img_lin", "double_stream_modulation_img.linear", "double_stream_modulation_img.lin"),
    ("single_stream_modulation_lin", "single_stream_modulation.linear", "single_stream_modulation.lin"),
    ("final_layer_linear", "proj_out", "final_layer.linear"),
]


def lora(dtype: torch.dtype = torch.float32, rank: int = RANK, wanted: str = "") -> dict[str, Tensor]:
    """As peft has one; values of few bits, so that sums are exact."""
    generator, state = torch.Generator().manual_seed(0), {}
    for _, paths, n_in, n_out in NAMES:
        for path in paths:
            if wanted in path:
                for part, shape in (("A", (rank, n_in * WIDTH)), ("B", (n_out * WIDTH, rank))):
                    values = torch.randint(-63, 64, shape, generator=generator) / 64
                    state[f"{path}.lora_{part}.weight"] = values.to(dtype)
    return state


def deltas(state: dict[str, Tensor], alphas: dict[str, float] | None = None) -> dict[str, Tensor]:
    """alpha / rank * up @ down, by diffusers' module."""
    found = {}
    for key, down in state.items():
        if key.endswith(".lora_A.weight"):
            path = key.removesuffix(".lora_A.weight").removeprefix("transformer.")
            up = state[key.replace("lora_A", "lora_B")].double()
            scale = (alphas or {}).get(path, down.shape[0]) / down.shape[0]
            found[path] = up @ down.double() * scale
    return found


def equal(ours: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return set(ours) == set(wanted) and all(torch.equal(ours[name], value) for name, value in wanted.items())


def wanted_deltas(state: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    return deltas(state, {key.removesuffix(".lora_A.weight"): alpha for key in state if ".lora_A." in key})


def test_every_module_has_its_name_in_every_program() -> None:
    state = lora()
    named = to_sd_scripts(state, 2.0)
    assert {key.partition(".")[0] for key in named} == {f"lora_unet_{name}" for name, *_ in NAMES}
    comfyui = TO_FORMAT["comfyui"](state, 2.0)
    assert "diffusion_model.double_blocks.3.txt_mlp.0.lora_up.weight" in comfyui
    assert "diffusion_model.single_blocks.19.linear1.alpha" in comfyui
    assert named["lora_unet_double_blocks_3_img_attn_qkv.lora_down.weight"].shape == (3 * RANK, WIDTH)
    size = klein_lora_size(1, 1, WIDTH)  # what the disk is asked for
    assert sum(value.numel() for key, value in named.items() if not key.endswith(".alpha")) == size.in_file * RANK
    assert (sum(value.numel() for value in state.values()), len(state) // 2) == (size.trained * RANK, size.layers)
    for sd, diffusers, comfy in OUTSIDE:
        assert KLEIN.from_sd_scripts[f"lora_unet_{sd}"] == (f"transformer.{diffusers}",)
        assert KLEIN.to_comfyui[f"lora_unet_{sd}"] == f"diffusion_model.{comfy}"


def test_it_is_told_from_flux_1s_by_names_and_shapes() -> None:
    state = lora()
    for form in TO_FORMAT:
        assert names_of(TO_FORMAT[form](state, 2.0)) is KLEIN, form
    for one in ("single_transformer_blocks", "ff.linear_in", "ff_context.linear_out"):
        assert names_of(to_sd_scripts(lora(wanted=one))) is KLEIN, one
        assert names_of(TO_FORMAT["comfyui"](lora(wanted=one))) is KLEIN, one
    both = to_sd_scripts(lora(wanted="transformer_blocks.3.attn"))
    assert names_of(both) is FLUX_1 and equal(to_sd_scripts(both, names=KLEIN), to_sd_scripts(both))
    flux1 = {"lora_unet_single_blocks_0_linear1": (1, 7), "lora_unet_double_blocks_0_img_mlp_0": (1, 4)}
    for name, (n_in, n_out) in flux1.items():
        tensors = {"lora_down.weight": torch.ones(2, n_in * WIDTH), "lora_up.weight": torch.ones(n_out * WIDTH, 2)}
        assert names_of({f"{name}.{part}": tensor for part, tensor in tensors.items()}) is FLUX_1


@pytest.mark.parametrize("form", ["sd-scripts", "diffusers"])
@pytest.mark.parametrize(("alpha", "dtype"), [(4.0, torch.bfloat16), (1.0, torch.bfloat16), (3.0, torch.float32)])
def test_diffusers_own_reader_makes_the_same_of_it(tmp_path: Path, form: str, alpha: float, dtype: torch.dtype) -> None:
    state = lora(dtype)
    save_lora(tmp_path / "lora.safetensors", KEY_NAMES["flux2"].to_file(state, alpha, form), {})  # type: ignore[arg-type]
    read = Flux2LoraLoaderMixin.lora_state_dict(str(tmp_path / "lora.safetensors"))
    assert all("lora" in key for key in read), "or its pipeline refuses the file"
    assert equal(deltas(read), wanted_deltas(state, alpha))


@pytest.mark.parametrize(("one", "other"), itertools.permutations(TO_FORMAT, 2))
def test_there_and_back_is_exact_between_any_two_forms(one: str, other: str) -> None:
    start = TO_FORMAT[one](lora(torch.bfloat16), 2.0)  # type: ignore[index]
    between = TO_FORMAT[other](start)  # type: ignore[index]
    assert equal(deltas(*to_peft(between)), wanted_deltas(lora(torch.bfloat16), 2.0))
    if "diffusers" not in (one, other) or one == "diffusers":
        assert equal(TO_FORMAT[one](between), start)  # type: ignore[index]


def test_the_scale_is_rounded_once_where_it_is_no_power_of_two() -> None:
    state = lora(torch.bfloat16, rank=3)
    ours, wanted = deltas(TO_FORMAT["diffusers"](state, 1.0)), wanted_deltas(state, 1.0)
    for name, value in wanted.items():
        assert (ours[name] - value).abs().max() <= 2**-8 * 3 / 3  # three products of at most 1, a third of each
    assert any(not torch.equal(ours[name], value) for name, value in wanted.items()), "the docs say so"


def test_ai_toolkits_file_is_read_as_diffusers_reads_it(tmp_path: Path) -> None:
    """`diffusion_model.…lora_A.weight` without alphas, one LoRA for q, k and v."""
    generator, theirs = torch.Generator().manual_seed(1), {}
    for name, n_in, n_out in (("double_blocks.0.img_attn.qkv", 1, 3), ("single_blocks.1.linear1", 1, 9)):
        theirs[f"diffusion_model.{name}.lora_A.weight"] = torch.randn(RANK, n_in * WIDTH, generator=generator)
        theirs[f"diffusion_model.{name}.lora_B.weight"] = torch.randn(n_out * WIDTH, RANK, generator=generator)
    save_file(theirs, tmp_path / "theirs.safetensors")
    assert convert_lora(tmp_path / "theirs.safetensors", tmp_path / "ours.safetensors", "diffusers") == "comfyui"
    assert equal(load_file(tmp_path / "ours.safetensors"), _convert_non_diffusers_flux2_lora_to_diffusers(dict(theirs)))


def test_a_file_is_converted_there_and_back_and_says_whose_it_is(tmp_path: Path) -> None:
    first, second, third = (tmp_path / f"{name}.safetensors" for name in ("first", "second", "third"))
    said = {"ss_base_model_version": "flux2", "modelspec.implementation": "diffusers", "modelspec.title": "x"}
    save_lora(first, KEY_NAMES["flux2"].to_file(lora(), 2.0, "diffusers"), said)
    assert convert_lora(first, second, "sd-scripts") == "diffusers"
    assert read_lora(second)[1]["modelspec.implementation"] == "https://github.com/black-forest-labs/flux2"
    assert convert_lora(second, third, "diffusers") == "sd-scripts"
    assert equal(load_file(third), load_file(first))
    # The double blocks' attention alone has FLUX.1's names: the file says that it is klein's, whose reader takes no alpha.
    both = lora(wanted="transformer_blocks.3.attn")
    save_lora(first, KEY_NAMES["flux2"].to_file(both, 2.0, "sd-scripts"), said)
    convert_lora(first, second, "diffusers")
    assert not any(key.endswith(".alpha") for key in load_file(second))
    assert equal(deltas(load_file(second)), wanted_deltas(both, 2.0))


def test_what_is_no_kleins_is_refused() -> None:
    stray = {"lora_unet_double_blocks_0_img_mod_lin.lora_down.weight": torch.ones(1, WIDTH)}
    with pytest.raises(LoraFormatError, match="1 of 31 tensors belong to no FLUX.2 klein LoRA"):
        to_peft({**to_sd_scripts(lora(), 2.0), **stray})
