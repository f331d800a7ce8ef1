"""What each option of the training does: formulas, layers, files, the best step, and what happens without memory."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fluxcore.config import ConfigError, RunConfig, parse_config, resolve_config
from fluxcore.config.arguments import parse_blocks, parse_optimizer_args
from fluxcore.models.flux import FLUX_1
from fluxcore.models.loading import load_pipeline
from fluxcore.models.registry import find_model
from fluxcore.training.failures import Exit, TrainingError
from fluxcore.training.lora_keys import detect_format
from fluxcore.training.lora_layers import LeanLoraLinear
from fluxcore.training.network import add_network, continue_from, network_tensors
from fluxcore.training.noise_levels import draw_sigmas
from fluxcore.training.objective import sample_losses, sigma_weights
from fluxcore.training.optimizers import effective_rate, make_optimizer, make_schedule
from fluxcore.training.states import lora_state
from tests.training_tools import events_of, lora_of, losses_of, new_run, some_pictures, steps_of, train_here

MINI = find_model("flux-mini").path
assert MINI is not None


def transformer() -> torch.nn.Module:
    return FLUX_1.load_image_side(MINI, torch.float32, torch.device("cpu")).transformer


# Formulas.


def test_losses_are_sd_scripts_formulas() -> None:
    velocity, target = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1)), torch.zeros(3, 5, 4)
    error, c = velocity, 0.1
    expected = {
        "l2": error**2,
        "huber": 2 * c * (torch.sqrt(error**2 + c**2) - c),
        "smooth_l1": 2 * (torch.sqrt(error**2 + c**2) - c),
    }
    for name, each in expected.items():
        assert torch.allclose(sample_losses(velocity, target, name, c), each.flatten(1).mean(1)), name
    assert sample_losses(velocity.bfloat16(), target.double(), "l2", c).dtype == torch.float64
    with pytest.raises(ValueError, match="unknown loss"):
        sample_losses(velocity, target, "l3", c)


def test_weights_of_noise_levels() -> None:
    sigma = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert sigma_weights(sigma, "none").tolist() == [1, 1, 1, 1]
    assert torch.allclose(sigma_weights(sigma, "sigma_sqrt"), torch.tensor([1e6, 16.0, 4.0, 1.0]))
    cosmap = torch.tensor([2 / math.pi, 2 / math.pi / 0.625, 4 / math.pi, 2 / math.pi])
    assert torch.allclose(sigma_weights(sigma, "cosmap"), cosmap)
    with pytest.raises(ValueError, match="unknown weighting"):
        sigma_weights(sigma, "snr")


def test_noise_levels_have_their_distributions() -> None:
    normal = torch.randn(20_000, generator=torch.Generator().manual_seed(3))
    uniform = draw_sigmas(normal, "uniform")
    assert torch.allclose(torch.histc(uniform, 10, 0, 1), torch.full((10,), 2000.0), rtol=0.1)
    shifted = draw_sigmas(normal, "logit_normal", logit_mean=1.0, logit_std=0.5)
    assert torch.allclose(torch.logit(shifted), 1 + 0.5 * normal, atol=1e-3)
    flat, peaked = (draw_sigmas(normal, "mode", mode_scale=scale) for scale in (0.0, 1.29))
    assert torch.allclose(flat, 1 - uniform)
    middle = lambda sigma: float(((sigma > 0.4) & (sigma < 0.6)).float().mean())
    assert middle(peaked) > 1.5 * middle(flat) and peaked.min() >= 0 and peaked.max() <= 1


def test_values_in_one_line_are_read_strictly() -> None:
    assert parse_optimizer_args("weight_decay=0.1 betas=0.9,0.99 x=None") == {
        "weight_decay": 0.1, "betas": (0.9, 0.99), "x": None,
    }  # fmt: skip
    assert parse_blocks("all") is None and parse_blocks("none") == frozenset()
    assert parse_blocks("0, 3-5") == {0, 3, 4, 5}


# Optimizers.


def parameters() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.randn(8, 16, generator=torch.Generator().manual_seed(2)))]


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "adafactor", "prodigy", "lion", "adamwschedulefree"])
def test_every_optimizer_goes_downhill(name: str) -> None:
    rate = {"prodigy": "1", "adafactor": "0.05", "lion": "0.03"}.get(name, "0.1")
    (weight,) = given = parameters()
    optimizer: Any = make_optimizer(parse_config({"optimizer_type": name, "learning_rate": rate}), given)
    before = float(weight.square().mean())
    if hasattr(optimizer, "train"):
        optimizer.train()
    for _ in range(60):
        optimizer.zero_grad()
        weight.square().mean().backward()
        optimizer.step()
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    assert float(weight.square().mean()) < 0.7 * before
    assert effective_rate(optimizer, 1.0) > 0


def test_a_paged_optimizer_without_a_gpu_is_refused_in_a_sentence() -> None:
    with pytest.raises(TrainingError, match="paged_adamw8bit needs an NVIDIA GPU, .*choose adamw8bit"):
        make_optimizer(parse_config({"optimizer_type": "paged_adamw8bit"}), parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_paged_optimizer_goes_downhill_and_on_from_its_state() -> None:
    (weight,) = given = [torch.nn.Parameter(torch.ones(512, 256, device="cuda"))]
    config = parse_config({"optimizer_type": "paged_adamw8bit", "learning_rate": "0.01"})
    optimizer = make_optimizer(config, given)

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            weight.square().mean().backward()
            optimizer.step()

    steps(5)
    kept, saved = weight.detach().clone(), deepcopy(optimizer.state_dict())
    steps(5)
    after = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(kept)
    optimizer = make_optimizer(config, given)
    optimizer.load_state_dict(saved)
    steps(5)
    assert float(after.mean()) < float(kept.mean()) < 1 and torch.equal(weight, after)


def test_adamw_takes_all_matrices_at_once_and_goes_on_from_a_state_that_did_not() -> None:
    assert make_optimizer(parse_config({}), parameters()).param_groups[0]["fused"]
    assert not make_optimizer(parse_config({"optimizer_args": "foreach=True"}), parameters()).param_groups[0]["fused"]
    (weight,), (other,) = given, theirs = parameters(), parameters()
    ours, plain = make_optimizer(parse_config({"learning_rate": "0.01"}), given), torch.optim.AdamW(theirs, lr=0.01)
    for _ in range(20):
        for one, optimizer in ((weight, ours), (other, plain)):
            optimizer.zero_grad()
            one.square().mean().backward()
            optimizer.step()
    assert torch.allclose(weight, other, rtol=0, atol=1e-6)
    ours.load_state_dict(deepcopy(plain.state_dict()))
    with torch.no_grad():
        weight.copy_(other)
    for optimizer in (ours, plain):
        optimizer.step()
    assert torch.equal(weight, other), "a state of before goes on as it would have"


def test_arguments_reach_the_optimizer_and_wrong_ones_are_a_sentence() -> None:
    config = parse_config({"optimizer_args": "weight_decay=0.25 betas=0.8,0.9"})
    group = make_optimizer(config, parameters()).param_groups[0]
    assert (group["weight_decay"], group["betas"]) == (0.25, (0.8, 0.9))
    with pytest.raises(TrainingError, match="optimizer_args don't suit adamw"):
        make_optimizer(parse_config({"optimizer_args": "momentums=3"}), parameters())


@pytest.mark.parametrize(
    ("name", "package"),
    [("prodigy", "prodigyopt"), ("lion", "lion-pytorch"), ("adamwschedulefree", "schedulefree"),
     ("adamw8bit", "bitsandbytes")],
)  # fmt: skip
def test_a_package_that_is_not_installed_is_asked_for(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> object:
        raise ModuleNotFoundError(f"No module named {module}", name=module.split(".")[0])

    monkeypatch.setattr("fluxcore.training.optimizers.import_module", missing)
    with pytest.raises(TrainingError, match=f"pip install {package}$") as caught:
        make_optimizer(parse_config({"optimizer_type": name}), parameters())
    assert "\n" not in str(caught.value)


def test_a_package_that_can_not_run_here_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(module: str) -> object:
        raise RuntimeError("CUDA library is missing\nand much more")

    monkeypatch.setattr("fluxcore.training.optimizers.import_module", broken)
    with pytest.raises(TrainingError, match=r"can't be used on this machine \(CUDA library is missing\): choose adamw"):
        make_optimizer(parse_config({"optimizer_type": "adamw8bit"}), parameters())


# Networks.


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, lambda name: True),
        ({"train_blocks": "double"}, lambda name: not name.startswith("single_")),
        ({"train_blocks": "single"}, lambda name: name.startswith("single_")),
        ({"train_double_block_indices": "none", "train_single_block_indices": "1,3"},
         lambda name: name.startswith(("single_transformer_blocks.1.", "single_transformer_blocks.3."))),
        ({"train_layers": "attn", "train_blocks": "double"}, lambda name: ".attn." in name and name[0] == "t"),
        ({"train_layers": "attn"}, lambda name: ".attn." in name or name.endswith("proj_out")),
        ({"train_layers": "mlp,mod", "train_blocks": "double"}, lambda name: ".ff" in name or ".norm1" in name),
    ],
)  # fmt: skip
def test_the_chosen_layers_and_no_others_are_trained(settings: dict[str, object], wanted: Any) -> None:
    every = {name.partition(".lora_")[0] for name in _state({"network_dim": 1})}
    chosen = {name.partition(".lora_")[0] for name in _state({"network_dim": 1, **settings})}
    assert chosen == {name for name in every if wanted(name[0:] if name[0] != "t" else name)} and chosen
    if settings.get("train_layers") == "attn" and "train_blocks" not in settings:
        assert any(name.endswith("proj_out") for name in chosen) and not any("proj_mlp" in name for name in chosen)


def _state(settings: dict[str, object]) -> dict[str, torch.Tensor]:
    model = transformer()
    add_network(model, parse_config(settings), FLUX_1)
    return lora_state(model)


def test_a_selection_that_leaves_nothing_is_a_sentence() -> None:
    nothing = {"train_double_block_indices": "none", "train_single_block_indices": "99"}
    with pytest.raises(TrainingError, match="no layer is left to train"):
        add_network(transformer(), parse_config(nothing), FLUX_1)
    with pytest.raises(ConfigError, match="go with network_algo lora"):
        parse_config({"network_algo": "lokr", "use_dora": True})


KINDS: dict[str, dict[str, object]] = {
    "lora": {"network_alpha": 2.0},
    "lora, diffusers' names": {"network_alpha": 2.0, "lora_format": "diffusers"},
    "lora, ComfyUI's names": {"network_alpha": 2.0, "lora_format": "comfyui"},
    "rslora": {"network_alpha": 2.0, "use_rslora": True},
    "dora": {"use_dora": True},
    "lokr": {"network_algo": "lokr", "network_alpha": 2.0},
    "lokr, whole matrices": {"network_algo": "lokr", "network_dim": 64, "lokr_factor": 2},
    "loha": {"network_algo": "loha"},
}


def filled(settings: dict[str, object]) -> tuple[torch.nn.Module, Any]:
    """A transformer with a network that does something."""
    model, config = transformer(), parse_config({"network_dim": 4, **settings})
    torch.manual_seed(7)
    add_network(model, config, FLUX_1)
    for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model, config


def test_dora_wants_the_base_as_it_is() -> None:
    for held in ({"fp8_base": True}, {"quantize_base": "int8"}, {"blocks_to_swap": 2}):
        with pytest.raises(ConfigError, match="use_dora measures the base's own weights"):
            parse_config({"use_dora": True, **held})


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_is_continued_at_the_strength_it_had(kind: str, tmp_path: Path) -> None:
    from fluxcore.training.lora_file import save_network

    model, config = filled(KINDS[kind])
    file = tmp_path / "network.safetensors"
    tensors = network_tensors(lora_state(model), config, FLUX_1, torch.float32)
    save_network(file, tensors, {})
    if config.network_algo == "lora" and not config.use_dora:
        assert detect_format(tensors) == config.lora_format
    other = transformer()
    add_network(other, config, FLUX_1)
    continue_from(other, file, config, FLUX_1)
    before, after = lora_state(model), lora_state(other)
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    with pytest.raises(TrainingError, match="network_weights"):
        wrong = parse_config({**config.model_dump(), "network_dim": 3})
        third = transformer()
        add_network(third, wrong, FLUX_1)
        continue_from(third, file, wrong, FLUX_1)


def test_of_a_lora_that_does_not_fit_it_is_told_what_it_is(tmp_path: Path) -> None:
    from fluxcore.training.lora_file import save_network

    model, config = filled(KINDS["lora"])
    assert any(isinstance(layer, LeanLoraLinear) for layer in model.modules()), "peft's own layers take longer"
    file = tmp_path / "network.safetensors"
    state = lora_state(model)
    text, nothing = tmp_path / "notes.txt", tmp_path / "nothing.safetensors"
    text.write_text("a note")

    def refused(path: Path, **settings: object) -> str:
        wanted = parse_config({**config.model_dump(), **settings})
        other = transformer()
        add_network(other, wanted, FLUX_1)
        with pytest.raises(TrainingError) as error:
            continue_from(other, path, wanted, FLUX_1)
        return str(error.value).partition("can't be used: ")[2]

    save_network(file, network_tensors(state, config, FLUX_1, torch.float32), {})
    assert refused(file, network_dim=3) == "it has rank 4, not 3: set network_dim=4"
    assert refused(file, train_blocks="single").startswith("it is not a lora of rank 4 on the same layers")
    wider = {name: value.repeat(1, 2) if ".lora_A." in name else value.repeat(2, 1) for name, value in state.items()}
    save_network(file, network_tensors(wider, config, FLUX_1, torch.float32), {})
    assert refused(file).startswith("its layers have other widths, so it is another base model's: set base_model")
    assert refused(nothing) == "there is no such file" and refused(tmp_path) == "it is a folder"
    assert refused(text) == "it is cut short or no safetensors file: copy it here again"
    del wider[next(iter(wider))]  # as of a base with other blocks
    save_network(file, {f"transformer.{name}": value for name, value in wider.items()}, {})
    assert "other widths" in refused(file) or "only" in refused(file)


@pytest.mark.parametrize("others", ["rank", "family"])
def test_of_a_lora_that_does_not_fit_both_base_models_are_named(others: str, tmp_path: Path) -> None:
    from fluxcore.training.lora_file import save_network

    model, config = filled(KINDS[next(iter(KINDS))])
    file = tmp_path / "network.safetensors"
    tensors = network_tensors(lora_state(model), config, FLUX_1, torch.float32)
    if others == "family":
        tensors = {"lora_unet_no_such_layer.lora_down.weight": torch.zeros(4, 4)}
    wrong = parse_config({**config.model_dump(), "network_dim": 3})
    other = transformer()
    add_network(other, wrong, FLUX_1)
    save_network(file, tensors, {"ss_sd_model_name": "flux-2-klein-4b.safetensors"})
    named = r"trained on flux-2-klein-4b.safetensors; the base model here is flux-mini\)"
    with pytest.raises(TrainingError, match=rf"network_weights .* can't be used: .*{named}"):
        continue_from(other, file, wrong, FLUX_1)
    save_network(file, tensors, {"ss_sd_model_name": "flux-mini"})
    with pytest.raises(TrainingError) as error:
        continue_from(other, file, wrong, FLUX_1)
    assert "trained on" not in str(error.value)


def test_of_a_lora_that_fits_another_base_model_is_told(tmp_path: Path) -> None:
    from fluxcore.training.lora_file import save_network

    model, config = filled(KINDS[next(iter(KINDS))])
    file = tmp_path / "network.safetensors"
    for base, told in (
        ("flux1-krea-dev.safetensors", "it says that it was trained on flux1-krea-dev"),
        ("flux-mini", ""),
    ):
        save_network(
            file, network_tensors(lora_state(model), config, FLUX_1, torch.float32), {"ss_sd_model_name": base}
        )
        assert told in (said := continue_from(model, file, config, FLUX_1)) and bool(said) is bool(told)


def test_a_lora_to_go_on_from_is_looked_at_first_and_told_of_where_it_is_anothers(tmp_path: Path) -> None:
    gone = new_run(tmp_path, "gone", some_pictures, network_weights="/nowhere.safetensors")
    with pytest.raises(TrainingError, match="there is no such file"):
        train_here(gone)
    assert not events_of(gone, "phase.started"), "before the base model is fetched"
    first = new_run(tmp_path, "first", some_pictures, max_train_steps=1)
    train_here(first)
    file = tmp_path / "anothers.safetensors"
    save_file(lora_of(first), file, {"ss_sd_model_name": "flux1-krea-dev.safetensors"})
    for name, weights, told in (("own", first.final_weights, 0), ("others", file, 1)):
        folder = new_run(tmp_path, name, some_pictures, max_train_steps=1, network_weights=str(weights))
        train_here(folder)
        assert len(events_of(folder, "weights.adapted")) == told


@pytest.mark.parametrize(
    ("name", "settings", "factors"),
    [
        ("constant", {"lr_warmup_steps": 2}, [1, 1, 1, 1, 1, 1]),  # sd-scripts' too takes no notice of a warm-up
        ("constant_with_warmup", {"lr_warmup_steps": 2}, [0, 0.5, 1, 1, 1, 1]),
        ("linear", {"lr_warmup_steps": 2}, [0, 0.5, 1, 0.75, 0.5, 0.25]),
        ("cosine", {"lr_warmup_steps": 2}, [0, 0.5, 1, 0.8536, 0.5, 0.1464]),
        ("cosine_with_restarts", {"lr_warmup_steps": 2, "lr_scheduler_num_cycles": 2}, [0, 0.5, 1, 0.5, 1, 0.5]),
        ("polynomial", {"lr_warmup_steps": 2, "lr_scheduler_power": 2.0}, [0, 0.5, 1, 0.5625, 0.25, 0.0625]),
    ],
)
def test_a_schedule_is_that_of_its_name(name: str, settings: dict, factors: list[float]) -> None:
    config = resolve_config({"lora_name": "cat", "lr_scheduler": name, "learning_rate": "1.0", **settings})
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=1.0)
    schedule = make_schedule(config, optimizer, 6)
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx(factors, abs=1e-3)


def test_every_schedule_of_the_schema_is_tested() -> None:
    from typing import get_args

    tested = {mark.args[1][i][0] for mark in test_a_schedule_is_that_of_its_name.pytestmark for i in range(6)}
    assert set(get_args(RunConfig.model_fields["lr_scheduler"].annotation)) == tested


@pytest.mark.parametrize("kind", ["lokr", "lokr, whole matrices", "loha"])
def test_lycoris_files_hold_what_the_network_adds(kind: str) -> None:
    """As ComfyUI reads them: alpha over the rank of a parted matrix, 1 where no matrix is parted."""
    model, config = filled(KINDS[kind])
    tensors = network_tensors(lora_state(model), config, FLUX_1, torch.float32)
    name = "transformer_blocks.0.attn.to_q"
    layer = model.get_submodule(name)
    key = f"lycoris_{name.replace('.', '_')}"
    found = {part.removeprefix(f"{key}."): value for part, value in tensors.items() if part.startswith(f"{key}.")}
    if kind == "loha":
        added = (found["hada_w1_a"] @ found["hada_w1_b"]) * (found["hada_w2_a"] @ found["hada_w2_b"])
        rank: int | None = found["hada_w1_b"].shape[0]
    else:
        parts = {}
        rank = None
        for side in ("1", "2"):
            if f"lokr_w{side}" in found:
                parts[side] = found[f"lokr_w{side}"]
            else:
                parts[side] = found[f"lokr_w{side}_a"] @ found[f"lokr_w{side}_b"]
                rank = found[f"lokr_w{side}_b"].shape[0]
        added = torch.kron(parts["1"], parts["2"])
    scale = float(found["alpha"]) / rank if "alpha" in found and rank else 1.0
    assert ("alpha" in found) == (rank is not None)
    assert torch.allclose(scale * added, layer.get_delta_weight("default"), atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_diffusers_reads_a_dora_and_comfyuis_scale_is_the_same(tmp_path: Path) -> None:
    from fluxcore.training.lora_file import save_network

    model, config = filled(KINDS["dora"])
    tensors = network_tensors(lora_state(model), config, FLUX_1, torch.float32)
    save_network(tmp_path / "dora.safetensors", tensors, {})
    pipeline = load_pipeline(MINI)
    pipeline.load_lora_weights(str(tmp_path), weight_name="dora.safetensors")
    name = "transformer_blocks.0.attn.to_q"
    x = torch.randn(2, 192, generator=torch.Generator().manual_seed(1))
    ours, theirs = model.get_submodule(name)(x), pipeline.transformer.get_submodule(name)(x)
    assert torch.allclose(ours, theirs, atol=1e-5)
    # As LyCORIS and ComfyUI compute it: the weight, low rank added, its rows scaled to `dora_scale`.
    key = f"transformer.{name}"
    layer = model.get_submodule(name).base_layer
    scale = float(tensors[f"{key}.alpha"]) / config.network_dim
    weight = layer.weight + scale * tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"]
    weight = weight * tensors[f"{key}.dora_scale"] / weight.norm(dim=1, keepdim=True)
    assert torch.allclose(torch.nn.functional.linear(x, weight, layer.bias), ours, atol=1e-4)


# Validation, EMA, memory: short trainings.


def test_held_out_pictures_are_measured_and_the_best_step_is_named(tmp_path: Path) -> None:
    folder = new_run(
        tmp_path, "held", some_pictures, validation_split=0.34, validate_every_n_steps=2, network_dropout=0.3,
        max_train_steps=5, save_every_n_steps=3, network_dim=2,
    )  # fmt: skip
    training = train_here(folder)
    measured = [event.data for event in events_of(folder, "validation.measured")]
    assert [data["step"] for data in measured] == [2, 3, 4, 5]
    assert all(data["pictures"] == 2 for data in measured)
    lowest = min(measured, key=lambda data: data["loss"])
    assert (measured[-1]["best_step"], measured[-1]["best_loss"]) == (lowest["step"], lowest["loss"])
    saved = {e.data["step"]: e.data for e in events_of(folder, "checkpoint.saved") if e.data["kind"] == "weights"}
    by_step = {data["step"]: data["loss"] for data in measured}
    assert {step: data["validation_loss"] for step, data in saved.items()} == {3: by_step[3], 5: by_step[5]}
    # Nothing is random in it, dropout included: the weights that were saved measure the same again.
    training.measured = {}
    assert training.validate(5) == by_step[5]
    plain = new_run(tmp_path, "plain", some_pictures, validation_split=0.34, validate_every_n_steps=0,
                    network_dropout=0.3, max_train_steps=5, network_dim=2)  # fmt: skip
    train_here(plain)
    assert losses_of(plain) == losses_of(folder)  # measuring changes no training


def test_an_ema_is_what_is_saved_and_the_training_is_not_changed_by_it(tmp_path: Path) -> None:
    saves: dict[str, object] = {"save_every_n_steps": 1, "max_train_steps": 3, "network_dim": 2}
    plain = new_run(tmp_path, "plain", some_pictures, **saves)
    train_here(plain)
    averaged = new_run(tmp_path, "averaged", some_pictures, ema_decay=0.2, **saves)
    train_here(averaged)
    assert losses_of(plain) == losses_of(averaged)
    steps = [load_file(plain.step_weights(1)), load_file(plain.step_weights(2)), lora_of(plain)]
    key = "lora_unet_double_blocks_0_img_mlp_0.lora_up.weight"
    expected = torch.zeros_like(steps[0][key])  # what every up starts from
    for step, tensors in enumerate(steps, 1):
        decay = min(0.2, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * tensors[key]
    assert torch.allclose(lora_of(averaged)[key], expected, atol=1e-7)
    assert not torch.equal(lora_of(averaged)[key], steps[-1][key])


def test_a_step_that_does_not_fit_is_tried_in_halves_with_the_same_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fluxcore.training.train import Training

    few: dict[str, object] = {"train_batch_size": 2, "max_train_steps": 2, "network_dim": 2}
    whole = new_run(tmp_path, "whole", some_pictures, **few)
    train_here(whole)
    compute = Training.losses

    def at_most_one(self: Training, pipeline: Any, batch: Any) -> torch.Tensor:
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compute(self, pipeline, batch)

    monkeypatch.setattr(Training, "losses", at_most_one)
    short = new_run(tmp_path, "short", some_pictures, **few)
    train_here(short)
    (told,) = events_of(short, "memory.short")
    assert {name: told.data[name] for name in ("phase", "step", "batch", "gradient_checkpointing")} == {
        "phase": "train", "step": 1, "batch": 1, "gradient_checkpointing": True,
    }  # fmt: skip
    assert losses_of(short) == pytest.approx(losses_of(whole), abs=1e-5)
    assert all(torch.allclose(lora_of(short)[key], value, atol=1e-5) for key, value in lora_of(whole).items())

    monkeypatch.setattr(Training, "losses", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA")))
    never = new_run(tmp_path, "never", some_pictures, **few)
    with pytest.raises(TrainingError, match="memory is full: lower train_batch_size") as failed:
        train_here(never)
    assert failed.value.code == Exit.OOM_GPU
    assert len(events_of(never, "memory.short")) == 1 and steps_of(never) == []


def test_accumulated_batches_are_one_larger_batch(tmp_path: Path) -> None:
    one = new_run(tmp_path, "one", some_pictures, train_batch_size=2, max_train_steps=2, network_dim=2)
    train_here(one)
    two = new_run(
        tmp_path, "two", some_pictures, train_batch_size=1, gradient_accumulation_steps=2, max_train_steps=2,
        network_dim=2,
    )  # fmt: skip
    train_here(two)
    assert losses_of(two) == pytest.approx(losses_of(one), abs=1e-6)
    assert all(torch.allclose(lora_of(two)[key], value, atol=1e-5) for key, value in lora_of(one).items())


def test_the_file_says_how_it_was_trained(tmp_path: Path) -> None:
    folder = new_run(
        tmp_path, "said", some_pictures, max_train_steps=1, network_algo="lokr", network_dim=2, loss_type="huber",
        optimizer_type="lion", optimizer_args="weight_decay=0.1", train_blocks="double",
    )  # fmt: skip
    train_here(folder)
    with safe_open(folder.final_weights, "pt") as file:
        said = file.metadata()
    assert (said["ss_network_module"], said["ss_loss_type"]) == ("lycoris.kohya", "huber")
    assert said["ss_optimizer"] == "lion(weight_decay=0.1)"
    assert '"algo": "lokr"' in said["ss_network_args"] and '"train_blocks": "double"' in said["ss_network_args"]
