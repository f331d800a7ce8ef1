"""The schema, its layers, and what a person is told of a wrong value."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fluxcore.config import ConfigError, RunConfig, absolute_paths, from_export, parse_config, resolve_config, to_export
from fluxcore.config.names import is_valid_name, slugify
from fluxcore.log.event import Event, encode

# The seed's own state file, word for word in its names and types.
SEED = json.loads("""{
  "lora_name": "fluffy-cats-v2", "concept_sentence": "fluffycat style", "base_model": "flux-dev", "vram": "20G",
  "num_repeats": 10, "max_train_epochs": 16, "sample_prompts": "fluffycat sitting\\nfluffycat playing",
  "sample_every_n_steps": 100, "resolution": 512, "enable_checkpointing": true, "resume_from_checkpoint": "",
  "enable_monitoring": true, "seed": 42, "workers": 2, "learning_rate": "8e-4", "save_every_n_epochs": 4,
  "guidance_scale": 1.0, "timestep_sampling": "shift", "network_dim": 4, "timestamp": 1706140800.123,
  "status": "starting"
}""")


def test_the_seeds_file_comes_in_and_goes_out_with_the_same_values_and_types() -> None:
    known, unknown = from_export({**SEED, "made_up": 1})
    assert unknown == ["made_up"]
    out = to_export(resolve_config(known), "starting", 1706140800.123)
    assert {key: out[key] for key in SEED} == SEED
    assert all(type(out[key]) is type(SEED[key]) for key in SEED)


def test_fluxgyms_defaults_hold_for_flux() -> None:
    config = resolve_config({"base_model": "flux-dev"})
    assert (config.num_repeats, config.max_train_epochs, config.resolution, config.seed) == (10, 16, 512, 42)
    assert (config.learning_rate, config.network_dim, config.save_every_n_epochs) == ("8e-4", 4, 4)
    assert config.enable_checkpointing and config.enable_monitoring and config.discrete_flow_shift == 3.1582


def test_later_layers_win_over_presets_and_the_models_own_settings() -> None:
    assert resolve_config({"base_model": "flux-mini"}).resolution == 64
    assert resolve_config({"base_model": "flux-dev", "vram": "16G"}).optimizer_type == "adafactor"
    config = resolve_config({"base_model": "flux-mini", "resolution": 96}, {"resolution": 128})
    assert config.resolution == 128


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("max_train_epochs", 0, "must be at least 1"),
        ("max_train_epochs", 10**9, "must be at most"),
        ("learning_rate", "fast", "must be a number such as 8e-4"),
        ("learning_rate", "-1", "must be more than 0"),
        ("learning_rate", "nan", "must be more than 0"),
        ("resolution", 100, "must be a multiple of 16"),
        ("network_dim", 0, "must be at least 1"),
        ("timestep_sampling", "cosine", "must be one of"),
        ("lora_name", "../up", "a name is 1 to 64"),
        ("num_repeats", "many", "num_repeats must be a whole number"),
        ("max_train_epoch", 3, "did you mean max_train_epochs"),
        ("lora_name", "my cat", "'my cat' can't be its name: .*; my-cat would do"),
        ("max_grad_norm", float("inf"), "finite"),
        ("made_up", 1, "is not a setting"),
        ("extra_resolutions", "500", "multiples of 16"),
        ("optimizer_args", "weight_decay 0.1", "name=value pairs"),
        ("optimizer_args", "betas=__import__('os')", "name=value pairs"),
        ("optimizer_args", "lr=1", "name=value pairs"),
        ("train_double_block_indices", "1,b", "block numbers"),
        ("train_single_block_indices", "3-", "block numbers"),
        ("train_layers", "attn,cross", "some of attn, mlp and mod"),
    ],
)
def test_a_wrong_value_is_one_sentence_at_its_field(field: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        parse_config({field: value})
    assert list(caught.value.fields) in ([field], ["config"])
    assert "\n" not in str(caught.value)


def test_an_unknown_base_model_names_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="unknown base model 'flux-9'.*flux-mini.*flux-dev"):
        resolve_config({"base_model": "flux-9"})


@pytest.mark.parametrize("given", ["/nowhere/at/all", "~/nowhere/at/all", "./nowhere/at/all"])
def test_a_base_model_that_looks_like_a_path_is_told_as_one(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/cat")
    with pytest.raises(ConfigError, match=r"there is no folder /\S*nowhere/at/all") as caught:
        resolve_config({"base_model": given})
    assert "flux-mini" not in str(caught.value)


def test_a_base_model_by_a_path_that_is_not_absolute_is_told_the_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    with pytest.raises(ConfigError, match=f"give its absolute path, {tmp_path}/model"):
        resolve_config({"base_model": "~/model"})


def test_every_setting_has_a_group_and_an_explanation() -> None:
    from fluxcore.config import GROUPS

    for name, field in RunConfig.model_fields.items():
        assert isinstance(field.json_schema_extra, dict), name
        assert field.json_schema_extra["group"] in GROUPS, name
        assert field.description and field.description.endswith("."), name


def test_steps_come_from_epochs_unless_steps_are_given() -> None:
    config = parse_config({"num_repeats": 3, "train_batch_size": 4, "max_train_epochs": 5})
    assert config.steps_per_epoch(7) == 6
    assert config.total_steps(7) == 30
    assert parse_config({"max_train_steps": 11}).total_steps(7) == 11


@pytest.mark.parametrize("name", ["a", "my-cat", "A.b_c-9", "x" * 64])
def test_valid_names(name: str) -> None:
    assert is_valid_name(name)


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "-x", "a/b", "a b", "ä", "x" * 65, "a\n", "😀"])
def test_invalid_names(name: str) -> None:
    assert not is_valid_name(name)
    assert slugify(name) == "" or is_valid_name(slugify(name))


def test_what_was_typed_becomes_the_nearest_name() -> None:
    assert slugify("My Cat!") == "My-Cat"
    assert slugify("Café über/../x") == "Cafe-uber-..-x"
    assert slugify("😀") == ""


def test_every_number_and_text_has_a_limit_and_all_of_them_fit_into_one_line_of_the_log() -> None:
    worst: dict[str, object] = {}
    formed = ("optimizer_args", "train_double_block_indices", "train_single_block_indices", "train_layers")
    checked = ("lora_name", "vram", "learning_rate", "alerts", "gpu_ids", "extra_resolutions")
    for name, field in RunConfig.model_fields.items():
        if field.annotation is int:
            limit = next(item.le for item in field.metadata if hasattr(item, "le"))
            assert limit < 2**63, name
            with pytest.raises(ConfigError, match="must be at most"):
                parse_config({name: 10**23})
        elif field.annotation is str and name not in checked:
            longest = next(item.max_length for item in field.metadata if hasattr(item, "max_length"))
            if name not in formed:
                worst[name] = "\x01" * longest  # six bytes each in JSON
            with pytest.raises(ConfigError, match=f"{name} must be at most .* characters"):
                parse_config({name: "x" * (longest + 1)})
    config = parse_config({**worst, "lora_name": "x" * 64})
    encode(Event("", "x" * 64, "config.saved", "app", "app-1-1", 1, {"config": config.model_dump()}))
    with pytest.raises(ConfigError, match="learning_rate"):
        parse_config({"learning_rate": "0" * 100_000 + "1"})
    with pytest.raises(ConfigError, match="gpu_ids must be at most .* characters"):
        parse_config({"gpu_ids": ",".join(map(str, range(1000)))})


def test_alerts_are_names_and_an_address_given_for_one_is_not_repeated() -> None:
    for given, kept in (("all", "all"), (" Off ", "off"), ("phone,mail , phone", "phone, mail")):
        assert parse_config({"alerts": given}).alerts == kept
    wrong = (
        "",
        ",",
        "all, phone",
        "ntfys://ntfy.sh/s3cret",
        "phone=ntfys://s3cret",
        "my s3cret",
        ["s3cret"],
        "s3cret" * 1000,
    )
    for given in wrong:
        with pytest.raises(ConfigError, match="^alerts takes all, off, or names") as caught:
            parse_config({"alerts": given})
        assert "s3cret" not in f"{caught.value} {caught.value.fields}"


def test_paths_count_from_the_callers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder in ("own-model", "flux-mini"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "model_index.json").touch()
    for given, wanted in (
        ("old.safetensors", tmp_path / "old.safetensors"),
        ("a/old.safetensors", tmp_path / "a" / "old.safetensors"),
        ("~/old.safetensors", tmp_path / "home" / "old.safetensors"),
        ("~nobody-of-that-name/x", tmp_path / "~nobody-of-that-name" / "x"),
        ("/there/old.safetensors", "/there/old.safetensors"),
        ("", ""),
    ):
        assert absolute_paths({"network_weights": given}) == {"network_weights": str(wanted)}
    for given, wanted in (
        ("own-model", tmp_path / "own-model"),
        ("./not-there", tmp_path / "not-there"),
        ("flux-mini", "flux-mini"),  # a name of the registry stays one, whatever lies here
        ("flux-9000", "flux-9000"),
        ("black-forest-labs/FLUX.1-dev", "black-forest-labs/FLUX.1-dev"),
    ):
        assert absolute_paths({"base_model": given}) == {"base_model": str(wanted)}
    assert absolute_paths({"network_weights": 3, "seed": 1}) == {"network_weights": 3, "seed": 1}


def test_the_page_of_settings_is_the_schemas_and_every_setting_says_when_to_change_it() -> None:
    from fluxcore.config.advice import ADVICE
    from fluxcore.config.page import markdown
    from studio.labels import LABELS, label_of

    assert set(ADVICE) == set(RunConfig.model_fields)
    assert all(when for _, when in ADVICE.values())
    page = Path(__file__).resolve().parents[1] / "docs" / "training.md"
    assert page.read_text(encoding="utf-8") == markdown(), "python -m fluxcore.config.page > docs/training.md"
    assert all(label_of(name) for name in RunConfig.model_fields) and set(LABELS) <= set(RunConfig.model_fields)
