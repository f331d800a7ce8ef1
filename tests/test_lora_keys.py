"""LoRA key formats: what is exact is compared with `torch.equal`, with the deltas worked out here in float64.

Matrices of the delta tests have few bits (integers / 64), so that float64 sums them without rounding in any order:
a difference is then a difference of the LoRA, not of the arithmetic.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from fluxcore.training.lora_keys import (
    TO_FORMAT,
    LoraFormatError,
    detect_format,
    to_comfyui,
    to_diffusers,
    to_peft,
    to_sd_scripts,
)

torch.set_num_threads(1)

WIDTH = 32
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Q, K, V, MLP = "attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"

# Written out once more, by hand, from both models' source: (sd-scripts, diffusers, in / width, out / width).
NAMES = [
    ("double_blocks_3_img_attn_qkv", [f"transformer_blocks.3.{p}" for p in (Q, K, V)], 1, [1, 1, 1]),
    ("double_blocks_3_img_attn_proj", ["transformer_blocks.3.attn.to_out.0"], 1, [1]),
    ("double_blocks_3_img_mlp_0", ["transformer_blocks.3.ff.net.0.proj"], 1, [4]),
    ("double_blocks_3_img_mlp_2", ["transformer_blocks.3.ff.net.2"], 4, [1]),
    ("double_blocks_3_img_mod_lin", ["transformer_blocks.3.norm1.linear"], 1, [6]),
    (
        "double_blocks_11_txt_attn_qkv",
        [f"transformer_blocks.11.attn.add_{p}_proj" for p in "qkv"],
        1,
        [1, 1, 1],
    ),
    ("double_blocks_11_txt_attn_proj", ["transformer_blocks.11.attn.to_add_out"], 1, [1]),
    ("double_blocks_11_txt_mlp_0", ["transformer_blocks.11.ff_context.net.0.proj"], 1, [4]),
    ("double_blocks_11_txt_mlp_2", ["transformer_blocks.11.ff_context.net.2"], 4, [1]),
    ("double_blocks_11_txt_mod_lin", ["transformer_blocks.11.norm1_context.linear"], 1, [6]),
    ("single_blocks_37_linear1", [f"single_transformer_blocks.37.{p}" for p in (Q, K, V, MLP)], 1, [1, 1, 1, 4]),
    ("single_blocks_37_linear2", ["single_transformer_blocks.37.proj_out"], 5, [1]),
    ("single_blocks_37_modulation_lin", ["single_transformer_blocks.37.norm.linear"], 1, [3]),
    ("img_in", ["x_embedder"], 2, [1]),
    ("txt_in", ["context_embedder"], 2, [1]),
    ("time_in_in_layer", ["time_text_embed.timestep_embedder.linear_1"], 2, [1]),
    ("time_in_out_layer", ["time_text_embed.timestep_embedder.linear_2"], 1, [1]),
    ("guidance_in_in_layer", ["time_text_embed.guidance_embedder.linear_1"], 2, [1]),
    ("guidance_in_out_layer", ["time_text_embed.guidance_embedder.linear_2"], 1, [1]),
    ("vector_in_in_layer", ["time_text_embed.text_embedder.linear_1"], 2, [1]),
    ("vector_in_out_layer", ["time_text_embed.text_embedder.linear_2"], 1, [1]),
    ("final_layer_adaLN_modulation_1", ["norm_out.linear"], 1, [2]),
    ("final_layer_linear", ["proj_out"], 1, [2]),
]
SHAPES = {path: (n_in, n_out) for _, paths, n_in, outs in NAMES for path, n_out in zip(paths, outs, strict=True)}
ALL = list(SHAPES)
SUBSETS = {
    "all": ALL,
    "attention": [p for p in ALL if ".attn." in p],
    "image attention": [p for p in ALL if p.endswith((Q, K, V))],
    "single blocks": [p for p in ALL if p.startswith("single_")],
    "q alone": [p for p in ALL if p.endswith(Q)],
    "k and v": [p for p in ALL if p.endswith((K, V))],
    "v and mlp": [p for p in ALL if p.endswith((V, MLP))],
    "proj_mlp alone": [p for p in ALL if p.endswith(MLP)],
    "mlps": [p for p in ALL if ".ff" in p or p.endswith((MLP, "single_transformer_blocks.37.proj_out"))],
}


def few_bits(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = (
        torch.randint(1, 127, shape, generator=generator)
        * torch.tensor([-1, 1])[torch.randint(0, 2, shape, generator=generator)]
    )
    return (values / 64).to(dtype)


def full_bits(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def peft_lora(paths, rank=4, dtype=torch.float32, make=few_bits, width=WIDTH) -> dict[str, torch.Tensor]:
    """A LoRA as `get_peft_model_state_dict` gives it; `rank` is a number or a function of the module's path."""
    state = {}
    for i, path in enumerate(paths):
        r = rank(path) if callable(rank) else rank
        n_in, n_out = SHAPES[path]
        state[f"{path}.lora_A.weight"] = make(r, n_in * width, dtype=dtype, seed=2 * i)
        state[f"{path}.lora_B.weight"] = make(n_out * width, r, dtype=dtype, seed=2 * i + 1)
    return state


def sd_lora(names, rank=4, alpha=1.0, dtype=torch.float32, make=few_bits, width=WIDTH) -> dict[str, torch.Tensor]:
    """A LoRA as sd-scripts trains it: one dense pair per module of its own."""
    state = {}
    for i, (name, _, n_in, outs) in enumerate(entry for entry in NAMES if entry[0] in names):
        state[f"lora_unet_{name}.lora_down.weight"] = make(rank, n_in * width, dtype=dtype, seed=2 * i)
        state[f"lora_unet_{name}.lora_up.weight"] = make(sum(outs) * width, rank, dtype=dtype, seed=2 * i + 1)
        state[f"lora_unet_{name}.alpha"] = torch.tensor(alpha, dtype=dtype)
    return state


def one_delta(down, up, alpha) -> torch.Tensor:
    return (up.double() @ down.double()) * (float(alpha) / down.shape[0])


def peft_deltas(state, alpha=None, prefix="") -> dict[str, torch.Tensor]:
    """What a LoRA of diffusers' names adds to each module, (out, in)."""
    deltas = {}
    for key, down in state.items():
        if not key.endswith(".lora_A.weight"):
            continue
        path = key.removesuffix(".lora_A.weight")
        if alpha is None:
            own = state.get(f"{path}.alpha", torch.tensor(float(down.shape[0]))).item()
        else:
            own = alpha[path] if isinstance(alpha, dict) else alpha
        deltas[path.removeprefix(prefix)] = one_delta(down, state[f"{path}.lora_B.weight"], own)
    return deltas


def sd_deltas(state, width=WIDTH) -> dict[str, torch.Tensor]:
    """What a LoRA of sd-scripts' names adds to each of diffusers' modules; a module that it leaves as it is: zeros."""
    deltas = {}
    for name, paths, _, outs in NAMES:
        full = f"lora_unet_{name}"
        if f"{full}.lora_down.weight" not in state:
            continue
        delta = one_delta(
            state[f"{full}.lora_down.weight"], state[f"{full}.lora_up.weight"], state[f"{full}.alpha"].item()
        )
        rows = delta.split([n * width for n in outs])
        if name == "final_layer_adaLN_modulation_1":  # (shift, scale) there, (scale, shift) in diffusers
            rows = [torch.cat([delta[width:], delta[:width]])]
        deltas.update(zip(paths, rows, strict=True))
    return deltas


def assert_same_deltas(ours: dict, theirs: dict) -> None:
    assert set(theirs) <= set(ours)
    for path in ours:
        expected = theirs.get(path, torch.zeros_like(ours[path]))
        assert torch.equal(ours[path], expected), path


def assert_identical(a: dict, b: dict) -> None:
    assert set(a) == set(b)
    for key in a:
        assert a[key].dtype == b[key].dtype and a[key].shape == b[key].shape, key
        assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize(("sd_name", "paths", "_n_in", "_outs"), NAMES, ids=[entry[0] for entry in NAMES])
def test_every_module_has_its_counterpart(sd_name, paths, _n_in, _outs):
    sd = to_sd_scripts(peft_lora(paths), alpha=1)
    assert set(sd) == {f"lora_unet_{sd_name}.{part}" for part in ("lora_down.weight", "lora_up.weight", "alpha")}
    back = to_diffusers(sd)
    assert set(back) == {
        f"transformer.{p}.{part}" for p in paths for part in ("lora_A.weight", "lora_B.weight", "alpha")
    }


CASES = list(
    itertools.chain(
        ((subset, 4, 1.0, torch.float32) for subset in SUBSETS),
        (("all", rank, alpha, torch.float32) for rank, alpha in ((1, 1.0), (3, 1.0), (8, 16.0), (5, 0.1), (12, 7.0))),
        (("attention", 3, 1.0, dtype) for dtype in DTYPES),
        (("v and mlp", 6, 100.0, dtype) for dtype in DTYPES),
    )
)


@pytest.mark.parametrize(("subset", "rank", "alpha", "dtype"), CASES)
def test_diffusers_to_sd_scripts_and_back_is_bit_exact(subset, rank, alpha, dtype):
    original = to_diffusers(peft_lora(SUBSETS[subset], rank, dtype, full_bits), alpha=alpha)
    sd = to_sd_scripts(original)
    assert detect_format(sd) == "sd-scripts"
    assert_identical(to_diffusers(sd), original)


@pytest.mark.parametrize(("subset", "rank", "alpha", "dtype"), CASES)
def test_the_deltas_stay_exactly_the_same(subset, rank, alpha, dtype):
    state = peft_lora(SUBSETS[subset], rank, dtype)
    held = torch.tensor(alpha, dtype=torch.float32).item()
    sd = to_sd_scripts(state, alpha=alpha)
    assert_same_deltas(sd_deltas(sd), peft_deltas(state, held))
    assert_same_deltas(peft_deltas(to_diffusers(sd), prefix="transformer."), peft_deltas(state, held))


def test_fused_modules_are_block_diagonal_with_the_same_scale():
    state = peft_lora(SUBSETS["all"], rank=4)
    sd = to_sd_scripts(state, alpha=1.0)
    name = "lora_unet_single_blocks_37_linear1"
    down, up, alpha = (sd[f"{name}.{part}"] for part in ("lora_down.weight", "lora_up.weight", "alpha"))
    assert down.shape == (16, WIDTH) and up.shape == (7 * WIDTH, 16) and alpha.item() == 4.0
    ups = [state[f"single_transformer_blocks.37.{p}.lora_B.weight"] for p in (Q, K, V, MLP)]
    assert torch.equal(up, torch.block_diag(*ups))


def test_ranks_per_module_round_trip_where_the_scale_is_the_same():
    def rank(path):
        return 2 + len(path) % 5 + 3 * path.endswith(K)

    paths = [path for path in ALL if path != "proj_out"]
    state = peft_lora(paths, rank, make=full_bits)
    alpha = {path: 0.5 * rank(path) for path in paths}
    original = to_diffusers(state, alpha=alpha)
    assert_identical(to_diffusers(to_sd_scripts(original)), original)


def test_ranks_per_module_with_one_alpha_keep_the_deltas_where_scales_differ_by_a_power_of_two():
    def rank(path):
        return 8 if path.endswith(Q) else 2 if path.endswith(V) else 4

    for dtype in DTYPES:
        state = peft_lora(ALL, rank, dtype)
        assert_same_deltas(sd_deltas(to_sd_scripts(state, alpha=1.0)), peft_deltas(state, 1.0))


def test_scales_that_no_single_alpha_holds_are_refused():
    state = peft_lora(SUBSETS["image attention"], rank=lambda path: 3 if path.endswith(Q) else 4)
    with pytest.raises(LoraFormatError, match=r"1/3, 1/4.*one alpha / rank"):
        to_sd_scripts(state, alpha=1.0)
    # Three times 1 + 2**-23 has a bit too many for float32, though dividing by three gives it back.
    paths = [f"transformer_blocks.3.{p}" for p in (Q, K)]
    state = peft_lora(paths)
    state[f"{paths[0]}.lora_A.weight"].fill_(1 + 2**-23)
    for alphas in ((3.0, 1.0), (1.0, 0.0), (1.0, -2.0)):
        with pytest.raises(LoraFormatError, match="exactly"):
            to_sd_scripts(state, alpha=dict(zip(paths, alphas, strict=True)))
    # A power of two that would push bits out of float16 is no exact factor either.
    state = peft_lora(paths, dtype=torch.float16)
    state[f"{paths[0]}.lora_A.weight"].fill_(6e4)
    with pytest.raises(LoraFormatError, match="exactly"):
        to_sd_scripts(state, alpha=dict(zip(paths, (4.0, 1.0), strict=True)))


def test_ups_that_are_still_zero_keep_their_blocks():
    state = peft_lora(ALL, rank=4, make=full_bits)
    for key in state:
        if key.endswith("lora_B.weight"):
            state[key].zero_()
    original = to_diffusers(state, alpha=1.0)
    assert_identical(to_diffusers(to_sd_scripts(original)), original)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rank", "alpha"), [(4, 1.0), (6, 1.0), (16, 16.0), (12, 0.75)])
def test_a_dense_sd_scripts_lora_there_and_back_is_bit_exact(rank, alpha, dtype):
    original = sd_lora([entry[0] for entry in NAMES], rank, alpha, dtype)
    diffusers = to_diffusers(original)
    assert_same_deltas(peft_deltas(diffusers, prefix="transformer."), sd_deltas(original))
    q, mlp = (diffusers[f"transformer.single_transformer_blocks.37.{p}.lora_A.weight"] for p in (Q, MLP))
    assert torch.equal(q, mlp) and q.data_ptr() != mlp.data_ptr()  # shared in value, each with memory of its own
    assert_identical(to_sd_scripts(diffusers), original)


@pytest.mark.parametrize("alpha", [1.0, 3.0, 8.0])
def test_a_block_diagonal_sd_scripts_lora_there_and_back_is_bit_exact(alpha):
    """What sd-scripts saves with `split_qkv=True`: rank 3r / 4r, and the alpha of one block."""
    original = sd_lora(["img_in"])
    for name, blocks, mlp in (("double_blocks_3_img_attn_qkv", 3, 0), ("single_blocks_37_linear1", 4, 4)):
        ups = [few_bits(n * WIDTH, 2, dtype=torch.float32, seed=i) for i, n in enumerate([1, 1, 1, mlp][:blocks])]
        original[f"lora_unet_{name}.lora_down.weight"] = few_bits(2 * blocks, WIDTH, dtype=torch.float32, seed=9)
        original[f"lora_unet_{name}.lora_up.weight"] = torch.block_diag(*ups)
        original[f"lora_unet_{name}.alpha"] = torch.tensor(alpha)
    diffusers = to_diffusers(original)
    assert_same_deltas(peft_deltas(diffusers, prefix="transformer."), sd_deltas(original))
    assert_identical(to_sd_scripts(diffusers), original)
    ranks = {p: diffusers[f"transformer.transformer_blocks.3.{p}.lora_A.weight"].shape[0] for p in (Q, K, V)}
    # alpha 1 over rank 6 would be 1/3 over rank 2, which no float is: then every projection keeps all six.
    assert set(ranks.values()) == ({2} if alpha == 3.0 else {6})
    assert diffusers[f"transformer.single_transformer_blocks.37.{Q}.lora_A.weight"].shape[0] == 2


def test_a_column_of_zeros_changes_no_delta():
    state = peft_lora(SUBSETS["k and v"], rank=4)
    state[f"single_transformer_blocks.37.{V}.lora_B.weight"][:, 0] = 0  # at the border of two blocks
    state[f"transformer_blocks.3.{K}.lora_B.weight"][:, 2] = 0  # within one
    state[f"transformer_blocks.3.{K}.lora_B.weight"][:, 0] = 0  # before all
    sd = to_sd_scripts(state, alpha=1.0)
    back = to_diffusers(sd)
    assert_same_deltas(peft_deltas(back, prefix="transformer."), peft_deltas(state, 1.0))
    assert_identical(to_sd_scripts(back), sd)
    assert back[f"transformer.transformer_blocks.3.{K}.lora_A.weight"].shape[0] == 4
    assert back[f"transformer.single_transformer_blocks.37.{V}.lora_A.weight"].shape[0] == 3  # it went to k


def test_blocks_in_another_order_count_as_dense():
    sd = to_sd_scripts(peft_lora(SUBSETS["image attention"], rank=4), alpha=1.0)
    for key in sd:
        if key.endswith("lora_down.weight"):
            sd[key] = sd[key].roll(4, dims=0)
        elif key.endswith("lora_up.weight"):
            sd[key] = sd[key].roll(4, dims=1)
    diffusers = to_diffusers(sd)
    assert_same_deltas(sd_deltas(sd), peft_deltas(diffusers, prefix="transformer."))
    assert_identical(to_sd_scripts(diffusers), sd)


def test_one_down_with_several_alphas_is_not_dense():
    state = peft_lora(SUBSETS["image attention"], rank=4)
    for key in state:
        if key.endswith("lora_A.weight"):
            state[key] = state[f"transformer_blocks.3.{Q}.lora_A.weight"]
    alpha = {path: 2.0 if path.endswith(K) else 1.0 for path in SUBSETS["image attention"]}
    assert_same_deltas(sd_deltas(to_sd_scripts(state, alpha=alpha)), peft_deltas(state, alpha))


@pytest.mark.parametrize("width", [24, 192])
def test_the_width_comes_from_the_tensors(width):
    original = to_diffusers(peft_lora(ALL, width=width, make=full_bits), alpha=2.0)
    assert_identical(to_diffusers(to_sd_scripts(original)), original)


def test_the_last_modulation_has_its_halves_changed_over():
    state = peft_lora(["norm_out.linear"])
    up = to_sd_scripts(state)["lora_unet_final_layer_adaLN_modulation_1.lora_up.weight"]
    scale, shift = state["norm_out.linear.lora_B.weight"].chunk(2)
    assert torch.equal(up, torch.cat([shift, scale]))


def test_clip_l_has_both_forms():
    sd = {}
    for name, n_in, n_out in (("self_attn_out_proj", 1, 1), ("mlp_fc1", 1, 4), ("mlp_fc2", 4, 1)):
        full = f"lora_te1_text_model_encoder_layers_10_{name}"
        sd[f"{full}.lora_down.weight"] = full_bits(4, n_in * 16, dtype=torch.float32, seed=n_in)
        sd[f"{full}.lora_up.weight"] = full_bits(n_out * 16, 4, dtype=torch.float32, seed=n_out)
        sd[f"{full}.alpha"] = torch.tensor(1.0)
    diffusers = to_diffusers(sd)
    assert "text_encoder.text_model.encoder.layers.10.mlp.fc1.lora_A.weight" in diffusers
    assert_identical(to_sd_scripts(diffusers), sd)
    flat = {key.replace("text_model.", ""): tensor for key, tensor in diffusers.items()}  # as transformers 5 has it
    assert_identical(to_sd_scripts(flat), sd)
    with pytest.raises(LoraFormatError, match="no module of the transformer"):
        to_peft(sd)


def test_alpha_tensors_have_the_dtype_that_holds_them():
    state = peft_lora(ALL, rank=4, dtype=torch.bfloat16)
    assert all(t.dtype == torch.bfloat16 for t in to_sd_scripts(state, alpha=16.0).values())
    sd = to_sd_scripts(state, alpha=100.25)  # bfloat16's 8 bits are not enough
    alphas = [tensor for key, tensor in sd.items() if key.endswith(".alpha")]
    assert all(tensor.dtype == torch.float32 and tensor.ndim == 0 for tensor in alphas)
    assert {tensor.item() for tensor in alphas} == {100.25, 300.75, 401.0}
    # Three times float32's 0.1 needs float64.
    assert to_sd_scripts(state, alpha=0.1)["lora_unet_double_blocks_3_img_attn_qkv.alpha"].dtype == torch.float64
    assert all(t.dtype == torch.float32 for k, t in to_diffusers(sd).items() if k.endswith(".alpha"))


def test_where_an_alpha_comes_from():
    path = "transformer_blocks.3.attn.to_out.0"
    state = peft_lora([path], rank=4)
    key = "lora_unet_double_blocks_3_img_attn_proj.alpha"
    assert to_sd_scripts(state)[key].item() == 4.0  # none: a scale of 1
    assert to_sd_scripts(state, alpha=2)[key].item() == 2.0
    assert to_sd_scripts(state, alpha={path: 3.0})[key].item() == 3.0
    assert to_sd_scripts({**state, f"{path}.alpha": torch.tensor(8.0)}, alpha=2.0)[key].item() == 8.0
    assert to_sd_scripts({**state, f"{path}.alpha": torch.tensor([8])})[key].item() == 8.0
    sd = sd_lora(["img_in"], rank=6)
    del sd["lora_unet_img_in.alpha"]
    assert to_diffusers(sd)["transformer.x_embedder.alpha"].item() == 6.0
    with pytest.raises(LoraFormatError, match="no alpha was given for transformer.transformer_blocks.3"):
        to_sd_scripts(state, alpha={"proj_out": 3.0})
    with pytest.raises(LoraFormatError, match="alpha is nan"):
        to_sd_scripts(state, alpha=float("nan"))


def test_to_peft_gives_what_a_trainer_continues_from():
    state = peft_lora(ALL, rank=4, make=full_bits)
    for form in (to_sd_scripts(state, alpha=2.0), to_diffusers(state, alpha=2.0)):
        again, alphas = to_peft(form)
        assert_identical(again, state)
        assert alphas == dict.fromkeys(ALL, 2.0)


# ComfyUI's names are Black Forest Labs' own, as in `flux1-dev.safetensors`; written out by hand.
COMFYUI = {
    "double_blocks_3_img_attn_qkv": "double_blocks.3.img_attn.qkv",
    "double_blocks_3_img_attn_proj": "double_blocks.3.img_attn.proj",
    "double_blocks_3_img_mlp_0": "double_blocks.3.img_mlp.0",
    "double_blocks_3_img_mlp_2": "double_blocks.3.img_mlp.2",
    "double_blocks_3_img_mod_lin": "double_blocks.3.img_mod.lin",
    "double_blocks_11_txt_attn_qkv": "double_blocks.11.txt_attn.qkv",
    "double_blocks_11_txt_attn_proj": "double_blocks.11.txt_attn.proj",
    "double_blocks_11_txt_mlp_0": "double_blocks.11.txt_mlp.0",
    "double_blocks_11_txt_mlp_2": "double_blocks.11.txt_mlp.2",
    "double_blocks_11_txt_mod_lin": "double_blocks.11.txt_mod.lin",
    "single_blocks_37_linear1": "single_blocks.37.linear1",
    "single_blocks_37_linear2": "single_blocks.37.linear2",
    "single_blocks_37_modulation_lin": "single_blocks.37.modulation.lin",
    "img_in": "img_in",
    "txt_in": "txt_in",
    "time_in_in_layer": "time_in.in_layer",
    "time_in_out_layer": "time_in.out_layer",
    "guidance_in_in_layer": "guidance_in.in_layer",
    "guidance_in_out_layer": "guidance_in.out_layer",
    "vector_in_in_layer": "vector_in.in_layer",
    "vector_in_out_layer": "vector_in.out_layer",
    "final_layer_adaLN_modulation_1": "final_layer.adaLN_modulation.1",
    "final_layer_linear": "final_layer.linear",
}


@pytest.mark.parametrize("make", [lambda: to_sd_scripts(peft_lora(ALL), alpha=2.0), lambda: sd_lora(list(COMFYUI))])
def test_comfyuis_names_are_the_models_own(make):
    sd = make()
    comfyui = to_comfyui(sd)
    parts = ("lora_down.weight", "lora_up.weight", "alpha")
    assert_identical(
        comfyui,
        {f"diffusion_model.{new}.{p}": sd[f"lora_unet_{old}.{p}"] for old, new in COMFYUI.items() for p in parts},
    )
    assert detect_format(comfyui) == "comfyui"
    assert_identical(to_sd_scripts(comfyui), sd)
    peft_parts = {"lora_down": "lora_A", "lora_up": "lora_B"}
    renamed = {key.replace(a, b): t for a, b in peft_parts.items() for key, t in comfyui.items() if a in key}
    alphas = {key: t for key, t in comfyui.items() if key.endswith("alpha")}
    assert_identical(to_sd_scripts(renamed | alphas), sd)


def test_clip_l_has_comfyuis_names_too():
    name = "lora_te1_text_model_encoder_layers_10_self_attn_out_proj"
    sd = {f"{name}.lora_down.weight": torch.ones(1, 4), f"{name}.lora_up.weight": torch.ones(4, 1)}
    sd[f"{name}.alpha"] = torch.tensor(1.0)
    comfyui = to_comfyui(sd)
    assert "text_encoders.clip_l.transformer.text_model.encoder.layers.10.self_attn.out_proj.alpha" in comfyui
    assert_identical(to_sd_scripts(comfyui), sd)
    with pytest.raises(LoraFormatError, match="part of CLIP-L"):
        TO_FORMAT["peft"](sd)


@pytest.mark.parametrize(("one", "other"), itertools.permutations(TO_FORMAT, 2))
def test_there_and_back_is_exact_between_any_two_forms(one, other):
    original = TO_FORMAT[one](peft_lora(ALL, make=full_bits), 2.0)
    there = TO_FORMAT[other](original)
    assert (detect_format(original), detect_format(there)) == (one, other)
    assert_identical(TO_FORMAT[one](there), original)


def test_every_form_converts_to_itself():
    original = to_diffusers(peft_lora(ALL, make=full_bits), alpha=2.0)
    assert_identical(to_diffusers(original), original)
    sd = to_sd_scripts(original)
    assert_identical(to_sd_scripts(sd), sd)
    dense = sd_lora([entry[0] for entry in NAMES], make=full_bits)
    assert_identical(to_sd_scripts(dense), dense)


@pytest.mark.parametrize("make", [lambda: to_sd_scripts(peft_lora(ALL), alpha=1.0), lambda: sd_lora([NAMES[0][0]])])
def test_splitting_shares_no_memory_with_the_input(make):
    sd = make()
    before = {key: tensor.clone() for key, tensor in sd.items()}
    for key, tensor in to_diffusers(sd).items():
        if key.partition(".lora_")[0].endswith((Q, K, V)):
            tensor.zero_()
    assert_identical(sd, before)


def test_what_diffusers_would_misread_is_refused():
    state = peft_lora(["proj_out", "single_transformer_blocks.37.proj_out"])
    assert to_diffusers(state, alpha=1.0)
    mixed = {"proj_out": 2.0, "single_transformer_blocks.37.proj_out": 1.0}
    with pytest.raises(LoraFormatError, match="final layer"):
        to_diffusers(state, alpha=mixed)
    assert to_sd_scripts(state, alpha=mixed)
    te = {}
    for name, alpha in (("mlp_fc1", 1.0), ("mlp_fc2", 2.0)):
        te[f"lora_te1_text_model_encoder_layers_0_{name}.lora_down.weight"] = torch.ones(1, 4)
        te[f"lora_te1_text_model_encoder_layers_0_{name}.lora_up.weight"] = torch.ones(4, 1)
        te[f"lora_te1_text_model_encoder_layers_0_{name}.alpha"] = torch.tensor(alpha)
    with pytest.raises(LoraFormatError, match="text encoder"):
        to_diffusers(te)


def _without(state, key):
    return {k: v for k, v in state.items() if k != key}


QKV = "lora_unet_double_blocks_3_img_attn_qkv"


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "not a FLUX LoRA: names such as none at all"),
        ({"model.weight": torch.zeros(2, 2)}, "not a FLUX LoRA: names such as 'model.weight'"),
        (sd_lora(["img_in"]) | peft_lora(["x_embedder"]), "several LoRA formats"),
        (sd_lora(["img_in"]) | {"lora_te3_encoder_block_0.alpha": torch.ones(())}, "1 of 4 tensors.*'lora_te3_encoder"),
        (
            {f"lora_unet_input_blocks_{i}.lora_down.weight": torch.ones(1, 2) for i in range(9)},
            "9 of 9 tensors belong to no FLUX.1 LoRA: .*input_blocks_2.lora_down.weight', ….",
        ),
        (peft_lora(["proj_out"]) | {"proj_out.lora_magnitude_vector": torch.ones(4)}, "1 of 3.*DoRA"),
        (sd_lora(["img_in"]) | {"lora_unet_img_in.lora_down.0.weight": torch.ones(1, 2)}, "1 of 4 tensors"),
        ({"base_model.model.proj_out.lora_A.weight": torch.ones(1, 2)}, "base_model.model.proj_out"),
        (_without(sd_lora(["img_in"]), "lora_unet_img_in.lora_up.weight"), r"only \['alpha', 'down'\]"),
        (_without(peft_lora(["proj_out"]), "proj_out.lora_A.weight"), r"only \['up'\]"),
        (peft_lora(["proj_out"]) | {"proj_out.lora_A.weight": torch.ones(3, 32)}, r"\(3, 32\) and up \(64, 4\)"),
        (peft_lora(["proj_out"]) | {"proj_out.lora_A.weight": torch.ones(4)}, r"not \(rank, in\)"),
        (peft_lora(["proj_out"]) | {"proj_out.lora_A.weight": torch.ones(4, 32).int()}, "torch.int32"),
        (sd_lora(["img_in"]) | {"lora_unet_img_in.alpha": torch.ones(2)}, "2 values"),
        (
            sd_lora(["double_blocks_3_img_attn_qkv"]) | {f"{QKV}.lora_up.weight": torch.ones(4 * WIDTH, 4)},
            "width can't be derived. It reads 32 features, so it should write 96; it writes 128",
        ),
        (
            peft_lora([f"transformer_blocks.3.{Q}"])
            | {f"transformer_blocks.3.{Q}.lora_B.weight": torch.ones(2 * WIDTH, 4)},
            "width can't be derived. A projection maps 32 features to 64; from 32 to 32",
        ),
    ],
)
def test_what_is_no_lora_is_refused_by_name(state, message):
    with pytest.raises(LoraFormatError, match=message):
        to_sd_scripts(to_diffusers(state, alpha=None))
