"""LoRA files for readers that take no `.alpha`: the same picture by each way of loading, and exact on the way back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_lora_file import ATTENTION, EVERYWHERE, add_random_lora, picture, pipeline, read_header, tiny_transformer
from torch import Tensor

from fluxcore.training.adapter_metadata import CONFIG, IN_UPS, scale_in_ups, with_alphas
from fluxcore.training.lora_file import convert_lora, read_lora, save_lora
from fluxcore.training.lora_keys import LoraFormatError, to_diffusers, to_sd_scripts

torch.set_num_threads(1)
HALF, BRAIN, SINGLE = torch.float16, torch.bfloat16, torch.float32


def said(file: Path) -> dict[str, str]:
    """A file's metadata."""
    return read_header(file)["__metadata__"]


def drawn(file: Path, by: str) -> Tensor:
    """What the tiny transformer makes with a file in peft's names, read by diffusers or by peft alone."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    transformer = tiny_transformer()
    if by == "path":
        transformer.load_lora_adapter(str(file), prefix=None)
    elif by == "name":
        transformer.load_lora_adapter(str(file.parent), weight_name=file.name, prefix=None)
    else:
        config = LoraConfig(**json.loads(said(file)[CONFIG]))
        inject_adapter_in_model(config, transformer)
        found = set_peft_model_state_dict(transformer, load_file(file))
        assert not found.unexpected_keys
        assert not [key for key in found.missing_keys if ".lora_" in key], "no module beside those of the file"
    return picture(transformer)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether they are equal to the bit, dtypes and all."""
    return set(one) == set(other) and all(one[k].dtype == other[k].dtype and torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize(
    ("targets", "rank", "alpha", "dtype", "written"),
    [
        (ATTENTION, 4, 8.0, SINGLE, SINGLE),
        (EVERYWHERE, 4, 1.0, SINGLE, SINGLE),
        (EVERYWHERE, 4, 1.0, BRAIN, BRAIN),
        (EVERYWHERE, 4, 1.0, HALF, SINGLE),  # its smallest numbers have no quarter
        (EVERYWHERE, 3, 1.0, BRAIN, SINGLE),
        (EVERYWHERE, 3, 3.0, HALF, HALF),
        (["to_v", "proj_mlp", "proj_out"], 16, 24.0, HALF, SINGLE),
    ],
)
def test_each_way_of_loading_draws_what_was_trained_and_the_way_back_is_exact(
    tmp_path: Path, targets: list[str], rank: int, alpha: float, dtype: torch.dtype, written: torch.dtype
) -> None:
    trained = tiny_transformer()
    settings: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "target_modules": targets}
    state = add_random_lora(trained, **settings)
    for tensor in state.values():  # small ones among them, as in any trained LoRA
        tensor.copy_((tensor * torch.logspace(0, -4, tensor.numel()).view(tensor.shape)).to(dtype))
    expected = picture(trained)
    first, peft, again = (tmp_path / f"{name}.safetensors" for name in ("first", "peft", "again"))
    save_lora(first, {k: t.to(dtype) for k, t in to_sd_scripts(state, alpha).items()}, {"ss_seed": "1"})
    convert_lora(first, peft, "peft")
    for by in ("path", "name", "peft"):
        torch.testing.assert_close(drawn(peft, by), expected, rtol=1e-6, atol=1e-6)
    assert (expected - picture(tiny_transformer())).abs().max() > 1e-3
    assert {(key.rpartition(".")[2], tensor.dtype) for key, tensor in load_file(peft).items()} == {("weight", written)}
    convert_lora(peft, again, "sd-scripts")
    assert same(load_file(again), load_file(first)) and said(again) == {**said(first), "format": "pt"}
    convert_lora(peft, tmp_path / "copy.safetensors", "peft")
    assert (tmp_path / "copy.safetensors").read_bytes() == peft.read_bytes()


def test_weights_in_32_bit_are_rounded_once_where_the_scale_is_no_power_of_two(tmp_path: Path) -> None:
    trained = tiny_transformer()
    state = add_random_lora(trained, r=3, lora_alpha=1.0, target_modules=ATTENTION)
    first, peft, again = (tmp_path / f"{name}.safetensors" for name in ("first", "peft", "again"))
    save_lora(first, to_sd_scripts(state, 1.0), {})
    convert_lora(first, peft, "peft")
    for by in ("path", "name", "peft"):
        torch.testing.assert_close(drawn(peft, by), picture(trained), rtol=1e-6, atol=1e-6)
    convert_lora(peft, again, "sd-scripts")
    before, after = load_file(first), load_file(again)
    assert set(before) == set(after)
    assert all(torch.equal(before[k], after[k]) for k in before if "up" not in k)
    assert all(((before[k] - after[k]).abs() <= before[k].abs() * 2**-23).all() for k in before)


def mixed(dtype: torch.dtype) -> tuple[Any, dict[str, Tensor], dict[str, float]]:
    """A trained transformer with several ranks and alphas, its LoRA by peft's names, and its alphas."""
    trained = tiny_transformer()
    ranks, alphas = {"^proj_out": 2, "attn.to_q": 8}, {"^proj_out": 3.0, "attn.to_q": 2.0, "ff.net.2": 5.0}
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 1.0, "rank_pattern": ranks, "alpha_pattern": alphas}
    state = add_random_lora(trained, **settings, target_modules=[*ATTENTION, "ff.net.2", "proj_out"])
    for tensor in state.values():
        tensor.copy_(tensor.to(dtype))
    paths = [key.removesuffix(".lora_A.weight") for key in state if ".lora_A." in key]
    of = {"proj_out": 3.0, "ff.net.2": 5.0, "to_q": 2.0}
    given = {
        p: next((of[end] for end in of if p == end or (p.endswith(f".{end}") and end != "proj_out")), 1.0)
        for p in paths
    }
    return trained, {key: tensor.to(dtype) for key, tensor in state.items()}, given


def test_modules_of_several_ranks_and_alphas(tmp_path: Path) -> None:
    trained, state, alphas = mixed(BRAIN)
    single = {p: a for p, a in alphas.items() if not (p.startswith("single_") and p.endswith(".proj_out"))}
    before = {**state, **{f"{p}.alpha": torch.tensor(a) for p, a in alphas.items()}}
    matrices, noted = scale_in_ups(before)
    assert single["proj_out"] == 3.0 and set(matrices) == set(state)
    source, peft = tmp_path / "source.safetensors", tmp_path / "peft.safetensors"
    save_file(before, source)  # our own peft file of before: with alphas
    convert_lora(source, peft, "peft")
    assert same(load_file(peft), matrices) and said(peft)[IN_UPS] == noted[IN_UPS]
    for by in ("path", "name", "peft"):
        torch.testing.assert_close(drawn(peft, by), picture(trained), rtol=1e-6, atol=1e-6)
    assert same(read_lora(peft)[0], before)


def one(dtype: torch.dtype = SINGLE, up: float = 1.0, alpha: float = 2.0) -> dict[str, Tensor]:
    """A LoRA of one module, rank 4."""
    return {
        "proj_out.lora_A.weight": torch.ones(4, 8, dtype=dtype),
        "proj_out.lora_B.weight": torch.full((4, 4), up, dtype=dtype),
        "proj_out.alpha": torch.tensor(alpha),
    }


@pytest.mark.parametrize(
    ("dtype", "up", "alpha", "written"),
    [
        (HALF, 2.0**-24, 2.0, SINGLE),  # half the smallest number
        (HALF, 60000.0, 16.0, SINGLE),  # four times the largest
        (HALF, 2.0**-24, 8.0, HALF),
        (HALF, 0.1, 49.0, SINGLE),
        (BRAIN, 0.1, 1.0, BRAIN),
        (BRAIN, 0.1, 1.5, SINGLE),
        (BRAIN, 0.1, 0.3, SINGLE),
        (SINGLE, 0.1, -2.0, SINGLE),
        (SINGLE, 0.1, 4.0, SINGLE),
        (torch.float64, 0.1, 1.0, torch.float64),
    ],
)
def test_the_scale_goes_into_the_ups_and_out_again(
    dtype: torch.dtype, up: float, alpha: float, written: torch.dtype
) -> None:
    before = one(dtype, up, alpha)
    matrices, noted = scale_in_ups(before)
    expected = before["proj_out.lora_B.weight"].double() * before["proj_out.alpha"].double() / 4
    torch.testing.assert_close(matrices["proj_out.lora_B.weight"].double(), expected, rtol=2**-24, atol=0)
    assert {tensor.dtype for tensor in matrices.values()} == {written} and (IN_UPS in noted) is (alpha != 4)
    back = with_alphas(matrices, None, noted.get(IN_UPS))
    assert same(back, before if alpha != 4 else {k: t for k, t in before.items() if "alpha" not in k})


@pytest.mark.parametrize("rank", [1, 3, 4, 8, 96])
def test_no_pair_of_alpha_and_rank_is_lost(rank: int) -> None:
    ups = torch.randn(6, rank, generator=torch.Generator().manual_seed(rank)).bfloat16()
    for alpha in (*range(1, 130, 3), 0.3):
        before = {"x_embedder.lora_A.weight": torch.ones(rank, 4).bfloat16(), "x_embedder.lora_B.weight": ups}
        before["x_embedder.alpha"] = torch.tensor(float(alpha), dtype=torch.float64)
        matrices, noted = scale_in_ups(before)
        back = with_alphas(matrices, None, noted.get(IN_UPS))
        assert torch.equal(back["x_embedder.lora_B.weight"], ups), alpha
        assert back.get("x_embedder.alpha", torch.tensor(rank)).item() == alpha


def test_of_several_dtypes_each_module_says_what_it_adds() -> None:
    of_32 = {key.replace("proj_out", "x_embedder"): t for key, t in one(SINGLE, 0.1, 1.5).items()}
    for dtype in (HALF, BRAIN):
        before = {**one(dtype, 0.1, 1.5), **of_32}
        matrices, noted = scale_in_ups(before)
        back = with_alphas(matrices, None, noted[IN_UPS])
        assert same({k: t for k, t in back.items() if "proj_out" in k}, one(dtype, 0.1, 1.5))
        assert torch.equal(
            back["x_embedder.lora_B.weight"] * back.get("x_embedder.alpha", torch.tensor(4.0)) / 4,
            of_32["x_embedder.lora_B.weight"] * 1.5 / 4,
        )


@pytest.mark.parametrize("alpha", [0.0, 5e-324, 1e-40, -1e40])
def test_an_alpha_that_weights_cannot_take_is_refused(alpha: float) -> None:
    tensors = {**one(), "proj_out.alpha": torch.tensor(alpha, dtype=torch.float64)}
    with pytest.raises(
        LoraFormatError, match="proj_out has alpha .* over rank 4, which weights can't be multiplied by"
    ):
        scale_in_ups(tensors)
    matrices = {key: tensor for key, tensor in tensors.items() if "alpha" not in key}
    assert same(with_alphas(matrices, None, f'{{"alpha": {alpha}}}'), matrices)


@pytest.mark.parametrize(
    "noted",
    [
        "{", "[" * 100_000, "null", '{"alpha": "2"}', '{"alpha": 0}', '{"alpha": NaN}', '{"alpha": {"other": 2.0}}',
        '{"alpha": true}', "[2]", '{"alpha": 2, "dtype": "int8"}',
    ],
)  # fmt: skip
def test_a_note_that_says_nothing_leaves_the_scale_in_the_ups(noted: str) -> None:
    matrices, _ = scale_in_ups(one())
    assert same(with_alphas(matrices, None, noted), matrices)


def test_what_another_program_changed_since_is_what_the_file_adds() -> None:
    matrices, noted = scale_in_ups(one(BRAIN, 0.1, alpha=3.0))
    ups = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))  # not what 16 bits times 3 / 4 give
    changed = {**matrices, "proj_out.lora_B.weight": ups}
    assert same(with_alphas(changed, None, noted[IN_UPS]), changed)
    downs = {**matrices, "proj_out.lora_A.weight": torch.rand(4, 8, generator=torch.Generator().manual_seed(0))}
    assert same(with_alphas(downs, None, noted[IN_UPS]), downs)
    rewritten = with_alphas(matrices, '{"lora_alpha": 1.0}', noted[IN_UPS])
    assert same(rewritten, {**matrices, "proj_out.alpha": torch.tensor(1.0)})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[" * 100_000, "its lora_adapter_metadata is no JSON object"),
        ('{"lora_alpha": 1' + "0" * 400 + "}", "gives no alpha for proj_out"),
        ('{"lora_alpha": 1' + "0" * 5000 + "}", "its lora_adapter_metadata is no JSON object"),
        ('{"r": 16, "lora_alpha": 32}', "another LoRA's: proj_out has rank 4 here and 16 there"),
        ('{"r": 4, "lora_alpha": 2, "rank_pattern": {"^proj_out": 3}}', "has rank 4 here and 3 there"),
    ],
)
def test_a_configuration_that_is_none_or_another_loras(tmp_path: Path, config: str, message: str) -> None:
    save_file({k: t for k, t in one().items() if "alpha" not in k}, tmp_path / "a.safetensors", {CONFIG: config})
    with pytest.raises(LoraFormatError, match=f"a.safetensors: .*{message}"):
        read_lora(tmp_path / "a.safetensors")


def test_a_configuration_without_an_alpha_has_pefts_default(tmp_path: Path) -> None:
    matrices = {k: t for k, t in one().items() if "alpha" not in k}
    assert with_alphas(matrices, '{"r": 4}', None)["proj_out.alpha"].item() == 8
    patterns = '{"lora_alpha": 2, "alpha_pattern": {"out": 3, "^proj_out": 5}}'
    assert with_alphas(matrices, patterns, None)["proj_out.alpha"].item() == 5, "out is no whole part of its name"


def test_what_a_configuration_of_the_transformer_does_not_say_of_clip(tmp_path: Path) -> None:
    name = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    clip = {f"{name}.lora_A.weight": torch.ones(4, 8), f"{name}.lora_B.weight": torch.ones(8, 4)}
    config = '{"transformer.lora_alpha": 2, "text_encoder.lora_alpha": 3}'
    assert with_alphas(clip, config, None)[f"{name}.alpha"].item() == 3
    assert with_alphas(clip, '{"transformer.lora_alpha": 2}', None)[f"{name}.alpha"].item() == 4


def test_a_configuration_left_in_sd_scripts_file_counts_for_nothing(tmp_path: Path) -> None:
    tensors = to_sd_scripts(one())
    save_file(tensors, tmp_path / "a.safetensors", {CONFIG: '{"lora_alpha": 7}', IN_UPS: '{"alpha": 7}'})
    read, metadata = read_lora(tmp_path / "a.safetensors")
    assert same(read, tensors) and metadata == {}


def test_what_a_peft_model_saved_is_read_with_the_configuration_beside_it(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    settings: dict[str, Any] = {"r": 3, "lora_alpha": 2, "target_modules": ATTENTION, "alpha_pattern": {"to_out.0": 5}}
    model = get_peft_model(tiny_transformer(), LoraConfig(init_lora_weights=False, **settings))  # type: ignore[arg-type]
    expected = picture(model)
    model.save_pretrained(str(tmp_path / "theirs"))
    theirs, ours = tmp_path / "theirs" / "adapter_model.safetensors", tmp_path / "ours.safetensors"
    config = tmp_path / "theirs" / "adapter_config.json"
    config.write_text(config.read_text(), encoding="utf-8-sig")  # as Windows' editor saves it
    assert convert_lora(theirs, ours, "diffusers") == "peft"
    pipe = pipeline()
    pipe.load_lora_weights(str(ours))
    torch.testing.assert_close(picture(pipe.transformer), expected, rtol=1e-6, atol=1e-6)
    convert_lora(theirs, ours, "peft")
    torch.testing.assert_close(drawn(ours, "path"), expected, rtol=1e-6, atol=1e-6)

    for broken in ("", "{", "[]"):
        config.write_text(broken)
        with pytest.raises(
            LoraFormatError, match=r"adapter_model.safetensors: its adapter_config.json is no JSON object"
        ):
            convert_lora(theirs, ours, "diffusers")
    for make_unreadable in (lambda: config.write_bytes(b"\xff\xfe\xff"), config.unlink, config.mkdir):
        make_unreadable()
        with pytest.raises(LoraFormatError, match="adapter_config.json, which can't be read. Put it beside it"):
            convert_lora(theirs, ours, "diffusers")
    named = {f"base_model.model.{key}": tensor for key, tensor in to_diffusers(one()).items()}
    save_file({k.replace("transformer.", ""): t for k, t in named.items()}, theirs)
    assert same(read_lora(theirs)[0], one()), "its alphas are in it: no configuration is asked for"


@pytest.mark.parametrize(("rank", "alphas"), [(4, (1.0, 1.0)), (3, (1.0, 1.0)), (4, (1.0, 24.0))])
def test_kleins_scale_is_in_the_ups_under_diffusers_names_too(
    tmp_path: Path, rank: int, alphas: tuple[float, float]
) -> None:
    from diffusers.loaders import Flux2LoraLoaderMixin

    generator, state = torch.Generator().manual_seed(0), dict[str, Tensor]()
    shapes = {"single_transformer_blocks.1.attn.to_out": (64, 16), "transformer_blocks.0.ff.linear_in": (16, 96)}
    scales = {path: alpha / rank for path, alpha in zip(shapes, alphas, strict=True)}
    for path, (n_in, n_out) in shapes.items():
        state[f"{path}.lora_A.weight"] = torch.randn(rank, n_in, generator=generator).bfloat16()
        state[f"{path}.lora_B.weight"] = torch.randn(n_out, rank, generator=generator).bfloat16()
    first, between, again = (tmp_path / f"{name}.safetensors" for name in ("first", "between", "again"))
    save_lora(first, to_sd_scripts(state, dict(zip(shapes, alphas, strict=True))), {})
    convert_lora(first, between, "diffusers")
    read = Flux2LoraLoaderMixin.lora_state_dict(str(between))
    for path, scale in scales.items():
        wanted = state[f"{path}.lora_B.weight"].double() * scale
        torch.testing.assert_close(read[f"transformer.{path}.lora_B.weight"].double(), wanted, rtol=2**-24, atol=0)
    assert CONFIG not in said(between)
    convert_lora(between, again, "sd-scripts")
    assert same(load_file(again), load_file(first))
