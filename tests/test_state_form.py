"""States between FluxGym and sd-scripts: names, order, moments, step, both ways."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers import FluxTransformer2DModel
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from fluxcore.models.flux import LORA_TARGETS
from fluxcore.runs import RunFolder
from fluxcore.runs.state_files import ABOUT_FILE
from fluxcore.training.failures import TrainingError
from fluxcore.training.state_form import StateForm, peft_name
from fluxcore.training.states import keep_states_small, lora_state, save_state
from tests.training_tools import events_of, lora_of, losses_of, new_run, same, some_pictures, train_here

SD_SCRIPTS = "FLUXGYM_TEST_SD_SCRIPTS"
RANK, ALPHA = 3, 1.5
FORM = StateForm("flux1", ALPHA)

# sd-scripts' modules in the order of their network, written out by hand from its source, and the layers here.
MODULES = [
    ("double_blocks_0_img_mod_lin", ["transformer_blocks.0.norm1.linear"]),
    ("double_blocks_0_img_attn_qkv", [f"transformer_blocks.0.attn.to_{part}" for part in "qkv"]),
    ("double_blocks_0_img_attn_proj", ["transformer_blocks.0.attn.to_out.0"]),
    ("double_blocks_0_img_mlp_0", ["transformer_blocks.0.ff.net.0.proj"]),
    ("double_blocks_0_img_mlp_2", ["transformer_blocks.0.ff.net.2"]),
    ("double_blocks_0_txt_mod_lin", ["transformer_blocks.0.norm1_context.linear"]),
    ("double_blocks_0_txt_attn_qkv", [f"transformer_blocks.0.attn.add_{part}_proj" for part in "qkv"]),
    ("double_blocks_0_txt_attn_proj", ["transformer_blocks.0.attn.to_add_out"]),
    ("double_blocks_0_txt_mlp_0", ["transformer_blocks.0.ff_context.net.0.proj"]),
    ("double_blocks_0_txt_mlp_2", ["transformer_blocks.0.ff_context.net.2"]),
    (
        "single_blocks_0_linear1",
        [f"single_transformer_blocks.0.{part}" for part in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")],
    ),
    ("single_blocks_0_linear2", ["single_transformer_blocks.0.proj_out"]),
    ("single_blocks_0_modulation_lin", ["single_transformer_blocks.0.norm.linear"]),
]


class OneOfEach:
    """A FLUX with one block of each kind and a LoRA on it, and a state of it as the trainer writes them."""

    def __init__(self, folder: Path, heads: int = 1, head: int = 16) -> None:
        with torch.device("meta"):
            model = FluxTransformer2DModel(
                num_layers=1, num_single_layers=1, num_attention_heads=heads, attention_head_dim=head,
                joint_attention_dim=32, pooled_projection_dim=16, axes_dims_rope=(head // 8, head // 2, head * 3 // 8),
            )  # fmt: skip
        torch.manual_seed(1)
        model.requires_grad_(False)
        model.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=LORA_TARGETS))
        trained = [name for name, value in model.named_parameters() if value.requires_grad]
        for name in trained:  # the base stays without memory
            owner, _, last = name.rpartition(".")
            module = model.get_submodule(owner)
            setattr(module, last, torch.nn.Parameter(torch.randn(module.weight.shape)))
        self.model = model
        self.named = FORM.in_order({n: value for n, value in model.named_parameters() if value.requires_grad})
        self.lora = lora_state(model)
        optimizer = torch.optim.AdamW(self.named.values(), lr=1e-4)
        for parameter in self.named.values():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        self.moments = {peft_name(name): optimizer.state[value]["exp_avg"] for name, value in self.named.items()}
        self.lora = lora_state(model)
        accelerator = Accelerator(cpu=True)
        schedule = get_scheduler("constant", optimizer)
        accelerator.prepare(model, optimizer, schedule, device_placement=[False, False, False])
        keep_states_small(accelerator, model, FORM)
        folder.mkdir()
        self.state = folder / "cat-step00000007-state"
        save_state(accelerator, RunFolder.of(folder.parent, folder.name), self.state, 1, 7, 1)

    def matrices(self, paths: list[str], part: str) -> list[torch.Tensor]:
        return [self.lora[f"{path}.{part}.weight"] for path in paths]


def test_a_state_is_laid_out_as_sd_scripts_split_qkv_has_it(tmp_path: Path) -> None:
    one = OneOfEach(tmp_path / "cat")
    found = load_file(one.state / "model.safetensors")
    order = torch.load(one.state / "optimizer.bin", weights_only=True)["state"]
    number = 0
    assert len(found) == 3 * len(MODULES)
    for module, paths in MODULES:
        downs, ups = one.matrices(paths, "lora_A"), one.matrices(paths, "lora_B")
        assert torch.equal(found[f"lora_unet_{module}.lora_down.weight"], torch.cat(downs))
        assert torch.equal(found[f"lora_unet_{module}.lora_up.weight"], torch.block_diag(*ups))
        assert float(found[f"lora_unet_{module}.alpha"]) == ALPHA * len(paths)
        for name in [f"{path}.{part}.weight" for part in ("lora_A", "lora_B") for path in paths]:
            assert torch.equal(order[number]["exp_avg"], one.moments[name]), name
            number += 1
    assert number == len(order)
    assert not list(one.state.glob("custom_checkpoint_*"))  # accelerate would refuse to load it


def test_what_sd_scripts_have_no_place_for_keeps_its_names() -> None:
    lora = {f"transformer_blocks.0.attn.to_q.lora_{part}.weight": torch.ones(2, 2) for part in "AB"}
    assert FORM.write(lora).keys() == lora.keys()
    assert StateForm("flux2", 1.0).write(lora).keys() == lora.keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("lora_unet_single_blocks_0_linear2.alpha"), "no lora_unet_single_blocks_0_linear2"),
        (lambda found: found.update({"lora_unet_img_in.alpha": torch.ones(())}), "lora_unet_img_in.alpha as well"),
        (lambda found: found.update({"lora_unet_single_blocks_0_linear2.alpha": torch.tensor(4.0)}), "alpha is 4"),
        (lambda found: found["lora_unet_single_blocks_0_linear1.lora_up.weight"].fill_(1.0), "one LoRA of rank 12"),
    ],
)
def test_a_state_of_another_lora_is_refused_in_a_sentence(tmp_path: Path, change, message: str) -> None:
    one = OneOfEach(tmp_path / "cat")
    found = load_file(one.state / "model.safetensors")
    named = [name for name, value in one.model.named_parameters() if value.requires_grad]
    assert same(FORM.read(found, one.lora, named).lora, one.lora)
    change(found)
    with pytest.raises((TrainingError, ValueError), match=message):
        FORM.read(found, one.lora, named)


# A training goes on from what sd-scripts would have written.

SETTINGS = {"max_train_steps": 4, "network_dim": 4, "network_alpha": 2.0, "train_blocks": "single"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = new_run(tmp_path_factory.mktemp("sd"), "whole", some_pictures, save_every_n_steps=2, **SETTINGS)
    train_here(folder)
    return folder


def as_theirs(whole: RunFolder, tmp_path: Path, name: str) -> tuple[RunFolder, Path, dict[str, torch.Tensor]]:
    """A run that has the other's state of step 2 as sd-scripts write it: alpha as asked for, a count gone wrong."""
    folder = new_run(tmp_path, name, some_pictures, **SETTINGS)
    state = folder.step_state(2)
    shutil.copytree(whole.step_state(2), state)
    (state / "train_state.json").write_text(json.dumps({"current_epoch": 1, "current_step": 1}))
    for extra in state.glob("*.json"):
        if extra.name != "train_state.json":
            extra.unlink()
    found = load_file(state / "model.safetensors")
    for key in found:
        if key.endswith(".alpha"):
            found[key] = torch.tensor(2.0)
    save_file(found, state / "model.safetensors")
    return folder, state, found


def test_weights_moments_and_step_of_sd_scripts_split_state_are_exact(whole: RunFolder, tmp_path: Path) -> None:
    folder, state, _ = as_theirs(whole, tmp_path, "split")
    train_here(folder, attempt=2, resume_from=state)
    assert losses_of(folder) == {step: loss for step, loss in losses_of(whole).items() if step > 2}
    assert same(lora_of(folder), lora_of(whole))
    (told,) = events_of(folder, "resume.adapted")
    assert (told.data["source"], told.data["optimizer"], told.data["step"]) == ("sd-scripts", "kept", 2)
    assert told.data["notices"] == ["it says step 1, its optimizer has made 2: the training goes on there"]


def test_of_sd_scripts_usual_state_the_weights_are_exact_and_the_moments_begin_anew(
    whole: RunFolder, tmp_path: Path
) -> None:
    folder, state, found = as_theirs(whole, tmp_path, "dense")
    for key in [key for key in found if key.endswith("linear1.lora_down.weight")]:
        found[key] = torch.randn(4, found[key].shape[1])
        up = key.replace("down", "up")
        found[up] = torch.randn(found[up].shape[0], 4) / 10
    text = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    found |= {f"{text}.lora_down.weight": torch.ones(4, 8), f"{text}.lora_up.weight": torch.ones(8, 4)}
    save_file(found, state / "model.safetensors")
    seen: dict[str, torch.Tensor] = {}

    import fluxcore.training.train as module

    original = module.load_state

    def look(transformer, *arguments):
        resumed = original(transformer, *arguments)
        seen.update({name: value.clone() for name, value in lora_state(transformer).items()})
        return resumed

    module.load_state = look
    try:
        train_here(folder, attempt=2, resume_from=state)
    finally:
        module.load_state = original
    name = "single_transformer_blocks.1"
    down, up = (found[f"lora_unet_single_blocks_1_linear1.lora_{part}.weight"] for part in ("down", "up"))
    parts = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    added = [seen[f"{name}.{part}.lora_B.weight"] @ seen[f"{name}.{part}.lora_A.weight"] for part in parts]
    assert torch.equal(torch.cat(added), up @ down)
    (told,) = events_of(folder, "resume.adapted")
    assert (told.data["source"], told.data["optimizer"]) == ("sd-scripts", "fresh")
    assert any("without memory" in notice for notice in told.data["notices"])
    assert any("text encoder" in notice for notice in told.data["notices"])


def test_a_state_of_before_is_resumed_as_it_was(whole: RunFolder, tmp_path: Path) -> None:
    """Peft's names, and the moments in the order of diffusers' modules: so they were written until November 2026."""
    folder = new_run(tmp_path, "old", some_pictures, **SETTINGS)
    state = folder.step_state(2)
    shutil.copytree(whole.step_state(2), state)
    (state / ABOUT_FILE).unlink()  # nor did they list their files
    training = train_here(new_run(tmp_path, "model", some_pictures, **{**SETTINGS, "max_train_steps": 1}))
    named = [n for n, value in training.pipeline.transformer.named_parameters() if value.requires_grad]
    form = StateForm("flux1", 2.0)
    found = form.read(load_file(state / "model.safetensors"), lora_state(training.pipeline.transformer), named)
    save_file(found.lora, state / "model.safetensors")
    optimizer = torch.load(state / "optimizer.bin", weights_only=True)
    moments = dict(zip(found.order, (optimizer["state"][i] for i in range(len(named))), strict=True))
    assert [peft_name(name) for name in named] != found.order
    optimizer["state"] = {i: moments[peft_name(name)] for i, name in enumerate(named)}
    torch.save(optimizer, state / "optimizer.bin")
    train_here(folder, attempt=2, resume_from=state)
    assert same(lora_of(folder), lora_of(whole))


def test_sd_scripts_own_network_loads_our_state(tmp_path: Path) -> None:
    source = os.environ.get(SD_SCRIPTS)
    if not source:
        pytest.skip(f"set {SD_SCRIPTS} to a folder with kohya's sd-scripts")
    one = OneOfEach(tmp_path / "cat", heads=24, head=128)
    script, out = Path(__file__).with_name("sd_scripts_network.py"), tmp_path / "loaded.pt"
    command = [sys.executable, script, source, one.state, str(RANK), str(ALPHA), out]
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if "too many values to unpack (expected 1)" in ended.stderr:
        pytest.skip("these sd-scripts can't build a split_qkv network: fixed by their pull request 2396 of July 2026")
    assert ended.returncode == 0, ended.stderr
    found = torch.load(out, weights_only=True)
    for module, paths in MODULES:
        assert float(found[f"lora_unet_{module}*"]) == ALPHA / RANK
        for i, path in enumerate(paths):
            number = f"{i}." if len(paths) > 1 else ""
            for theirs, ours in (("lora_down", "lora_A"), ("lora_up", "lora_B")):
                key, name = f"lora_unet_{module}.{theirs}.{number}weight", f"{path}.{ours}.weight"
                assert torch.equal(found[key], one.lora[name]), key
                assert torch.equal(found[f"{key}!"], one.moments[name]), key
    assert len(found) == sum(1 + 4 * len(paths) for _, paths in MODULES)
    # And what it saves is read back here.
    named = [name for name, value in one.model.named_parameters() if value.requires_grad]
    again = FORM.read(load_file(Path(f"{out}-state") / "model.safetensors"), one.lora, named)
    assert same(again.lora, one.lora)
