"""The list of base models: what comes with FluxGym, what users add, and folders of theirs."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from fluxcore.config import resolve_config
from fluxcore.models import registry
from fluxcore.models.files import PARTS, scan_folder
from fluxcore.models.registry import ModelNotFound, find_model, list_models, registry_problems, use_outputs
from fluxcore.training.prompts import parse_prompts

BFL_KEY = "double_blocks.0.img_mod.lin.weight"


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(registry, "_outputs", None)
    monkeypatch.delenv("FLUXGYM_MODELS", raising=False)
    return use_outputs(tmp_path)


def put(path: Path, *keys: str) -> str:
    """A safetensors file with empty tensors of these names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {key: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for key in keys or ("x",)}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return str(path)


def test_the_list_has_the_embedded_model_first_and_fluxgyms_mirrors_without_a_gate() -> None:
    models = {model.name: model for model in list_models()}
    assert next(iter(models)) == "flux-mini"
    assert {"flux-dev", "flux-schnell", "flux-krea-dev", "flux-dev2pro", "flux-dev-mirror"} <= set(models)
    assert models["flux-dev"].gated and models["flux-krea-dev"].gated
    for name in ("flux-dev-mirror", "flux-dev2pro"):
        assert not models[name].gated and set(models[name].files) == set(PARTS)
        assert all(registry.HUB_FILE.fullmatch(value) for value in models[name].files.values())
    assert models["flux-dev-mirror"].files[PARTS[0]] == "cocktailpeanut/xulf-dev:flux1-dev.sft"
    for model in models.values():
        assert model.licence != "unknown" and model.title


def test_schnell_has_256_tokens_4_steps_and_the_noise_levels_of_its_own_sampler() -> None:
    schnell = find_model("flux-schnell")
    assert (schnell.tokens, schnell.sample_steps) == (256, 4)
    assert resolve_config({"base_model": "flux-schnell"}).timestep_sampling == "sigmoid"
    assert resolve_config({"base_model": "flux-dev"}).timestep_sampling == "shift"
    assert [prompt.steps for prompt in parse_prompts("a cat\na dog --s 9", schnell.sample_steps)] == [4, 9]


def test_models_of_ones_own_stand_in_the_outputs_folder_and_may_replace(outputs: Path) -> None:
    (outputs / "models.toml").write_text(
        '[mine]\nrepo = "me/mine"\nlicence = "mine"\n[flux-dev]\nfiles = {ae = "vae/ae.sft", clip_l = "a/b:c.sft"}\n'
    )
    assert find_model("mine").repo == "me/mine" and find_model("mine").title == "mine"
    assert find_model("flux-dev").files == {"ae": str(outputs / "vae" / "ae.sft"), "clip_l": "a/b:c.sft"}
    assert find_model("flux-dev").repo is None
    assert next(iter(list_models())).name == "flux-mini" and not registry_problems()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[mine", "can't be read"),
        ('mine = "x"', "begin each with a line [name]"),
        ('[mine]\nrepos = "a/b"', "did you mean repo?"),
        ("[mine]\ngated = 1", "gated = 1: it must be true or false"),
        ("[mine]\ntokens = true", "tokens = True: it must be a whole number"),
        ('[mine]\nfamily = "sdxl"', "must be one of flux"),
        ('[mine]\nrepo = "a/b"\npath = "/c"', "has path and repo"),
        ('[mine.files]\nvae = "a"', "[mine.files] has vae"),
        ("[mine.files]\nae = 3", "ae = 3: it must be a path"),
    ],
)
def test_a_wrong_entry_is_said_and_takes_no_other_away(outputs: Path, text: str, says: str) -> None:
    (outputs / "models.toml").write_text(text)
    (problem,) = registry_problems()
    assert says in problem and "models.toml" in problem
    assert find_model("flux-mini").path
    with pytest.raises(ModelNotFound) as error:
        find_model("mine")
    assert says in str(error.value)


def test_a_list_named_by_the_environment_that_is_not_there_is_said(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLUXGYM_MODELS", str(outputs / "none.toml"))
    assert "none.toml can't be read" in registry_problems()[0]


def test_a_folder_as_comfyui_keeps_it_is_understood_by_names_and_headers(tmp_path: Path) -> None:
    models = tmp_path / "models"
    wanted = {
        PARTS[0]: put(models / "diffusion_models" / "FLUX" / "my-favourite.safetensors", BFL_KEY),
        "ae": put(models / "vae" / "ae.sft"),
        "clip_l": put(models / "text_encoders" / "clip_l.safetensors"),
        "t5xxl": put(models / "text_encoders" / "t5xxl_fp16.safetensors"),
    }
    put(models / "text_encoders" / "t5xxl_fp8_e4m3fn.safetensors")
    put(models / "loras" / "flux_cat.safetensors", "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight")
    put(models / "diffusion_models" / "flux2.safetensors", "double_stream_modulation_img.lin.weight")
    put(models / ".cache" / "flux1-dev.safetensors", BFL_KEY)
    (models / "vae" / "flux-vae.sft").symlink_to(tmp_path / "gone.sft")
    model = find_model(str(models))
    assert model.files == wanted and not model.unclear and model.path is None


def test_what_is_twice_or_not_there_in_a_folder_is_unclear(tmp_path: Path) -> None:
    put(tmp_path / "unet" / "flux1-dev.safetensors", BFL_KEY)
    put(tmp_path / "unet" / "flux1-schnell.safetensors", "model.diffusion_model." + BFL_KEY)
    put(tmp_path / "vae" / "ae.safetensors")
    found = scan_folder(tmp_path)
    assert set(found.files) == {"ae"}
    assert "unet/flux1-dev.safetensors, unet/flux1-schnell.safetensors" in found.unclear[PARTS[0]]
    assert found.unclear["clip_l"].endswith("has none")


def test_a_folder_without_a_model_and_a_file_are_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="neither model_index.json"):
        find_model(str(tmp_path))
    with pytest.raises(ModelNotFound, match="set pretrained_model_name_or_path to it"):
        find_model(put(tmp_path / "flux1-dev.safetensors", BFL_KEY))
