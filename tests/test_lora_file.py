"""LoRA files: diffusers' own readers give the LoRA that was trained; bad files, crashes and metadata."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fluxcore.training.lora_file import convert_lora, read_lora, save_lora
from fluxcore.training.lora_keys import LoraFormatError, to_diffusers, to_sd_scripts
from fluxcore.training.lora_metadata import TrainingInfo, count_tags, sd_scripts_metadata

torch.set_num_threads(1)
W = 3072  # FLUX.1's width
DOUBLE = {
    "attn.to_q": (1, 1),
    "attn.to_k": (1, 1),
    "attn.to_v": (1, 1),
    "attn.to_out.0": (1, 1),
    "ff.net.0.proj": (1, 4),
    "ff.net.2": (4, 1),
    "norm1.linear": (1, 6),
    "attn.add_q_proj": (1, 1),
    "attn.add_k_proj": (1, 1),
    "attn.add_v_proj": (1, 1),
    "attn.to_add_out": (1, 1),
    "ff_context.net.0.proj": (1, 4),
    "ff_context.net.2": (4, 1),
    "norm1_context.linear": (1, 6),
}
SINGLE = {
    "attn.to_q": (1, 1),
    "attn.to_k": (1, 1),
    "attn.to_v": (1, 1),
    "proj_mlp": (1, 4),
    "proj_out": (5, 1),
    "norm.linear": (1, 3),
}


def real_width_lora(keep, rank: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A peft LoRA for blocks of FLUX.1's own size; integers / 64, so that float64 adds them up exactly."""
    generator = torch.Generator().manual_seed(rank)
    shapes = {f"transformer_blocks.18.{n}": s for n, s in DOUBLE.items()}
    shapes |= {f"single_transformer_blocks.{i}.{n}": s for i in (0, 37) for n, s in SINGLE.items()}
    state = {}
    for path, (n_in, n_out) in shapes.items():
        if keep(path):
            for part, shape in (("A", (rank, n_in * W)), ("B", (n_out * W, rank))):
                values = torch.randint(-127, 128, shape, generator=generator) / 64
                state[f"{path}.lora_{part}.weight"] = values.to(dtype)
    return state


def outputs(state: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """What each module's delta makes of three random inputs, (out, 3): two deltas that agree on them are the same."""
    generator = torch.Generator().manual_seed(0)
    probe = torch.randint(-127, 128, (5 * W, 3), generator=generator).double()
    result = {}
    for key, down in state.items():
        if key.endswith(".lora_A.weight"):
            up = state[key.replace("lora_A", "lora_B")].double()
            path = key.removesuffix(".lora_A.weight").removeprefix("transformer.")
            result[path] = up @ (down.double() @ probe[: down.shape[1]]) * scale
    return result


@pytest.mark.parametrize(
    ("keep", "rank", "alpha", "dtype"),
    [
        (lambda path: True, 4, 1.0, torch.float32),
        (lambda path: ".attn." in path, 4, 2.0, torch.bfloat16),
        (lambda path: path.endswith(("proj_mlp", "to_q", "add_v_proj")), 2, 2.0, torch.float16),
        (lambda path: ".attn." in path, 3, 1.0, torch.float32),
    ],
    ids=["all", "attention", "a few", "scale 1/3"],
)
def test_diffusers_reads_the_sd_scripts_file_at_flux_1s_width(tmp_path, keep, rank, alpha, dtype):
    from diffusers import FluxPipeline

    state = real_width_lora(keep, rank, dtype)
    path = tmp_path / "lora.safetensors"
    save_lora(path, to_sd_scripts(state, alpha=alpha), {"ss_network_module": "networks.lora_flux"})
    read, alphas = FluxPipeline.lora_state_dict(str(path), return_alphas=True)
    assert not alphas  # diffusers has put them into the matrices
    theirs, ours = outputs(read, 1.0), outputs(state, alpha / rank)
    assert set(ours) <= set(theirs)
    for name, value in theirs.items():
        expected = ours.get(name, torch.zeros_like(value))
        if rank == 3:  # 1/3 is rounded by diffusers as it multiplies, in float32
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6 * expected.abs().max().item())
        else:
            assert torch.equal(value, expected), name


def test_diffusers_and_we_take_a_dense_sd_scripts_file_alike_at_flux_1s_width(tmp_path):
    from diffusers import FluxPipeline

    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, rows in (("double_blocks_0_img_attn_qkv", 3), ("single_blocks_1_linear1", 7)):
        for part, shape in (("down", (2, W)), ("up", (rows * W, 2))):
            values = torch.randint(-127, 128, shape, generator=generator) / 64
            state[f"lora_unet_{name}.lora_{part}.weight"] = values
        state[f"lora_unet_{name}.alpha"] = torch.tensor(1.0)
    save_lora(tmp_path / "sd.safetensors", state, {})
    theirs = FluxPipeline.lora_state_dict(str(tmp_path / "sd.safetensors"))
    ours = {key: tensor for key, tensor in to_diffusers(state).items() if not key.endswith(".alpha")}
    theirs, ours = outputs(theirs, 1.0), outputs(ours, 0.5)
    assert set(theirs) == set(ours) and len(ours) == 7
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def tiny_transformer():
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    ).eval()


def tiny_clip():
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(1)
    config = CLIPTextConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=0,
        eos_token_id=1,
    )
    return CLIPTextModel(config).eval()


def pipeline(transformer=None, text_encoder=None):
    from diffusers import FluxPipeline

    empty = dict.fromkeys(("scheduler", "vae", "tokenizer", "text_encoder_2", "tokenizer_2"))
    return FluxPipeline(**empty, transformer=transformer or tiny_transformer(), text_encoder=text_encoder)


@torch.no_grad()
def picture(transformer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    ids = torch.zeros(4, 3)
    ids[:, 1] = torch.arange(4)
    return transformer(
        hidden_states=torch.randn(1, 4, 4, generator=generator),
        encoder_hidden_states=torch.randn(1, 3, 24, generator=generator),
        pooled_projections=torch.randn(1, 20, generator=generator),
        timestep=torch.tensor([0.5]),
        guidance=torch.tensor([3.5]),
        img_ids=ids,
        txt_ids=torch.zeros(3, 3),
    ).sample


def add_random_lora(model, **settings):
    from peft import LoraConfig, get_peft_model_state_dict

    model.add_adapter(LoraConfig(init_lora_weights=False, **settings))
    return get_peft_model_state_dict(model)


ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]
EVERYWHERE = [*ATTENTION, "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2", "proj_mlp"]
EVERYWHERE += ["proj_out", "norm.linear", "norm1.linear", "norm1_context.linear", "norm_out.linear", "x_embedder"]
EVERYWHERE += ["context_embedder", "linear_1", "linear_2"]


@pytest.mark.parametrize(
    ("targets", "rank", "alpha"),
    [(EVERYWHERE, 4, 1.0), (EVERYWHERE, 3, 1.0), (ATTENTION, 4, 16.0), (["to_v", "proj_mlp"], 2, 0.3)],
)
def test_a_pipeline_draws_the_same_with_the_converted_file(tmp_path, targets, rank, alpha):
    plain = picture(tiny_transformer())
    trained = tiny_transformer()
    state = add_random_lora(trained, r=rank, lora_alpha=alpha, target_modules=targets)
    expected = picture(trained)
    assert (expected - plain).abs().max() > 1e-3

    save_lora(tmp_path / "sd.safetensors", to_sd_scripts(state, alpha=alpha), {})
    assert convert_lora(tmp_path / "sd.safetensors", tmp_path / "df.safetensors", to="diffusers") == "sd-scripts"
    pipe = pipeline()
    pipe.load_lora_weights(str(tmp_path / "df.safetensors"))
    torch.testing.assert_close(picture(pipe.transformer), expected, rtol=1e-6, atol=1e-6)


def test_scales_of_every_kind_reach_peft_exactly(tmp_path):
    """Ranks and alphas by module, in bfloat16: the scale that peft computes is alpha / rank all the same."""
    state = {}
    for path, rank, alpha in (
        ("transformer_blocks.0.attn.to_q", 3, 1.0),
        ("single_transformer_blocks.1.proj_out", 6, 7.0),
    ):
        n_in = 160 if path.endswith("proj_out") else 32
        state[f"{path}.lora_A.weight"] = torch.randn(rank, n_in).bfloat16()
        state[f"{path}.lora_B.weight"] = torch.randn(32, rank).bfloat16()
        state[f"{path}.alpha"] = torch.tensor(alpha)
    save_lora(tmp_path / "df.safetensors", to_diffusers(state), {})
    pipe = pipeline()
    pipe.load_lora_weights(str(tmp_path / "df.safetensors"), adapter_name="a")
    scales = {n: float(m.scaling["a"]) for n, m in pipe.transformer.named_modules() if hasattr(m, "scaling")}
    third, seven_sixths = (torch.tensor(x).item() for x in (1 / 3, 7 / 6))
    assert scales == {"transformer_blocks.0.attn.to_q": third, "single_transformer_blocks.1.proj_out": seven_sixths}


def test_a_file_that_diffusers_saved_keeps_its_alphas(tmp_path):
    """Its alphas stand in `lora_adapter_metadata`, by pattern; peft's transformer.save_lora_adapter has no prefix."""
    trained = tiny_transformer()
    settings = {
        "r": 4,
        "lora_alpha": 2,
        "target_modules": EVERYWHERE[:-1],
        "rank_pattern": {"^proj_out": 3, r"single_transformer_blocks.*to_q": 8},
        "alpha_pattern": {"^proj_out": 2.0, r"single_transformer_blocks.*to_q": 4, "ff.net.2": 7},
    }
    state = add_random_lora(trained, **settings)
    expected = picture(trained)
    metadata = trained.peft_config["default"].to_dict()
    pipeline().save_lora_weights(
        tmp_path,
        transformer_lora_layers=state,
        transformer_lora_adapter_metadata=metadata,
        weight_name="df.safetensors",
    )
    trained.save_lora_adapter(tmp_path, weight_name="peft.safetensors")
    for name, found in (("df", "diffusers"), ("peft", "peft")):
        sd, again = tmp_path / f"{name}-sd.safetensors", tmp_path / f"{name}-again.safetensors"
        assert convert_lora(tmp_path / f"{name}.safetensors", sd, to="sd-scripts") == found
        convert_lora(sd, again, to="diffusers")
        pipe = pipeline()
        pipe.load_lora_weights(str(again))
        torch.testing.assert_close(picture(pipe.transformer), expected, rtol=1e-6, atol=1e-6)
        tensors = load_file(again)
        assert all(torch.equal(tensors[f"transformer.{key}"], state[key]) for key in state)
        for path in (sd, again):  # left there, diffusers would take it instead of, or beside, the alphas
            assert "lora_adapter_metadata" not in read_header(path)["__metadata__"]


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ("{", "no JSON object"),
        ('{"transformer.use_rslora": true, "transformer.lora_alpha": 2}', "rank 3: a scale of alpha / √3"),
        ('{"transformer.lora_alpha": "much"}', "no alpha for transformer.proj_out"),
        ('{"transformer.alpha_pattern": {"(": 1}}', "no alpha for transformer.proj_out"),
    ],
)
def test_adapter_metadata_that_gives_no_alpha(tmp_path, adapter, message):
    tensors = {
        "transformer.proj_out.lora_A.weight": torch.ones(3, 8),
        "transformer.proj_out.lora_B.weight": torch.ones(4, 3),
    }
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": adapter})
    with pytest.raises(LoraFormatError, match=message):
        read_lora(tmp_path / "a.safetensors")


def test_rslora_with_a_whole_root_has_an_exact_alpha(tmp_path):
    tensors = {
        "transformer.proj_out.lora_A.weight": torch.ones(4, 8),
        "transformer.proj_out.lora_B.weight": torch.ones(4, 4),
    }
    adapter = '{"transformer.use_rslora": true, "transformer.lora_alpha": 3}'
    save_file(tensors, tmp_path / "a.safetensors", {"lora_adapter_metadata": adapter})
    assert read_lora(tmp_path / "a.safetensors")[0]["transformer.proj_out.alpha"].item() == 6.0  # 3 / √4 = 6 / 4
    save_file(
        tensors | {"transformer.proj_out.alpha": torch.ones(())},
        tmp_path / "b.safetensors",
        {"lora_adapter_metadata": adapter},
    )
    with pytest.raises(LoraFormatError, match="twice"):
        read_lora(tmp_path / "b.safetensors")


def test_the_text_encoders_part_reaches_clip(tmp_path):
    clip, ids = tiny_clip(), torch.arange(8)[None]
    with torch.no_grad():
        plain = clip(ids).last_hidden_state
    from peft import LoraConfig, inject_adapter_in_model

    torch.manual_seed(3)
    inject_adapter_in_model(
        LoraConfig(r=4, lora_alpha=2, target_modules=["q_proj", "out_proj", "fc1"], init_lora_weights=False), clip
    )
    state = {f"text_encoder.{k.replace('.default', '')}": v for k, v in clip.state_dict().items() if ".lora_" in k}
    with torch.no_grad():
        expected = clip(ids).last_hidden_state
    assert (expected - plain).abs().max() > 1e-3
    sd = to_sd_scripts(state, alpha=2.0)
    assert all(key.startswith("lora_te1_text_model_encoder_layers_") for key in sd)
    sd["lora_unet_img_in.lora_down.weight"] = torch.ones(1, 4)  # diffusers wants a transformer's part beside it
    sd["lora_unet_img_in.lora_up.weight"] = torch.zeros(32, 1)
    save_lora(tmp_path / "sd.safetensors", sd, {})
    convert_lora(tmp_path / "sd.safetensors", tmp_path / "df.safetensors", to="diffusers")
    pipe = pipeline(text_encoder=tiny_clip())
    pipe.load_lora_weights(str(tmp_path / "df.safetensors"))
    with torch.no_grad():
        torch.testing.assert_close(pipe.text_encoder(ids).last_hidden_state, expected, rtol=1e-6, atol=1e-6)


# Files


def small_lora() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name in ("attn.to_q", "attn.to_k", "attn.to_v"):
        state[f"transformer_blocks.0.{name}.lora_A.weight"] = torch.randn(2, 8, generator=generator)
        state[f"transformer_blocks.0.{name}.lora_B.weight"] = torch.randn(8, 2, generator=generator)
    return to_sd_scripts(state, alpha=1.0)


def read_header(path) -> dict:
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def test_a_lora_comes_back_as_it_was_saved(tmp_path):
    path = tmp_path / "lora.safetensors"
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        tensors = {key: tensor.to(dtype) for key, tensor in small_lora().items()}
        save_lora(path, tensors, {"note": "Füchse 🦊"})
        for read, metadata in (read_lora(path), (load_file(path), safe_open(path, "pt").metadata())):
            assert metadata == {"note": "Füchse 🦊"}
            assert set(read) == set(tensors)
            assert all(read[k].dtype == dtype and torch.equal(read[k], tensors[k]) for k in tensors)
    assert os.listdir(tmp_path) == ["lora.safetensors"]
    assert path.stat().st_size % 8 == 0


def test_the_same_lora_gives_the_same_bytes(tmp_path):
    tensors = small_lora()
    metadata = {f"ss_{i}": str(i) for i in range(20)}
    save_lora(tmp_path / "a.safetensors", tensors, metadata)
    save_lora(tmp_path / "b.safetensors", dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_hashes_are_of_the_bytes_after_the_header(tmp_path):
    path = tmp_path / "lora.safetensors"
    stale = {"modelspec.hash_sha256": "0x0", "sshs_model_hash": "0", "sshs_legacy_hash": "0"}
    save_lora(path, small_lora(), {"ss_seed": "1", "modelspec.title": "t", **stale})
    data = path.read_bytes()
    digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    metadata = read_lora(path)[1]
    assert metadata == {
        "ss_seed": "1",
        "modelspec.title": "t",
        "sshs_model_hash": digest,
        "modelspec.hash_sha256": f"0x{digest}",
    }
    save_lora(path, small_lora(), stale)
    assert read_lora(path)[1] == {}


def test_tensors_may_share_memory_and_be_parameters(tmp_path):
    whole = torch.nn.Parameter(torch.randn(8, 4))
    tensors = {"proj_out.lora_A.weight": whole.T, "proj_out.lora_B.weight": whole[:4]}
    save_lora(tmp_path / "a.safetensors", tensors, {})
    assert torch.equal(read_lora(tmp_path / "a.safetensors")[0]["proj_out.lora_A.weight"], whole.T)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "lora.safetensors"
    save_lora(path, small_lora(), {"which": "old"})

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space left"):
        save_lora(path, small_lora(), {"which": "new"})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["lora.safetensors"]
    assert read_lora(path)[1] == {"which": "old"}


def test_file_and_folder_are_synced_around_the_rename(tmp_path, monkeypatch):
    calls = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(fd):
        calls.append(("fsync", os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))))
        real_fsync(fd)

    def replace(source, target):
        calls.append(("replace", os.path.basename(source), os.path.basename(target)))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    save_lora(tmp_path / "a.safetensors", small_lora(), {})
    aside = calls[0][1]
    assert aside.startswith(".a.safetensors.") and aside.endswith(".tmp")
    assert calls == [("fsync", aside), ("replace", aside, "a.safetensors"), ("fsync", tmp_path.name)]


def test_what_may_not_be_saved(tmp_path):
    with pytest.raises(TypeError, match="strings"):
        save_lora(tmp_path / "a.safetensors", small_lora(), {"ss_seed": 42})  # type: ignore[dict-item]
    with pytest.raises(LoraFormatError, match="not a FLUX LoRA"):
        save_lora(tmp_path / "a.safetensors", {"weight": torch.ones(2)}, {})
    with pytest.raises(FileNotFoundError):
        save_lora(tmp_path / "missing" / "a.safetensors", small_lora(), {})
    assert os.listdir(tmp_path) == []


def test_every_truncated_file_is_refused(tmp_path):
    save_lora(tmp_path / "whole.safetensors", small_lora(), {"ss_seed": "1"})
    data = (tmp_path / "whole.safetensors").read_bytes()
    cut = tmp_path / "cut.safetensors"
    for length in (0, 1, 7, 8, 9, 200, len(data) // 2, len(data) - 4, len(data) - 1):
        cut.write_bytes(data[:length])
        with pytest.raises(LoraFormatError, match="cut.safetensors is cut short or no safetensors file"):
            read_lora(cut)
        with pytest.raises(LoraFormatError):
            convert_lora(cut, tmp_path / "out.safetensors", to="diffusers")
    assert not (tmp_path / "out.safetensors").exists()


def test_what_is_no_lora_file_is_refused(tmp_path):
    other = tmp_path / "other.safetensors"
    for content in (pickle.dumps({"a": 1}), b"\xff" * 64, b"<html></html>" * 9):
        other.write_bytes(content)
        with pytest.raises(LoraFormatError, match="no safetensors file"):
            read_lora(other)
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.ones(6, 2)}, other)
    with pytest.raises(LoraFormatError, match=r"other.safetensors: this is not a FLUX LoRA: .*img_attn.qkv.weight"):
        read_lora(other)
    save_file({"lora_unet_input_blocks_1_0.lora_down.weight": torch.ones(1, 2)}, other)
    with pytest.raises(LoraFormatError, match=r"other.safetensors: 1 of 1 tensors belong to no FLUX.1 LoRA"):
        convert_lora(other, tmp_path / "out.safetensors", to="diffusers")
    with pytest.raises(FileNotFoundError):
        read_lora(tmp_path / "missing.safetensors")
    with pytest.raises(IsADirectoryError):
        read_lora(tmp_path)
    assert os.listdir(tmp_path) == ["other.safetensors"]


def test_converting_into_the_same_file_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_lora(path, small_lora(), {})
    before = path.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(path)
    os.link(path, tmp_path / "hard.safetensors")
    for other in (path, tmp_path / "." / "a.safetensors", tmp_path / "link.safetensors", tmp_path / "hard.safetensors"):
        with pytest.raises(ValueError, match="one file"):
            convert_lora(path, other, to="diffusers")
    with pytest.raises(ValueError, match="comfyui, not to 'forge'"):
        convert_lora(path, tmp_path / "b.safetensors", to="forge")  # type: ignore[arg-type]
    assert path.read_bytes() == before


def test_a_file_that_has_the_format_already_is_copied_byte_for_byte(tmp_path):
    for name, tensors in (("sd-scripts", small_lora()), ("diffusers", to_diffusers(small_lora()))):
        path, out = tmp_path / f"{name}.safetensors", tmp_path / f"{name}-copy.safetensors"
        save_file(tensors, path, {"ss_seed": "1", "sshs_legacy_hash": "kept"})
        assert convert_lora(path, out, to=name) == name
        assert out.read_bytes() == path.read_bytes()


def test_converting_keeps_the_metadata_and_mends_what_would_be_untrue(tmp_path):
    info = TrainingInfo(**INFO)
    metadata = sd_scripts_metadata(info, steps=120, epoch=4, finished_at=1_700_000_000.5)
    save_lora(tmp_path / "sd.safetensors", small_lora(), metadata)
    convert_lora(tmp_path / "sd.safetensors", tmp_path / "df.safetensors", to="diffusers")
    convert_lora(tmp_path / "df.safetensors", tmp_path / "sd2.safetensors", to="sd-scripts")
    first, middle, last = (read_lora(tmp_path / f"{n}.safetensors")[1] for n in ("sd", "df", "sd2"))
    assert last == {**first, "format": "pt"}
    changed = {key for key in middle if middle[key] != last[key]}
    assert changed == {"modelspec.implementation", "modelspec.hash_sha256", "sshs_model_hash"}
    assert middle["modelspec.implementation"] == "diffusers"
    one, two = (load_file(tmp_path / f"{n}.safetensors") for n in ("sd", "sd2"))
    assert all(torch.equal(one[key], two[key]) for key in one) and set(one) == set(two)


# Metadata

INFO = {
    "output_name": "my-cat",
    "network_dim": 4,
    "network_alpha": 1.0,
    "learning_rate": 8e-4,
    "num_train_images": 200,
    "num_epochs": 16,
    "max_train_steps": 3200,
    "seed": 42,
    "resolution": (512, 768),
}


def test_metadata_has_sd_scripts_names_and_strings_only():
    info = TrainingInfo(
        **INFO,
        flux_type="schnell",
        gradient_checkpointing=True,
        tag_frequency={"dataset": count_tags(["r1so, a Fox", "r1so,a fox, ", "A sentence without one"])},
        trigger_phrase="r1so",
    )
    metadata = sd_scripts_metadata(info, steps=120, epoch=4, finished_at=1_700_000_000.5)
    assert all(isinstance(key, str) and isinstance(value, str) for key, value in metadata.items())
    assert metadata == {
        "ss_output_name": "my-cat",
        "ss_network_module": "networks.lora_flux",
        "ss_network_dim": "4",
        "ss_network_alpha": "1.0",
        "ss_learning_rate": "0.0008",
        "ss_num_train_images": "200",
        "ss_num_epochs": "16",
        "ss_max_train_steps": "3200",
        "ss_seed": "42",
        "ss_resolution": "(512, 768)",
        "ss_gradient_checkpointing": "True",
        "ss_tag_frequency": '{"dataset": {"r1so": 2, "a fox": 2, "a sentence without one": 1}}',
        "ss_base_model_version": "flux1",
        "ss_v2": "False",
        "ss_steps": "120",
        "ss_epoch": "4",
        "ss_training_finished_at": "1700000000.5",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "flux-1-schnell/lora",
        "modelspec.implementation": "https://github.com/black-forest-labs/flux",
        "modelspec.title": "my-cat",
        "modelspec.resolution": "512x768",
        "modelspec.date": "2023-11-14T22:13:20+00:00",
        "modelspec.trigger_phrase": "r1so",
    }


def test_a_files_thumbnail_is_a_small_picture_and_its_implementation_goes_by_its_names():
    import base64
    import io

    from PIL import Image

    from fluxcore.training.metadata import thumbnail_of

    url = thumbnail_of(Image.new("RGBA", (1024, 512), "coral"))
    info = TrainingInfo(**INFO, thumbnail=url, lora_format="diffusers", license="apache-2.0")
    metadata = sd_scripts_metadata(info, steps=1, epoch=1, finished_at=0)
    kind, _, data = metadata["modelspec.thumbnail"].partition(",")
    assert kind == "data:image/jpeg;base64" and len(data) < 20_000
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (256, 128)
    assert metadata["modelspec.implementation"] == "diffusers"
    assert metadata["modelspec.license"] == "apache-2.0" and "ss_lora_format" not in metadata


def test_what_a_run_knows_wins_over_what_it_took_over():
    extra = {"ss_seed": "7", "ss_training_comment": "first try", "civitai": "kept"}
    metadata = sd_scripts_metadata(TrainingInfo(**INFO, flux_type="mini"), steps=1, epoch=1, finished_at=0, extra=extra)
    assert (metadata["ss_seed"], metadata["ss_training_comment"], metadata["civitai"]) == ("42", "first try", "kept")
    assert metadata["modelspec.architecture"] == "flux-1/lora"
