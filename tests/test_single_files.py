"""FLUX.1 from single files at its real width, one block of each kind: every tensor, and every wrong file's sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from fluxcore.models import single_files
from fluxcore.models.errors import ModelError
from fluxcore.models.files import PARTS, SingleFiles
from fluxcore.models.flux import PromptBatch, encode_pictures, pack, predict_velocity
from fluxcore.models.loading import TextSide, load_image_side
from fluxcore.models.registry import find_model
from fluxcore.models.single_files import load_clip, load_t5, load_transformer, load_vae, scheduler_for
from fluxcore.models.weights import PartFile
from tests import bfl_files
from tests.bfl_files import bfl_shapes, header_only

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
TRANSFORMER = PARTS[0]
MINI = find_model("flux-mini").path
WORDS = 3100
SCALE = 0.0078125
NARROW = [32, 64, 64, 64]


def same(ours: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert set(ours) == set(wanted)
    assert [name for name in wanted if not torch.equal(ours[name], wanted[name])] == []


class Made:
    """The four files as ComfyUI's users have them; and what the transformer's must come out as, under BFL's names."""

    def __init__(self, place: Path) -> None:
        self.transformer = bfl_files.values(bfl_shapes(), BF16)
        stored: dict[str, Tensor] = {"scaled_fp8": torch.zeros(0, dtype=FP8)}
        for name, value in self.transformer.items():
            layer = name.removesuffix(".weight")
            stored[name] = value
            if layer == name or not layer.endswith(
                ("attn.proj", "txt_mlp.2", "modulation.lin")
            ):  # most stay as they are
                continue
            if layer.startswith("double_blocks"):
                stored[name] = (value.float() / SCALE).to(FP8)
                stored |= {f"{layer}.scale_weight": torch.tensor(SCALE), f"{layer}.scale_input": torch.tensor(2.0)}
                self.transformer[name] = (stored[name].float() * SCALE).to(BF16)
            else:
                stored[name] = value.to(FP8)
                self.transformer[name] = stored[name].to(BF16)
        self.vae = bfl_files.filled(bfl_files.autoencoder(block_out_channels=NARROW), torch.float16)
        self.clip = bfl_files.filled(bfl_files.clip(WORDS), torch.float16)
        self.t5 = bfl_files.filled(bfl_files.t5(WORDS), FP8)
        clip = {f"text_model.{name}": value for name, value in self.clip.state_dict().items()}
        clip["text_model.embeddings.position_ids"] = torch.arange(77)[None].half()
        t5 = self.t5.state_dict()
        t5["shared.weight"] = t5.pop("encoder.embed_tokens.weight")
        self.t5.load_state_dict({"encoder.embed_tokens.weight": t5["shared.weight"]}, strict=False, assign=True)
        self.t5.load_state_dict({"shared.weight": t5["shared.weight"]}, strict=False, assign=True)
        files = {
            TRANSFORMER: bfl_files.save(place / "unet" / "flux1-dev-fp8.safetensors", stored),
            "ae": bfl_files.save(place / "vae" / "ae.sft", bfl_files.bfl_autoencoder(self.vae.state_dict())),
            "clip_l": bfl_files.save(place / "clip" / "clip_l.safetensors", clip),
            "t5xxl": bfl_files.save(place / "clip" / "t5xxl_fp8_e4m3fn.safetensors", t5),
        }
        self.base = SingleFiles(files, str(MINI))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    place = tmp_path_factory.mktemp("models")
    yield Made(place)
    for file in place.rglob("*.s*"):
        file.unlink()  # a gigabyte


def test_every_part_comes_out_as_it_went_in_and_fits_the_others(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(single_files.VAE_CONFIG, "block_out_channels", NARROW)
    files = made.base.files
    pipeline = load_image_side(made.base, BF16, torch.device("cpu"))
    model: FluxTransformer2DModel = pipeline.transformer
    same(model.state_dict(), bfl_files.diffusers_transformer(made.transformer))
    assert model.config.guidance_embeds and (model.config.num_layers, model.config.num_single_layers) == (1, 1)
    same(pipeline.vae.state_dict(), {name: value.float() for name, value in made.vae.state_dict().items()})
    assert pipeline.scheduler.config.use_dynamic_shifting and pipeline.scheduler.config.max_shift == 1.15

    text = TextSide(made.base, 32, torch.float32, torch.device("cpu"))
    embedding = text.encode("a red apple")
    assert embedding.pooled.shape == (768,) and embedding.sequence.shape == (32, 4096)
    ids = text._pipeline.tokenizer("a red apple", padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert torch.equal(embedding.pooled, made.clip.float()(ids).pooler_output[0])
    t5 = load_t5(files["t5xxl"], torch.float32)
    same(t5.state_dict(), {name: value.float() for name, value in made.t5.state_dict().items()})
    assert t5.shared.weight is t5.encoder.embed_tokens.weight

    latents = encode_pictures(pipeline, torch.zeros(1, 3, 32, 32))
    assert latents.shape == (1, 16, 4, 4)
    prompts = PromptBatch.stack([embedding], torch.device("cpu"), BF16)
    with torch.no_grad():
        velocity = predict_velocity(pipeline, pack(latents).to(BF16), torch.tensor([0.5]), prompts, 1.0, (2, 2))
    assert velocity.shape == (1, 4, 64) and velocity.isfinite().all() and velocity.std() > 0


def test_the_autoencoder_has_flux1s_sizes(tmp_path: Path) -> None:
    shapes = {
        name: tuple(value.shape)
        for name, value in bfl_files.bfl_autoencoder(bfl_files.autoencoder().state_dict()).items()
    }
    assert shapes["decoder.mid.attn_1.q.weight"] == (512, 512, 1, 1) and len(shapes) == 244
    assert load_vae(header_only(tmp_path / "ae.sft", shapes, "F16")).config.latent_channels == 16


def test_half_precision_keeps_t5s_layers_that_overflow_in_32_bit(made: Made) -> None:
    t5 = load_t5(made.base.files["t5xxl"], torch.float16)
    kinds = {name: value.dtype for name, value in t5.state_dict().items()}
    assert kinds["encoder.block.0.layer.1.DenseReluDense.wo.weight"] == torch.float32
    assert kinds["shared.weight"] == torch.float16


def refusal(part: str, path: Path) -> str:
    load = {"ae": load_vae, "clip_l": lambda p: load_clip(p, BF16), "t5xxl": lambda p: load_t5(p, BF16)}
    with pytest.raises(ModelError) as error:
        load.get(part, lambda p: load_transformer(p, BF16))(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


SHAPES = bfl_shapes(2, 2)
QKV = "double_blocks.1.img_attn.qkv.weight"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({QKV: None}, f"it lacks {QKV}"),
        ({"double_blocks.0.img_attn.proj.weight": None, QKV: None}, "it lacks double_blocks.0.img_attn.proj.weight"),
        ({"extra.weight": (3,), "other.bias": (1,)}, "it has extra.weight and 1 more that it should not have"),
        ({"guidance_in.out_layer.bias": None}, "it lacks guidance_in.out_layer.bias"),
        ({"single_blocks.1.linear2.weight": (3072, 99)}, "is 3072 × 99, not 3072 × 15360"),
        ({"img_in.weight": (3072, 384)}, "384 channels instead of 64 (a fill or control model)"),
        ({"img_in.weight": (2048, 64)}, "it is 2048 wide, FLUX.1 3072"),
        ({"single_blocks.1.linear1.weight": (99, 3072)}, "other shapes"),
    ],
)
def test_a_transformer_with_other_tensors_is_refused_before_any_is_read(
    tmp_path: Path, change: dict[str, tuple[int, ...] | None], says: str
) -> None:
    shapes = {name: shape for name, shape in {**SHAPES, **change}.items() if shape is not None}
    sentence = refusal(TRANSFORMER, header_only(tmp_path / "flux1-dev.safetensors", shapes))
    assert says in sentence and sentence.startswith(f"{TRANSFORMER}: ")


CLIP = {"text_model.embeddings.token_embedding.weight": (100, 768), "text_model.encoder.layers.0.mlp.fc1.bias": (4,)}
T5 = {"shared.weight": (100, 4096), "encoder.block.0.layer.0.SelfAttention.q.weight": (4096, 4096)}
VAE = {"encoder.down.0.block.0.conv1.bias": (128,), "decoder.conv_in.weight": (512, 16, 3, 3)}


@pytest.mark.parametrize(
    ("part", "shapes", "says"),
    [
        (TRANSFORMER, {"lora_unet_single_blocks_0_linear1.lora_down.weight": (4, 4)}, "is a LoRA"),
        (TRANSFORMER, {**SHAPES, "double_stream_modulation_img.lin.weight": (1,)}, "is a FLUX.2 transformer"),
        (TRANSFORMER, CLIP, "is a CLIP text encoder; it must be the FLUX.1 transformer"),
        (TRANSFORMER, {"x": (1,)}, "is not the FLUX.1 transformer: it lacks img_in.weight"),
        (TRANSFORMER, {"transformer_blocks.0.attn.to_q.weight": (1,)}, "give its diffusers folder"),
        ("ae", T5, "is a T5 text encoder; it must be the FLUX.1 autoencoder"),
        ("ae", VAE, "it lacks decoder.conv_in.bias"),
        ("ae", {"x": (1,)}, "it lacks decoder.conv_in"),
        ("clip_l", T5, "is a T5 text encoder"),
        ("clip_l", {**CLIP, "text_model.embeddings.token_embedding.weight": (9, 1280)}, "is 1280 wide, CLIP-L 768"),
        ("clip_l", {**CLIP, "text_model.embeddings.position_embedding.weight": (77, 768)}, "it lacks "),
        ("t5xxl", CLIP, "is a CLIP text encoder"),
        ("t5xxl", {**T5, "shared.weight": (9, 1024)}, "is 1024 wide, T5-XXL 4096"),
        ("t5xxl", T5, "it lacks encoder.block.0.layer.1.DenseReluDense.wi_0.weight"),
    ],
)
def test_a_file_of_another_model_is_called_what_it_is(
    tmp_path: Path, part: str, shapes: dict[str, tuple[int, ...]], says: str
) -> None:
    assert says in refusal(part, header_only(tmp_path / "file.safetensors", shapes))


def test_a_torn_file_and_one_of_another_kind_are_told(tmp_path: Path) -> None:
    path = header_only(tmp_path / "flux1-dev.sft", SHAPES)
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size - 1)
    assert "is damaged (cut short): copy or download it again" in refusal(TRANSFORMER, path)
    pickle = tmp_path / "ae.ckpt"
    pickle.write_bytes(b"PK" * 200)
    assert "no safetensors file; only those are opened" in refusal("ae", pickle)
    assert "there is no file" in refusal("ae", tmp_path / "none.sft")


def test_a_whole_checkpoint_gives_each_part_its_own(tmp_path: Path) -> None:
    parts = {
        "model.diffusion_model.": {"a": (1,)},
        "vae.": {"b": (2,)},
        "text_encoders.t5xxl.transformer.": {"c": (3,)},
    }
    shapes = {prefix + name: shape for prefix, own in parts.items() for name, shape in own.items()}
    path = header_only(tmp_path / "all.safetensors", {**shapes, "text_encoders.t5xxl.logit_scale": (1,)})
    assert PartFile(path, TRANSFORMER).shapes == {"a": (1,)}
    assert PartFile(path, "ae").shapes == {"b": (2,)}
    assert PartFile(path, "t5xxl").shapes == {"c": (3,)}
    path = header_only(tmp_path / "more.safetensors", {**shapes, "stray": (1,)})
    assert PartFile(path, "ae").shapes == {"b": (2,), "stray": (1,)}, "what is of no part is left over"


def scaled(path: Path, scale: Tensor, weight: Tensor, metadata: dict[str, str] | None = None, mark: str = "") -> Path:
    from safetensors.torch import save_file

    tensors = {"l.weight": weight, "l.weight_scale": scale, "l.input_scale": torch.ones(())}
    if mark:
        tensors["l.comfy_quant"] = torch.tensor(list(json.dumps({"format": mark}).encode()), dtype=torch.uint8)
    save_file(tensors, path, metadata)
    return path


def test_comfyuis_newer_scales_are_applied_and_what_cant_be_turned_back_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    weight = torch.tensor([[1.0, -2.0], [4.0, 0.5]])
    fp8 = weight.to(FP8)
    for scale, wanted in (
        (torch.tensor(0.5), weight * 0.5),
        (torch.tensor([0.5]), weight * 0.5),
        (torch.tensor([[0.5], [2.0]]), weight * torch.tensor([[0.5], [2.0]])),
    ):
        read = PartFile(scaled(path, scale, fp8, mark="float8_e4m3fn"), "clip_l").read(torch.float32)
        assert torch.equal(read["l.weight"], wanted) and set(read) == {"l.weight"}
    meta = {"_quantization_metadata": json.dumps({"layers": {"l": {"format": "nvfp4"}}})}
    for file in (
        scaled(path.with_name("a"), torch.tensor(1.0), fp8, meta),
        scaled(path.with_name("b"), torch.tensor(1.0), fp8, mark="int8_blockwise"),
        scaled(path.with_name("c"), torch.ones(2, 2), fp8),
        scaled(path.with_name("d"), torch.tensor(1.0), weight),
        scaled(path.with_name("e"), torch.tensor(1.0), weight.to(torch.int8)),
    ):
        with pytest.raises(ModelError, match="is quantised"):
            PartFile(file, "clip_l").read(torch.float32)


def test_schnell_is_told_from_dev_by_its_file(tmp_path: Path) -> None:
    shapes = bfl_shapes(1, 1, guidance=False)
    path = header_only(tmp_path / "flux1-schnell.safetensors", shapes)
    scheduler = scheduler_for(path)
    assert scheduler.config.shift == 1.0 and not scheduler.config.use_dynamic_shifting
    for name in ("ae", "clip_l", "t5xxl_fp16"):
        header_only(tmp_path / f"{name}.safetensors", {"x": (1,)})
    model = find_model(str(tmp_path))
    assert set(model.files) == set(PARTS)
    assert (model.tokens, model.sample_steps, model.defaults) == (256, 4, {"timestep_sampling": "sigmoid"})
