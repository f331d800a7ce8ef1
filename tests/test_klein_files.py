"""FLUX.2 klein from single files in the real layout, tiny: what comes out, what is told, where they are found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

from fluxcore.config import ConfigError, parse_config
from fluxcore.models import klein_files, locating
from fluxcore.models.errors import ModelError
from fluxcore.models.files import KLEIN_PARTS, PARTS, SingleFiles
from fluxcore.models.flux2 import FLUX_2_KLEIN
from fluxcore.models.klein_files import load_qwen3, load_transformer, load_vae
from fluxcore.models.registry import ModelNotFound, find_model
from fluxcore.models.tokenizers import find_qwen_tokenizer
from fluxcore.sd_scripts import place as place_of_sd_scripts
from fluxcore.training import check
from tests.bfl_files import header_only
from tests.klein_files import VAE, bfl_vae, make_klein, save_single_files
from tests.training_tools import lora_of, new_run, same, some_pictures, train_here

TRANSFORMER, CPU = PARTS[0], torch.device("cpu")
BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn


class Made:
    def __init__(self, place: Path) -> None:
        self.folder = make_klein(place / "klein")
        self.files = save_single_files(self.folder, place / "models")
        self.models = place / "models"
        self.base = SingleFiles(self.files, str(self.folder))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("klein"))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(klein_files, "VAE_CONFIG", VAE)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield


def equal(ours: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return set(ours) == set(wanted) and all(torch.equal(ours[name], value) for name, value in wanted.items())


def test_every_part_comes_out_as_it_went_in_and_encodes_the_same(made: Made) -> None:
    whole = Flux2KleinPipeline.from_pretrained(made.folder)
    ours = FLUX_2_KLEIN.load_image_side(made.base, torch.float32, CPU)
    assert equal(ours.transformer.state_dict(), whole.transformer.state_dict())
    assert equal(ours.vae.state_dict(), whole.vae.state_dict())
    for name in ("num_layers", "num_single_layers", "joint_attention_dim", "guidance_embeds", "axes_dims_rope"):
        assert list_of(ours.transformer.config[name]) == list_of(whole.transformer.config[name]), name
    assert ours.scheduler.config.use_dynamic_shifting and ours.scheduler.config.shift == 3.0
    text = FLUX_2_KLEIN.load_text_side(made.base, 32, torch.float32, CPU).encode("red apple")
    with torch.no_grad():
        assert torch.equal(text.sequence, whole.encode_prompt("red apple", max_sequence_length=32)[0][0])


def list_of(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def test_prefixes_fp8_and_scales_are_read_as_of_flux1(made: Made, tmp_path: Path) -> None:
    plain = load_file(made.files[TRANSFORMER])
    layer, scaled = "single_blocks.0.linear1", {}
    for name, value in plain.items():
        scaled[f"model.diffusion_model.{name}"] = value.to(BF16)
    scaled[f"model.diffusion_model.{layer}.weight"] = (plain[f"{layer}.weight"] / 0.25).to(FP8)
    scaled[f"model.diffusion_model.{layer}.weight_scale"] = torch.tensor(0.25)
    save_file(scaled, tmp_path / "klein.safetensors")
    ours = load_transformer(tmp_path / "klein.safetensors", torch.float32).state_dict()
    wanted = scaled[f"model.diffusion_model.{layer}.weight"].float() * 0.25
    assert torch.equal(ours["single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight"], wanted)
    assert torch.equal(ours["x_embedder.weight"], plain["img_in.weight"].to(BF16).float())


def test_an_autoencoder_with_attention_is_read_with_bfls_and_with_diffusers_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = {"block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
    monkeypatch.setattr(klein_files, "VAE_CONFIG", narrow)
    wanted = AutoencoderKLFlux2(**narrow).state_dict()
    wanted["bn.running_mean"].normal_()
    named = bfl_vae(wanted)
    assert named["encoder.mid.attn_1.q.weight"].shape == (32, 32, 1, 1) and "encoder.quant_conv.weight" in named
    for name, tensors in (("bfl", named), ("diffusers", wanted)):
        save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / f"{name}.safetensors")
        assert equal(load_vae(tmp_path / f"{name}.safetensors").state_dict(), wanted), name


def refusal(part: str, path: Path, transformer: Path) -> str:
    load = {"ae": load_vae, "qwen3": lambda p: load_qwen3(p, BF16, transformer)}
    with pytest.raises(ModelError) as error:
        load.get(part, lambda p: load_transformer(p, BF16))(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        (TRANSFORMER, {"double_blocks.0.img_attn.qkv.weight": None}, "is not the FLUX.2 klein transformer: it lacks"),
        (TRANSFORMER, {"double_blocks.0.extra.weight": (3,)}, "it has extra that it should not have"),
        (TRANSFORMER, {"stray.weight": (3,)}, "it has stray.weight that it should not have"),
        (TRANSFORMER, {"guidance_in.in_layer.weight": (32, 32)}, "that it should not have"),
        (TRANSFORMER, {"single_blocks.1.linear2.weight": (32, 9)}, "is 32 × 9, not 32 × 128"),
        (TRANSFORMER, {"single_blocks.0.linear2.weight": None}, "it lacks single_transformer_blocks.0.attn.to_out.weight"),
        ("ae", {"bn.running_mean": None}, "is not the FLUX.2 autoencoder: it lacks bn.running_mean"),
        ("ae", {"decoder.post_quant_conv.bias": None}, "it lacks post_quant_conv.bias"),
        ("ae", {"decoder.more": (1,)}, "it has decoder.more that"),
        ("qwen3", {"model.layers.5.mlp.up_proj.weight": None}, "it lacks model.layers.5.mlp.up_proj.weight"),
        ("qwen3", {"model.layers.5.more": (1,)}, "it has model.layers.5.more that"),
        ("qwen3", {"model.embed_tokens.weight": (98, 24)}, "it is 24 wide, and the transformer reads a Qwen3 of width 16"),
    ],
)  # fmt: skip
def test_what_is_missing_left_over_or_of_another_size_is_told(
    made: Made, tmp_path: Path, part: str, change: dict[str, tuple[int, ...] | None], says: str
) -> None:
    shapes = {name: tuple(value.shape) for name, value in load_file(made.files[part]).items()}
    shapes = {name: shape for name, shape in {**shapes, **change}.items() if shape is not None}
    sentence = refusal(part, header_only(tmp_path / "file.safetensors", shapes), made.files[TRANSFORMER])
    assert says in sentence and sentence.startswith(f"{part}: ")


def test_another_models_file_is_called_what_it_is(made: Made, tmp_path: Path) -> None:
    files, first = made.files, made.files[TRANSFORMER]
    assert "is a Qwen3 text encoder; it must be the FLUX.2 klein transformer" in refusal(
        TRANSFORMER, files["qwen3"], first
    )
    assert "is a FLUX.2 transformer; it must be the FLUX.2 autoencoder" in refusal("ae", first, first)
    assert "is a FLUX.2 autoencoder; it must be the Qwen3 text encoder" in refusal("qwen3", files["ae"], first)
    flux1 = header_only(tmp_path / "f", {"double_blocks.0.img_mod.lin.weight": (1,)})
    assert "is a FLUX.1 transformer" in refusal(TRANSFORMER, flux1.rename(tmp_path / "f.sft"), first)
    few = {name: value for name, value in load_file(files["qwen3"]).items() if not name.startswith("model.layers.27.")}
    save_file(few, tmp_path / "few.safetensors")
    assert "it has 27 layers" in refusal("qwen3", tmp_path / "few.safetensors", first)


def test_a_folder_of_comfyuis_is_looked_through(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = find_model(str(made.models))
    assert (model.family, model.sample_steps, model.files) == (
        "flux2-klein", 50, {part: str(path) for part, path in made.files.items()},
    )  # fmt: skip
    assert model.presets == find_model("flux2-klein-base-4b").presets and model.parts == KLEIN_PARTS
    check(parse_config({"base_model": str(made.models)}))
    with pytest.raises(ModelNotFound, match="has no t5xxl: its files are pretrained_model_name_or_path, ae, qwen3"):
        check(parse_config({"base_model": str(made.models), "t5xxl": str(made.files["ae"])}))
    place = tmp_path / "models"
    for part, path in made.files.items():
        (place / part).mkdir(parents=True)
        (place / part / path.name).symlink_to(path)
    # What FLUX.1's and the 9B's users have beside them.
    header_only(place / "vae" / "ae.safetensors", {"encoder.down.0.block.0.conv1.bias": (128,)})
    header_only(place / "text_encoders" / "qwen_3_8b_fp8mixed.safetensors", {"x": (1,)})
    assert find_model(str(place)).files == {p: str(place / p / made.files[p].name) for p in KLEIN_PARTS}
    (place / "qwen3" / "qwen_3_4b.safetensors").unlink()
    with pytest.raises(ModelNotFound, match=r"set qwen3 to their paths \(qwen3: .* has none\)"):
        check(parse_config({"base_model": str(place)}))
    header_only(place / "flux1-dev.safetensors", {"double_blocks.0.img_mod.lin.weight": (1,)})
    assert find_model(str(place)).family == "flux", "with both, klein is named by base_model and its three files"
    settings = {part: str(path) for part, path in made.files.items()}
    config = parse_config({"base_model": "flux2-klein-base-4b", "tokenizer_cache_dir": str(made.folder), **settings})
    base = locating.locate(find_model(config.base_model), config=config)
    assert isinstance(base, SingleFiles) and base.klein and dict(base.files) == made.files
    behind = locating.files_behind(base, ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    assert made.files["qwen3"] in behind and made.folder / "tokenizer" / "tokenizer.json" in behind
    monkeypatch.setattr(place_of_sd_scripts, "find_scripts", lambda: None)
    with pytest.raises(ConfigError, match="sd-scripts train FLUX.1, not flux2-klein-base-4b"):
        place_of_sd_scripts.check(parse_config({"trainer": "sd-scripts", "base_model": "flux2-klein-base-4b"}))


def test_the_tokenizer_is_found_beside_or_named_or_asked_for(made: Made, tmp_path: Path) -> None:
    weights = tmp_path / "klein" / "flux-2-klein-4b.safetensors"
    with pytest.raises(ModelError, match="no tokenizer of Qwen3 on this machine: set tokenizer_cache_dir"):
        find_qwen_tokenizer("", weights)
    beside = weights.parent / "tokenizer"
    beside.mkdir(parents=True)
    (beside / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="no tokenizer of Qwen3"):
        find_qwen_tokenizer("", weights)
    (beside / "tokenizer_config.json").write_text("{}")
    assert find_qwen_tokenizer("", weights) == beside == find_qwen_tokenizer(str(beside), weights)
    assert find_qwen_tokenizer(str(made.folder), weights) == made.folder / "tokenizer"
    with pytest.raises(ModelError, match="can't be read|chat template"):
        FLUX_2_KLEIN.load_text_side(SingleFiles(made.files, str(weights.parent)), 32, torch.float32, CPU)


def test_training_on_the_files_is_training_on_the_folder(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "models.toml"
    file.write_text(f'[tiny]\nfamily = "flux2-klein"\npath = "{made.folder}"\ntokens = 32\n')
    monkeypatch.setenv("FLUXGYM_MODELS", str(file))
    settings = {"resolution": 64, "mixed_precision": "no", "save_precision": "float", "max_train_steps": 1}
    whole = new_run(tmp_path, "whole", some_pictures, base_model="tiny", **settings)
    train_here(whole)
    listed = "".join(f'{part} = "{path}"\n' for part, path in made.files.items())
    file.write_text(f'[tiny]\nfamily = "flux2-klein"\ntokens = 32\n[tiny.files]\n{listed}')
    files = new_run(
        tmp_path, "files", some_pictures, base_model="tiny", tokenizer_cache_dir=str(made.folder), **settings
    )
    train_here(files)
    assert same(lora_of(whole), lora_of(files))
