"""LoRA files for readers that take no `.alpha`: the same picture by each way of loading, and exact on the way back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_lora_file import ATTENTION, EVERYWHERE, add_random_lora, picture, pipeline, read_header, tiny_transformer
from torch import Tensor

from fluxcore.training.adapter_metadata import CONFIG, IN_UPS, with_alphas, without_alphas
from fluxcore.training.lora_file import convert_lora, read_lora, save_lora
from fluxcore.training.lora_keys import LoraFormatError, to_sd_scripts
from tests.cli_tools import call

torch.set_num_threads(1)


def said(file: Path) -> dict[str, str]:
    """A file's metadata."""
    return read_header(file)["__metadata__"]


def drawn(file: Path, *, by: str) -> Tensor:
    """What the tiny transformer makes with the file, read by diffusers or by peft alone."""
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    transformer = tiny_transformer()
    if by == "path":
        transformer.load_lora_adapter(str(file), prefix=None)
    elif by == "name":
        transformer.load_lora_adapter(str(file.parent), weight_name=file.name, prefix=None)
    else:
        inject_adapter_in_model(LoraConfig(**json.loads(said(file)[CONFIG])), transformer)
        assert not set_peft_model_state_dict(transformer, load_file(file)).unexpected_keys
    return picture(transformer)


def converted(folder: Path, state: dict[str, Tensor], alpha: float | dict[str, float]) -> tuple[Path, list[str]]:
    """The LoRA in sd-scripts' form, converted to peft's names and back, exactly; the file and what convert noted."""
    first, peft, again = (folder / f"{name}.safetensors" for name in ("first", "peft", "again"))
    notes: list[str] = []
    save_lora(first, to_sd_scripts(state, alpha), {"ss_seed": "1"})
    convert_lora(first, peft, "peft", notes.append)
    convert_lora(peft, again, "sd-scripts", notes.append)
    assert not any(key.endswith(".alpha") for key in load_file(peft)), "peft's files have none"
    before, after = load_file(first), load_file(again)
    assert set(before) == set(after)
    assert all(torch.equal(before[k], after[k]) and before[k].dtype == after[k].dtype for k in before)
    assert said(again) == {**said(first), "format": "pt"}
    return peft, notes


@pytest.mark.parametrize(
    ("targets", "rank", "alpha"),
    [(ATTENTION, 4, 8.0), (EVERYWHERE, 4, 1.0), (EVERYWHERE, 3, 3.0), (["to_v", "proj_mlp"], 3, 1.5)],
)
def test_each_way_of_loading_peft_s_names_draws_what_was_trained(
    tmp_path: Path, targets: list[str], rank: int, alpha: float
) -> None:
    trained = tiny_transformer()
    state = add_random_lora(trained, r=rank, lora_alpha=alpha, target_modules=targets)
    peft, notes = converted(tmp_path, state, alpha)
    assert notes == []
    for by in ("path", "name", "peft"):
        torch.testing.assert_close(drawn(peft, by=by), picture(trained), rtol=1e-6, atol=1e-6)
    assert (picture(trained) - picture(tiny_transformer())).abs().max() > 1e-3


def test_what_a_peft_model_saved_is_read_with_the_configuration_beside_it(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    settings = {"r": 3, "lora_alpha": 2, "target_modules": ATTENTION, "alpha_pattern": {"to_out.0": 5}}
    model = get_peft_model(tiny_transformer(), LoraConfig(init_lora_weights=False, **settings))  # type: ignore[arg-type]
    expected = picture(model)
    model.save_pretrained(str(tmp_path / "theirs"))
    theirs, ours = tmp_path / "theirs" / "adapter_model.safetensors", tmp_path / "ours.safetensors"
    assert convert_lora(theirs, ours, "diffusers") == "peft"
    pipe = pipeline()
    pipe.load_lora_weights(str(ours))
    torch.testing.assert_close(picture(pipe.transformer), expected, rtol=1e-6, atol=1e-6)
    convert_lora(theirs, ours, "peft")
    torch.testing.assert_close(drawn(ours, by="name"), expected, rtol=1e-6, atol=1e-6)
    (tmp_path / "theirs" / "adapter_config.json").unlink()
    with pytest.raises(LoraFormatError, match="adapter_config.json, which can't be read. Put it beside it"):
        convert_lora(theirs, ours, "diffusers")


@pytest.mark.parametrize(
    "patterns", [{}, {"alpha_pattern": {"to_out.0": 2.0, "ff.net.2": 7.0}, "rank_pattern": {"to_out.0": 5}}]
)
def test_a_scale_that_would_be_rounded_is_in_the_metadata_instead(tmp_path: Path, patterns: dict) -> None:
    trained = tiny_transformer()
    settings = {"r": 3, "lora_alpha": 1.0, "target_modules": [*ATTENTION, "ff.net.2", "proj_out"], **patterns}
    state = add_random_lora(trained, **settings)
    paths = {key.removesuffix(".lora_A.weight") for key in state if ".lora_A." in key}
    of = settings.get("alpha_pattern", {})
    peft, notes = converted(tmp_path, state, {p: next((of[e] for e in of if p.endswith(e)), 1.0) for p in paths})
    assert len(notes) == 1 and "load_lora_adapter(FOLDER, weight_name=FILE, prefix=None)" in notes[0]
    for by in ("name", "peft"):
        torch.testing.assert_close(drawn(peft, by=by), picture(trained), rtol=1e-6, atol=1e-6)
    assert IN_UPS not in said(peft) and all(torch.equal(load_file(peft)[key], state[key]) for key in state)


def test_modules_of_several_ranks_and_alphas(tmp_path: Path) -> None:
    trained = tiny_transformer()
    ranks, alphas = {"^proj_out": 2, "attn.to_q": 8}, {"^proj_out": 2.0, "attn.to_q": 2.0, "ff.net.2": 16.0}
    targets = [*ATTENTION, "ff.net.2", "proj_out"]
    state = add_random_lora(
        trained, r=4, lora_alpha=1.0, target_modules=targets, rank_pattern=ranks, alpha_pattern=alphas
    )
    paths = [key.removesuffix(".lora_A.weight") for key in state if ".lora_A." in key]
    of = {p: 2.0 if p == "proj_out" or p.endswith("to_q") else 16.0 if p.endswith("ff.net.2") else 1.0 for p in paths}
    save_lora(tmp_path / "df.safetensors", {**state, **{f"{p}.alpha": torch.tensor(a) for p, a in of.items()}}, {})
    tensors, metadata, in_ups = without_alphas(load_file(tmp_path / "df.safetensors"))
    assert in_ups and set(tensors) == set(state)
    save_file(tensors, tmp_path / "peft.safetensors", metadata)
    for by in ("path", "name", "peft"):
        torch.testing.assert_close(drawn(tmp_path / "peft.safetensors", by=by), picture(trained), rtol=1e-6, atol=1e-6)
    back = read_lora(tmp_path / "peft.safetensors")[0]
    assert {path: back[f"{path}.alpha"].item() for path in paths} == of
    assert all(torch.equal(back[key], state[key]) for key in state)


def one(dtype: torch.dtype = torch.float32, up: float = 1.0, alpha: float = 2.0) -> dict[str, Tensor]:
    """A LoRA of one module, rank 4."""
    return {
        "proj_out.lora_A.weight": torch.ones(4, 8, dtype=dtype),
        "proj_out.lora_B.weight": torch.full((4, 4), up, dtype=dtype),
        "proj_out.alpha": torch.tensor(alpha),
    }


@pytest.mark.parametrize(
    ("dtype", "up", "alpha", "in_ups"),
    [
        (torch.float16, 2.0**-24, 2.0, False),  # the half of the smallest number is none
        (torch.float16, 60000.0, 16.0, False),  # four times the largest is infinite
        (torch.float16, 2.0**-24, 8.0, True),
        (torch.bfloat16, 0.1, 1.0, True),
        (torch.bfloat16, 0.1, 1.5, False),
        (torch.float32, 0.1, 0.0, False),  # nothing that could be undone
        (torch.float32, 0.1, -2.0, True),
    ],
)
def test_the_scale_goes_into_the_ups_only_where_that_can_be_undone(
    dtype: torch.dtype, up: float, alpha: float, in_ups: bool
) -> None:
    before = one(dtype, up, alpha)
    tensors, metadata, found = without_alphas(before)
    assert found is in_ups
    scale = 1.0 if in_ups else alpha / 4
    assert torch.equal(
        tensors["proj_out.lora_B.weight"].double() * scale, before["proj_out.lora_B.weight"].double() * (alpha / 4)
    )
    back = with_alphas(tensors, metadata[CONFIG], metadata.get(IN_UPS))
    assert set(back) == set(before) and all(torch.equal(back[key], before[key]) for key in before)


@pytest.mark.parametrize(
    "noted", ["{", "null", '"2"', "0", "NaN", '{"proj_out": "2"}', '{"other": 2.0}', "true", "[2]"]
)
def test_a_note_that_says_nothing_leaves_the_scale_in_the_ups(noted: str) -> None:
    tensors, metadata, _ = without_alphas(one())
    back = with_alphas(tensors, metadata[CONFIG], noted)
    assert back["proj_out.alpha"].item() == 4 and torch.equal(back["proj_out.lora_B.weight"], torch.full((4, 4), 0.5))


def test_what_another_program_changed_since_is_what_the_file_adds() -> None:
    tensors, metadata, _ = without_alphas(one(alpha=12.0))
    ups = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))  # no thirds of such numbers
    changed = with_alphas({**tensors, "proj_out.lora_B.weight": ups}, metadata[CONFIG], metadata[IN_UPS])
    assert torch.equal(changed["proj_out.lora_B.weight"] * changed.get("proj_out.alpha", torch.tensor(4.0)) / 4, ups)
    other = json.dumps({"lora_alpha": 1.0})
    rewritten = with_alphas(tensors, other, metadata[IN_UPS])
    assert rewritten["proj_out.alpha"].item() == 1 and torch.equal(
        rewritten["proj_out.lora_B.weight"], torch.full((4, 4), 3.0)
    )


def test_kleins_scale_comes_back_from_diffusers_names(tmp_path: Path) -> None:
    from diffusers.loaders import Flux2LoraLoaderMixin

    generator = torch.Generator().manual_seed(0)
    for rank, alpha in ((4, 1.0), (3, 1.0)):
        state = {}
        for path, n_in, n_out in (
            ("single_transformer_blocks.1.attn.to_out", 64, 16),
            ("transformer_blocks.0.ff.linear_in", 16, 96),
        ):
            state[f"{path}.lora_A.weight"] = torch.randn(rank, n_in, generator=generator).bfloat16()
            state[f"{path}.lora_B.weight"] = torch.randn(n_out, rank, generator=generator).bfloat16()
        first, between, again = (tmp_path / f"{name}.safetensors" for name in ("first", "between", "again"))
        save_lora(first, to_sd_scripts(state, alpha), {})
        convert_lora(first, between, "diffusers")
        convert_lora(between, again, "sd-scripts")
        before, after = load_file(first), load_file(again)
        assert set(before) == set(after) and all(torch.equal(before[key], after[key]) for key in before)
        read, metadata = Flux2LoraLoaderMixin.lora_state_dict(str(between), return_lora_metadata=True)
        name = "transformer.single_transformer_blocks.1.attn.to_out"
        added = read[f"{name}.lora_B.weight"].double() * (metadata["transformer.lora_alpha"] / rank)
        wanted = state["single_transformer_blocks.1.attn.to_out.lora_B.weight"].double() * (alpha / rank)
        assert torch.equal(added, wanted)


def test_the_command_says_how_to_load_what_it_could_not_put_into_the_matrices(capsys, tmp_path: Path) -> None:
    state = {"proj_out.lora_A.weight": torch.rand(3, 8), "proj_out.lora_B.weight": torch.rand(4, 3)}
    for alpha, told in ((1.0, True), (3.0, False)):
        save_lora(tmp_path / "a.safetensors", to_sd_scripts(state, alpha), {})
        answer = call(capsys, "convert", tmp_path / "a.safetensors", tmp_path / "b.safetensors", "--to", "peft")
        assert answer.code == 0 and ("weight_name=FILE" in answer.err) is told
