"""Base models in diffusers' folders: a tensor too few or too many is an error, what needs no tensor is none."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fluxcore.models.errors import DownloadError, ModelError
from fluxcore.models.flux import FLUX_1
from fluxcore.models.flux2 import FLUX_2_KLEIN
from fluxcore.models.registry import find_model
from tests.klein_files import make_klein

CPU = torch.device("cpu")
Change = Callable[[dict[str, torch.Tensor]], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    mini = find_model("flux-mini").path
    assert mini is not None
    return {"flux": mini, "klein": make_klein(tmp_path_factory.mktemp("klein") / "klein")}


def load(kind: str, folder: Path) -> None:
    """Both sides, of which no tensor may be without a value: what is only missed by the loader stays on meta."""
    family = FLUX_1 if kind == "flux" else FLUX_2_KLEIN
    assert family.load_text_side(folder, 32, torch.float32, CPU) is not None
    pipeline = family.load_image_side(folder, torch.float32, CPU)
    for part in (pipeline.transformer, pipeline.vae):
        values = list(part.parameters())
        assert values and all(value.device == CPU and bool(value.isfinite().all()) for value in values)


def changed(folder: Path, target: Path, part: str, change: Change) -> Path:
    """A copy of the model whose part has other tensors."""
    shutil.copytree(folder, target)
    (file,) = (target / part).glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    return target


@pytest.mark.parametrize(
    ("kind", "part", "name"),
    [
        ("flux", "transformer", "transformer_blocks.0.attn.to_q.weight"),
        ("flux", "vae", "decoder.conv_in.weight"),
        ("flux", "text_encoder_2", "shared.weight"),
        ("flux", "text_encoder_2", "encoder.block.0.layer.0.SelfAttention.q.weight"),
        ("klein", "transformer", "transformer_blocks.0.attn.to_q.weight"),
        ("klein", "vae", "bn.running_mean"),
        ("klein", "text_encoder", "model.embed_tokens.weight"),
        ("klein", "text_encoder", "model.layers.3.mlp.up_proj.weight"),
    ],
)
def test_a_part_with_a_tensor_too_few_or_too_many_is_refused(
    whole: dict[str, Path], tmp_path: Path, kind: str, part: str, name: str
) -> None:
    lacking = changed(whole[kind], tmp_path / "lacking", part, lambda tensors: tensors.pop(name))
    told = "encoder.embed_tokens.weight and 1 more" if name == "shared.weight" else name  # one tensor, two names
    with pytest.raises(ModelError, match=rf"{part} are not those .* they lack {told}; download"):
        load(kind, lacking)
    more = changed(whole[kind], tmp_path / "more", part, lambda t: t.update({f"{name}_old": t[name].clone()}))
    with pytest.raises(ModelError, match=rf"they have {name}_old that they should not have; download"):
        load(kind, more)


@pytest.mark.parametrize(
    ("kind", "part", "name"),
    [
        ("flux", "transformer", "single_transformer_blocks.0.attn.to_q.weight"),
        ("flux", "vae", "decoder.conv_in.weight"),
        ("flux", "text_encoder_2", "encoder.block.0.layer.0.SelfAttention.q.weight"),
        ("klein", "transformer", "transformer_blocks.0.attn.to_q.weight"),
    ],
)
def test_a_tensor_of_another_shape_is_refused(
    whole: dict[str, Path], tmp_path: Path, kind: str, part: str, name: str
) -> None:
    def halve(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name] = tensors[name][: len(tensors[name]) // 2].clone()

    told = "a tensor" if part.startswith("text") else name  # transformers prints which, and doesn't say it
    with pytest.raises(
        ModelError, match=rf"{part} are not those .*: {told} has another shape; download the model again"
    ):
        load(kind, changed(whole[kind], tmp_path / "other", part, halve))


@pytest.mark.parametrize(("kind", "name"), [("flux", "tokenizer"), ("flux", "tokenizer_2"), ("klein", "tokenizer")])
def test_a_folder_without_its_tokenizer_is_refused(
    whole: dict[str, Path], tmp_path: Path, kind: str, name: str
) -> None:
    target = tmp_path / "without"
    shutil.copytree(whole[kind], target)
    shutil.rmtree(target / name)
    with pytest.raises(ModelError, match=rf"{target} has no {name}: copy that folder of the model there too"):
        load(kind, target)


def extras(tensors: dict[str, torch.Tensor]) -> None:
    """What real folders have besides."""
    tensors["text_model.embeddings.position_ids"] = torch.zeros(1, 77, dtype=torch.long)
    tensors["text_projection.weight"] = torch.zeros(4, 4)


def test_what_real_folders_have_besides_or_only_once_is_no_matter(whole: dict[str, Path], tmp_path: Path) -> None:
    load("flux", whole["flux"])
    load("klein", whole["klein"])
    load("flux", changed(whole["flux"], tmp_path / "clip", "text_encoder", extras))

    def twice(tensors: dict[str, torch.Tensor]) -> None:
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()

    load("flux", changed(whole["flux"], tmp_path / "t5", "text_encoder_2", twice))

    def by_its_other_name(tensors: dict[str, torch.Tensor]) -> None:
        tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")

    load("flux", changed(whole["flux"], tmp_path / "other", "text_encoder_2", by_its_other_name))

    def with_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    load("klein", changed(whole["klein"], tmp_path / "head", "text_encoder", with_head))
    count = changed(whole["klein"], tmp_path / "count", "vae", lambda t: t.pop("bn.num_batches_tracked"))
    load("klein", count)
    assert "bn.num_batches_tracked" not in load_file(next((count / "vae").glob("*.safetensors")))


@pytest.mark.parametrize("kind", ["flux", "klein"])
def test_a_file_that_was_cut_short_is_named(whole: dict[str, Path], tmp_path: Path, kind: str) -> None:
    shutil.copytree(whole[kind], tmp_path / "cut")
    (file,) = (tmp_path / "cut" / "transformer").glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DownloadError, match=f"{file}: delete it"):
        load(kind, tmp_path / "cut")
