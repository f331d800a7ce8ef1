"""The planner: its counts against closed forms, its memory against a real run, its composition against a full depth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fluxcore.config import RunConfig, resolve_config
from fluxcore.models.lora_size import FLUX_1
from fluxcore.models.registry import find_model
from fluxcore.planner import PlanError, advice, plan, verdict
from fluxcore.planner import plan as plan_function
from fluxcore.planner.hardware import CONTEXT_BYTES, GPUS, size_of
from fluxcore.planner.plan import make_plan, proven_advice
from fluxcore.planner.request import batches_of, largest_sample, request_of
from fluxcore.planner.shapes import model_files

GIB = 2**30
FOUND: dict[str, Any] = {
    "parameters": 11_901_408_320, "base_bytes": 23_802_816_640, "double_bytes": 679_662_592,
    "single_bytes": 283_183_616, "largest_bytes": 113_246_208, "lora_parameters": 21_479_424, "lora_edges": 5_373_808,
    "train_bytes": 880_431_120, "train_reserve": [120_000_000, 251_878_762], "kept_bytes": 552_488_964, "step_flops": 67_102_118_412_288,
    "sample_bytes": 516_492_292, "sample_reserve": [100_000_000, 244_836_726], "vae_bytes": 335_278_732, "encode_bytes": 671_088_640,
    "encode_reserve": [16_000_000, 173_280_628], "decode_bytes": 3_221_225_472, "decode_reserve": [20_000_000, 694_160_756],
    "text_bytes": 10_033_934_848, "text_peak_bytes": 96_600_064,
}  # fmt: skip
"""What measure.py says of FLUX.1-dev in bf16 at 512 pixels, rank 4, with gradient checkpointing."""


def flux(**settings: Any) -> RunConfig:
    return resolve_config({"base_model": "flux-dev", "vram": "48G", "gradient_checkpointing_interval": 1, **settings})


def flux_parameters(width: int, doubles: int, singles: int, text: int, channels: int, pooled: int, head: int) -> int:
    """Of a FLUX transformer with guidance, by hand: matrices and their biases, and the norms of queries and keys."""
    linear = lambda inputs, outputs: (inputs + 1) * outputs
    embedder = lambda inputs: linear(inputs, width) + linear(width, width)
    double = 2 * (linear(width, 6 * width) + 4 * linear(width, width) + 2 * head)
    double += 2 * (linear(width, 4 * width) + linear(4 * width, width))
    single = linear(width, 3 * width) + 3 * linear(width, width) + 2 * head
    single += linear(width, 4 * width) + linear(5 * width, width)
    around = embedder(256) * 2 + embedder(pooled) + linear(text, width) + linear(channels, width)
    around += linear(width, 2 * width) + linear(width, channels)
    return doubles * double + singles * single + around


def test_flux_1_counts_are_the_closed_forms_and_the_published_twelve_billion() -> None:
    torch = pytest.importorskip("torch")
    from fluxcore.planner.measure import build_transformer

    files = model_files(find_model("flux-dev"))
    with torch.device("meta"):
        model = build_transformer(files["transformer"], torch.bfloat16)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == flux_parameters(3072, 19, 38, 4096, 64, 768, 128) == 11_901_408_320
    assert FLUX_1.trained * 4 == FOUND["lora_parameters"]
    # A step's arithmetic: every matrix forward, again for the backward pass, and its transpose; attention besides.
    tokens = 512 + 1024
    matrices = 3 * 2 * (tokens * 19 * 12 + tokens * 38 * 12) * 3072**2
    attention = 57 * 24 * (2 + 5 / 2) * 2 * 2 * tokens**2 * 128
    assert FOUND["step_flops"] == pytest.approx(matrices + attention, rel=0.01)


def tiny_request(**changes: Any) -> dict[str, Any]:
    mini = model_files(find_model("flux-mini"))
    transformer = {
        "attention_head_dim": 32, "axes_dims_rope": [8, 12, 12], "guidance_embeds": True, "in_channels": 64,
        "joint_attention_dim": 64, "num_attention_heads": 4, "num_layers": 1, "num_single_layers": 2, "patch_size": 1,
        "pooled_projection_dim": 64,
    }  # fmt: skip
    request = {
        **mini, "transformer": transformer, "precision": "bf16", "held": "none", "rank": 4, "checkpointing": True,
        "batch": 2, "tokens": 32, "size": [128, 128], "sample_size": [64, 64],
    }  # fmt: skip
    return request | changes


@pytest.mark.parametrize("checkpointing", [False, True])
def test_planned_activations_are_those_of_a_real_run(checkpointing: bool) -> None:
    """The same step with real tensors on the CPU: what autograd keeps, by torch's own saved-tensor hooks."""
    import torch

    from fluxcore.models.frozen import train_in_32_bit
    from fluxcore.planner import measure
    from fluxcore.planner.live import Live

    request = tiny_request(checkpointing=checkpointing)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with measure._default(torch.bfloat16):
            model = measure.FluxTransformer2DModel.from_config(request["transformer"]).requires_grad_(False)
        model.add_adapter(measure.LoraConfig(r=4, lora_alpha=4, target_modules=measure.LORA_TARGETS))
        trained = train_in_32_bit(model, torch.bfloat16, measure.CPU)
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.train()
        inputs = measure._inputs(model, torch.bfloat16, 2, (128, 128), 32, 8)
        saved: dict[int, torch.Tensor] = {}
        known = {tensor.untyped_storage()._cdata for tensor in measure._held(model)}
        known |= {value.untyped_storage()._cdata for value in inputs.values() if value is not None}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            saved[tensor.untyped_storage()._cdata] = tensor
            return tensor

        live = Live([*measure._held(model), *(value for value in inputs.values() if value is not None)])
        with live, measure.gpu_autocast(torch.bfloat16):
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                velocity = model(**inputs, return_dict=False)[0]
                loss = (velocity.float() - torch.zeros(velocity.shape)).square().mean()
            by_hooks = sum(t.untyped_storage().nbytes() for key, t in saved.items() if key not in known)
            saved.clear()
            loss.backward()
    found = measure.transformer_in_fakes(request)
    assert found["train_bytes"] == pytest.approx(live.peak, rel=0.02)
    if not checkpointing:  # the hooks of a checkpoint hide what it keeps itself
        assert found["kept_bytes"] == pytest.approx(by_hooks, rel=0.05)
    assert found["step_flops"] == live.flops


def test_less_is_kept_with_checkpointing_and_held_in_8_bits() -> None:
    from fluxcore.planner import measure

    transformer = tiny_request()["transformer"] | {"num_layers": 3, "num_single_layers": 6}
    kept, computed = (
        measure.transformer_in_fakes(tiny_request(transformer=transformer, checkpointing=checkpointing, held="fp8"))
        for checkpointing in (False, True)
    )
    assert computed["kept_bytes"] < kept["kept_bytes"] and computed["train_bytes"] < kept["train_bytes"]
    assert computed["base_bytes"] < 0.7 * 2 * computed["parameters"]
    for least, most in (found[f"{part}_reserve"] for found in (kept, computed) for part in ("train", "sample")):
        assert 0 < least <= most


@pytest.mark.parametrize(
    "network",
    [{"train_blocks": "single", "network_algo": "lokr"}, {"train_layers": "attn", "use_dora": True},
     {"train_single_block_indices": "3,5", "train_double_block_indices": "none", "network_algo": "loha"}],
    ids=["lokr-single", "dora-attention", "loha-two-blocks"],
)  # fmt: skip
def test_what_is_trained_is_counted_as_the_trainer_builds_it(network: dict[str, Any]) -> None:
    """Its values, and that less is kept where fewer layers are trained."""
    from fluxcore.config import parse_config
    from fluxcore.models.flux import FLUX_1 as FAMILY
    from fluxcore.planner import measure
    from fluxcore.training.network import add_network

    transformer = tiny_request()["transformer"] | {"num_layers": 3, "num_single_layers": 6}
    whole = measure.transformer_in_fakes(tiny_request(transformer=transformer))
    found = measure.transformer_in_fakes(tiny_request(transformer=transformer, network=network))
    model = measure.FluxTransformer2DModel.from_config(transformer).requires_grad_(False)
    add_network(model, parse_config({"network_dim": 4, **network}), FAMILY)
    trained = [value for value in model.parameters() if value.requires_grad]
    assert found["lora_parameters"] == sum(value.numel() for value in trained)
    assert found["parameters"] == whole["parameters"] and found["step_flops"] != whole["step_flops"]


def test_a_steps_batches_take_time_and_no_more_memory() -> None:
    one, four = make_plan(flux(), 20, FOUND), make_plan(flux(gradient_accumulation_steps=4), 20, FOUND)
    assert four.phases == one.phases and four.steps * 4 == one.steps
    assert four.step_flops == 4 * one.step_flops
    gpu = next(gpu for gpu in GPUS if gpu.name == "RTX 4090")
    one, four = (make_plan(flux(blocks_to_swap=9, gradient_accumulation_steps=n), 20, FOUND) for n in (1, 4))
    assert four.step_seconds(gpu) == pytest.approx(4 * one.step_seconds(gpu))


def test_of_several_sizes_the_largest_is_planned(tmp_path: Path) -> None:
    asked = request_of(flux(extra_resolutions="384,768", train_batch_size=2))
    assert (asked["size"], asked["batch"], asked["picture_size"]) == ([768, 768], 2, [768, 768])
    assert make_plan(flux(extra_resolutions="384,768"), 20, FOUND).steps == 3 * make_plan(flux(), 20, FOUND).steps
    file = tmp_path / "dataset.toml"
    file.write_text(
        "[[datasets]]\nresolution = 512\nbatch_size = 8\n[[datasets.subsets]]\nimage_dir = 'many'\n"
        "[[datasets]]\nresolution = 1024\nbatch_size = 1\n[[datasets.subsets]]\nimage_dir = 'large'\n"
    )
    config = flux(dataset_config=str(file))
    assert batches_of(config) == [(512, 8), (1024, 1)]
    asked = request_of(config)
    assert (asked["size"], asked["batch"], asked["picture_size"]) == ([512, 512], 8, [1024, 1024])
    with pytest.raises(PlanError, match="dataset_config"):
        request_of(flux(dataset_config=str(tmp_path / "gone.toml")))


def test_averages_and_prodigys_moments_are_counted() -> None:
    samples = {"sample_every_n_steps": 10, "sample_prompts": "a cat"}
    values = FOUND["lora_parameters"]
    phases = {phase.name: phase.parts for phase in make_plan(flux(ema_decay=0.99, **samples), 20, FOUND).phases}
    assert phases["train"]["its average"] == phases["sample"]["its trained weights"] == 4 * values
    for kind, size in (("prodigy", 16), ("adamwschedulefree", 8), ("adamw8bit", 2)):
        phases = {p.name: p.parts for p in make_plan(flux(optimizer_type=kind, **samples), 20, FOUND).phases}
        assert phases["train"]["its optimizer"] == size * values
        assert ("its trained weights" in phases["sample"]) == (kind == "adamwschedulefree")


def test_the_parts_add_up_and_say_what_they_are() -> None:
    made = make_plan(flux(sample_every_n_steps=10, sample_prompts="a cat"), 20, FOUND)
    phases = {phase.name: phase for phase in made.phases}
    assert list(phases) == ["captions", "pictures", "train", "sample"]
    train = phases["train"].parts
    assert train["base model"] == FOUND["base_bytes"] and train["CUDA context"] == CONTEXT_BYTES
    assert train["LoRA"] == train["gradients"] == 4 * FOUND["lora_parameters"]
    assert train["its optimizer"] == 8 * FOUND["lora_parameters"]
    assert made.peak.name == "sample"  # a decoded picture takes more than a checkpointed step
    assert phases["captions"].total == FOUND["text_bytes"] + FOUND["text_peak_bytes"] + CONTEXT_BYTES
    assert made.steps == 20 * 10 * 16 and made.disk.total
    assert make_plan(flux(), 20, FOUND).peak.name == "train"


def test_swapped_blocks_leave_the_gpu_and_cost_time() -> None:
    whole, swapped = make_plan(flux(), 1, FOUND), make_plan(flux(blocks_to_swap=18), 1, FOUND)
    away = 9 * FOUND["double_bytes"] + 18 * FOUND["single_bytes"]
    assert swapped.swapped_bytes == away
    assert whole.peak.total - swapped.phases[-1].total == away - FOUND["largest_bytes"]
    gpu = next(gpu for gpu in GPUS if gpu.name == "RTX 4090")
    assert swapped.step_seconds(gpu) > whole.step_seconds(gpu) > 0.5


@pytest.mark.parametrize("size", [8, 12, 16, 20, 24])
def test_what_it_advises_is_enough_by_its_own_arithmetic(size: int) -> None:
    config = flux()
    made = make_plan(config, 20, FOUND)
    assert not made.fits(size << 30) and verdict(config, made, size << 30).startswith("does not fit")
    changes, enough = advice(config, made, size << 30)
    assert enough and changes
    assert ("encode_on_cpu" in changes) == (size == 8)
    blocks = FOUND["base_bytes"] * (0.5 if changes.get("fp8_base") else 1) / FOUND["base_bytes"]
    halved = {key: int(FOUND[key] * blocks) for key in ("base_bytes", "double_bytes", "single_bytes", "largest_bytes")}
    better = make_plan(flux(**changes), 20, FOUND | halved)
    assert better.fits(int(1.01 * (size << 30)))


def test_what_is_advised_was_planned_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held in fp8 a base needs more beside it than it did: by the first plan's arithmetic too few blocks are swapped."""
    import importlib

    module = importlib.import_module("fluxcore.planner.plan")
    asked = list[dict[str, Any]]()

    def measured(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request)
        if request["held"] == "none":
            return FOUND
        halved = {key: FOUND[key] // 2 for key in ("base_bytes", "double_bytes", "single_bytes")}
        return FOUND | halved | {"train_bytes": FOUND["train_bytes"] + GIB}

    monkeypatch.setattr(module, "measured", measured)
    config = flux()
    made = make_plan(config, 20, FOUND)
    first, _ = advice(config, made, 12 * GIB)
    assert not plan(flux(**first), 20, tmp_path).fits(12 * GIB)  # type: ignore[union-attr]
    changes, enough = proven_advice(config, made, 12 * GIB, 20, tmp_path)
    assert enough and changes["blocks_to_swap"] > first["blocks_to_swap"]
    assert plan(flux(**changes), 20, tmp_path).fits(12 * GIB)  # type: ignore[union-attr]
    assert f"set fp8_base=true, blocks_to_swap={changes['blocks_to_swap']}" in verdict(
        config, made, 12 * GIB, (changes, enough)
    )
    assert not proven_advice(config, made, 2 * GIB, 20, tmp_path)[1], "no number of blocks would do"


def test_a_plan_that_fits_says_so_and_when_it_is_tight() -> None:
    config = flux()
    made = make_plan(config, 20, FOUND)
    assert verdict(config, made, 48 * GIB).startswith("fits: it needs 24 GiB at its peak (train)")
    assert "tight" in verdict(config, made, int(made.peak.total * 1.01))


def test_a_form_gets_no_answer_at_first_and_the_kept_one_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import time

    module = importlib.import_module("fluxcore.planner.plan")
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(module, "measured", lambda request: (asked.append(request), FOUND)[1])
    assert plan(flux(), 20, tmp_path, wait=False) is None
    deadline = time.monotonic() + 10
    while (made := plan(flux(), 20, tmp_path, wait=False)) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert made.parameters == FOUND["parameters"] and len(asked) == 1
    assert plan(flux(learning_rate="1e-5"), 5, tmp_path) is not None and len(asked) == 1  # depends on nothing of it
    assert plan(flux(resolution=768), 5, tmp_path) is not None and len(asked) == 2
    assert plan(flux(resolution=768, use_dora=True), 5, tmp_path) is not None and len(asked) == 3
    (tmp_path / ".plans").rename(tmp_path / "gone")
    monkeypatch.setattr(module, "measured", lambda request: (_ for _ in ()).throw(PlanError("no torch here")))
    with pytest.raises(PlanError, match="no torch"):
        plan(flux(), 20, tmp_path)
    assert plan_function is plan


def test_models_without_a_known_shape_are_refused_and_schnell_has_no_guidance(tmp_path: Path) -> None:
    from fluxcore.models.registry import BaseModel

    with pytest.raises(PlanError, match="can't be told"):
        model_files(BaseModel("klein", "klein", family="flux2", repo="x/y"))
    assert request_of(flux(base_model="flux-schnell"))["transformer"]["guidance_embeds"] is False
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text("{")
    with pytest.raises(PlanError, match="no readable config.json"):
        model_files(BaseModel("torn", "torn", path=tmp_path))
    assert json.dumps(request_of(flux()))


def test_the_largest_sample_counts_and_only_where_any_is_drawn() -> None:
    prompts = "a --w 1024 --h 768\nb --w 512 --h 512"
    assert largest_sample(flux(sample_prompts=prompts, sample_every_n_steps=5)) == (768, 1024)
    assert largest_sample(flux(sample_prompts=prompts)) == (512, 512)
    assert size_of("24G") == 24 * GIB


def test_the_verb_says_the_parts_the_time_and_what_to_change(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    from cli_tools import call, pictures

    module = importlib.import_module("fluxcore.planner.plan")
    monkeypatch.setattr(module, "measured", lambda request: FOUND)
    outputs = tmp_path / "outputs"
    asked = ["plan", "--set", "base_model=flux-dev", "--set", "vram=48G", "--pictures", "20", "--outputs", outputs]
    answer = call(capsys, *asked)
    assert answer.code == 0, answer.err
    assert "11.9 billion" in answer.out and "fits: it needs 24 GiB" in answer.out
    assert "H100 80 GB" in answer.out and "T4" not in answer.out, "times only where it fits"
    answer = call(capsys, *asked, "--gpu-gib", "15")
    assert answer.code == 1 and "does not fit" in answer.out and "fp8_base=true" in answer.out
    rows = call(capsys, *asked, "--json").json()
    assert [row["phase"] for row in rows] == ["captions", "pictures", "train"]
    assert all(sum(row["parts"].values()) == row["bytes"] for row in rows)
    made = call(
        capsys, "new", "cat", "--images", pictures(tmp_path / "p"), "--base", "flux-dev", "--set", "vram=48G",
        "--outputs", outputs,
    )  # fmt: skip
    assert made.code == 0
    assert "fits" in call(capsys, "plan", "cat", "--outputs", outputs).out
    assert call(capsys, "plan", "--outputs", outputs).code == 64
    assert call(capsys, "plan", "cat", "--set", "vram=8G", "--outputs", outputs).code == 64
    assert call(capsys, "plan", "nobody", "--outputs", outputs).code == 64


def test_published_figures_are_compared_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fluxcore.planner import published

    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(published, "measure_kept", lambda request, outputs: (asked.append(request), FOUND)[1])
    rows = {row.entry.what: row for row in published.compare(tmp_path)}
    assert len(rows) == len(published.PUBLISHED)
    assert len(asked) == len(rows) + sum(bool(entry.heaviest) for entry in published.PUBLISHED)
    assert asked[0]["size"] == [768, 512] and asked[0]["held"] == "nf4" and asked[0]["targets"] == published.ATTENTION
    about = rows["diffusers, bf16, 512 × 768, rank 4"]
    assert about.differences[0] == about.differences[1] == pytest.approx(about.planned / (26e9 / GIB) - 1)
    assert rows["sd-scripts, fp8, 28 blocks swapped"].planned < rows["sd-scripts, fp8, 16 blocks swapped"].planned
    assert all(row.entry.source.startswith("https://") for row in rows.values())


def test_what_a_published_bound_is_judged_by() -> None:
    from fluxcore.planner.published import GB, PUBLISHED, Published, Row

    def holds(kind: Any, figure: float, planned: float, most: float, **more: Any) -> bool | None:
        return Row(Published("it", kind, figure, "https://x", {}, **more), planned, most).holds

    assert holds("over", 20, 21, 21) is True and holds("over", 20, 19, 19) is False
    assert holds("over", 20, 19, 21) is None and holds("over", 20, 18, 19) is False, "what is open decides, or can't"
    assert holds("within", 20, 19, 20) is True and holds("within", 20, 19, 21) is None
    assert holds("within", 20, 21, 22) is False, "however it is meant"
    assert holds("about", 20, 22.9, 22.9) is True and holds("about", 20, 16.9, 16.9) is False
    assert holds("about", 20, 22.9, 22.9, unit=GB) is False
    assert all(entry.guessed for entry in PUBLISHED if entry.heaviest), "nothing is left open where all is stated"
