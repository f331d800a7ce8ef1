"""Settings as a whole on the Train page: templates, another run's, text, and what a training will need."""

from __future__ import annotations

import json
import shlex

import pytest
import streamlit as st

from fluxcore.config import RunConfig, parse_config, resolve_config
from fluxcore.config.templates import list_templates, load_template, remove_template, save_template
from fluxcore.errors import UserError
from studio import estimate
from studio.drafts import Draft, newest_draft
from studio.labels import SHORT_STALL
from studio.templates import command
from tests.drawn_pages import add_pictures, open_page, text
from tests.drawn_pages import outputs as outputs  # the fixture
from tests.fake_runs import FakeRun


def test_a_template_is_kept_without_the_runs_own(tmp_path):
    name = save_template(tmp_path, "My portraits!", {"lora_name": "cat", "network_dim": 32, "nonsense": 1})
    assert name == "My-portraits" and list_templates(tmp_path) == [name]
    assert load_template(tmp_path, name) == {"network_dim": 32}
    remove_template(tmp_path, name)
    assert list_templates(tmp_path) == []
    for wrong in ("../x", "", "a/b"):
        with pytest.raises(UserError):
            load_template(tmp_path, wrong)
    with pytest.raises(UserError, match="name"):
        save_template(tmp_path, "!!", {})


def test_a_template_is_saved_applied_and_undone(outputs):
    app = open_page()
    app.text_input(key="form.lora_name").set_value("cat").run()
    app.number_input(key="form.network_dim").set_value(32).run()
    app.text_input(key="template-name").set_value("big")
    app.button(key="template-save").click().run()
    assert list_templates(outputs) == ["big"] and not app.exception
    app.number_input(key="form.network_dim").set_value(8).run()
    app.selectbox(key="template").set_value("big").run()
    app.button(key="template-apply").click().run()
    assert app.number_input(key="form.network_dim").value == 32
    assert app.text_input(key="form.lora_name").value == "cat", "a template has no name of a run"
    app.button(key="settings-undo").click().run()
    assert newest_draft(outputs).values["network_dim"] == 8
    app.button(key="template-remove").click().run()
    assert list_templates(outputs) == ["big"], "it is asked first"
    app.button(key="confirm-yes").click().run()
    assert list_templates(outputs) == [] and not app.exception and app.selectbox(key="template").value is None


def test_settings_of_an_old_run_are_taken(outputs):
    FakeRun(outputs, "old", network_dim=64, resume_from_checkpoint="old-000004-state")
    app = open_page()
    app.text_input(key="form.lora_name").set_value("new").run()
    app.selectbox(key="settings-run").set_value("old").run()
    app.button(key="settings-run-apply").click().run()
    values = newest_draft(outputs).values
    assert (values["network_dim"], values["lora_name"], values["resume_from_checkpoint"]) == (64, "new", "")


def test_settings_come_in_from_a_file_of_another_trainer(outputs):
    app = open_page()
    app.text_input(key="form.lora_name").set_value("cat").run()
    kohya = {"LoRA_type": "Flux1", "network_dim": 24, "max_train_epochs": 7, "unknown_thing": 3}
    uploader = next(one for one in app.get("file_uploader") if (one.key or "").startswith("settings-file"))
    uploader.set_value([("kohya.json", json.dumps(kohya).encode(), "application/json")])
    app.run()
    assert not app.exception
    values = newest_draft(outputs).values
    assert (values["network_dim"], values["max_train_epochs"]) == (24, 7)
    assert "unknown\\_thing" in text(app), "what was left out is named"


def test_the_settings_are_text_that_can_be_edited(outputs):
    app = open_page()
    app.text_input(key="form.lora_name").set_value("cat").run()
    app.number_input(key="form.network_dim").set_value(32).run()
    values = json.loads(app.text_area(key="config.text").value)
    assert values["network_dim"] == 32 and "seed" not in values
    app.text_area(key="config.text").set_value(json.dumps({"lora_name": "dog", "seed": 7})).run()
    app.button(key="config-text-apply").click().run()
    draft = newest_draft(outputs)
    assert (draft.values["lora_name"], draft.values["seed"]) == ("dog", 7)
    assert draft.values["network_dim"] == 8, "as flux-mini has it"
    for wrong, says in (("{", "no JSON"), ('{"ranks": 3}', "there is no setting ranks"), ("[]", "one JSON object")):
        app.text_area(key="config.text").set_value(wrong).run()
        app.button(key="config-text-apply").click().run()
        assert says in text(app).replace("\\", "") and newest_draft(outputs).values["lora_name"] == "dog"


def test_a_command_is_edited_or_put_in(outputs):
    app = open_page()
    app.text_input(key="form.lora_name").set_value("cat").run()
    app.number_input(key="form.network_dim").set_value(32).run()
    shown = app.text_area(key="command.text").value
    assert shown.startswith("./fluxgym new cat --images ") and "--set network_dim=32" in shown
    app.text_area(key="command.text").set_value(
        "./fluxgym new dog --images pictures --trigger d0g \\\n --set 'sample_prompts=a \"dog\"' --set flip_aug=false --start"
    ).run()
    app.button(key="command-text-apply").click().run()
    values = newest_draft(outputs).values
    assert [values[name] for name in ("lora_name", "concept_sentence", "sample_prompts", "flip_aug")] == [
        "dog", "d0g", 'a "dog"', False
    ]  # fmt: skip
    assert values["network_dim"] != 32 and not (outputs / "dog").exists(), "nothing is run"
    newest_draft(outputs).edit({"base_model": "flux-mini", "vram": "48G"})
    app = open_page()
    app.text_area(key="command.text").set_value("./fluxgym start dog --set seed=7").run()
    app.button(key="command-text-apply").click().run()
    values = newest_draft(outputs).values
    assert [values[name] for name in ("seed", "concept_sentence", "base_model", "vram")] == [
        7,
        "d0g",
        "flux-mini",
        "48G",
    ]
    for wrong, says in (
        ("rm -rf /", "must begin with ./fluxgym new"),
        ("./fluxgym new cat --set 'a", "not closed"),
        ("./fluxgym new cat --set seed", "--set takes key=value"),
        ("./fluxgym new cat --set seed=many", "seed"),
        ("./fluxgym new cat --set ranks=3", "ranks"),
        ("./fluxgym new cat --speed 3", "--speed"),
        ("./fluxgym new", "NAME"),
        ("./fluxgym new --help", "changes nothing"),
        ("./fluxgym new cat --config a.json", "Settings from"),
    ):
        app.text_area(key="command.text").set_value(wrong).run()
        app.button(key="command-text-apply").click().run()
        assert not app.exception
        assert says in text(app).replace("\\", "") and newest_draft(outputs).values["lora_name"] == "dog", wrong


def test_the_command_makes_the_same_run(tmp_path):
    from fluxcore.cli.options import build_config

    config = parse_config(
        {
            "lora_name": "my-cat",
            "base_model": "flux-dev",
            "vram": "12G",
            "sample_prompts": "a 'cat'\nb",
            "flip_aug": True,
        }
    )
    words = shlex.split(command(config, tmp_path).replace("\\\n", " "))
    settings = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    assert words[:4] == ["./fluxgym", "new", "my-cat", "--images"] and words[-1] == "--start"
    assert build_config("my-cat", None, settings, {}) == config


def test_changed_settings_are_marked_and_go_back(outputs):
    app = open_page()
    app.number_input(key="form.network_dim").set_value(32).run()
    assert "changed" in text(app) and newest_draft(outputs).changed() == {"network_dim": 8}
    app.button(key="usual-network_dim").click().run()
    assert newest_draft(outputs).changed() == {} and "network_dim" not in newest_draft(outputs).touched
    assert app.number_input(key="form.network_dim").value == 8


def test_time_comes_from_a_run_of_the_same_kind_or_is_not_known(outputs, monkeypatch):
    config = resolve_config({"lora_name": "new", "base_model": "flux-mini"})
    assert estimate.pace(config, None) == (None, 0.0, "")
    assert "not known" in estimate.time_words(None, 0.0, "", 100)
    run = FakeRun(outputs, "old", base_model="flux-mini", resolution=64)
    run.start(pid=1, create_time=1)
    run.steps(20)
    from studio.live import live_runs

    live_runs().expire()
    each, before, source = estimate.pace(config, None)
    assert each and "old" in source and "about" in estimate.time_words(each, before, source, 100)
    assert "**2 min**" in estimate.time_words(1.0, 20.0, source, 100), "loading and the pictures' cache come on top"
    run.append("runner", "run.completed", {"weights": run.weights(), "steps": 20, "seconds": 500.0})
    live_runs().expire()
    each, around, _ = estimate.pace(config, None)
    assert around > before and around + 20 * each == pytest.approx(500), "as long as that one took from start to end"
    other = RunConfig(lora_name="new", base_model="flux-dev", resolution=512)
    assert estimate.pace(other, None)[0] is None, "a step of another model says nothing"


def test_what_does_not_fit_is_said_with_a_way_out(outputs, monkeypatch):
    from fluxcore.planner.plan import Phase, Plan
    from fluxcore.runs.disk import DiskNeeds

    made = Plan(
        phases=(Phase("pictures", {"VAE": 1}), Phase("train", {"base model": 22 << 30, "LoRA": 1 << 30, "activations": 4 << 30}),),
        parameters=1, lora_parameters=1, step_flops=1e12, swapped_bytes=0, host_bytes=1, steps=10,
        disk=DiskNeeds(1 << 20, 1 << 20, 3 << 30), checkpointing=True,
    )  # fmt: skip
    monkeypatch.setattr(estimate, "_planned", lambda *_: (made, ""))
    draft = Draft(outputs)
    draft.edit({"lora_name": "cat", "base_model": "flux-dev", "vram": "24G", "max_train_steps": 10, "fp8_base": False})
    app = open_page()
    assert "27 GiB" in text(app).replace(".0", "") and "on disk" in text(app)
    app.button(key="estimate-advice").click().run()
    values = newest_draft(outputs).values
    assert values["fp8_base"] is True and not app.exception


def test_the_settings_go_out_as_a_file(outputs, monkeypatch):
    files, button = {}, st.download_button

    def noted(label, data, *, file_name, **more):
        files[file_name] = data
        return button(label, data, file_name=file_name, **more)

    monkeypatch.setattr(st, "download_button", noted)
    app = open_page()
    app.text_input(key="form.lora_name").set_value("cat").run()
    app.number_input(key="form.network_dim").set_value(24).run()
    assert "settings-export" in [one.key for one in app.download_button]
    assert json.loads(files["cat.json"])["network_dim"] == 24


def test_a_stall_time_that_ends_healthy_runs_is_told(outputs):
    app = open_page()
    for seconds, is_told in ((29, True), (SHORT_STALL, False), (3, True)):
        app.number_input(key="form.stall_seconds").set_value(seconds).run()
        assert ("may be taken for a stall" in text(app)) is is_told, seconds
    app.checkbox(key="form.enable_monitoring").set_value(False).run()
    assert "may be taken for a stall" not in text(app)


def test_a_setting_is_found_by_a_word_and_what_was_changed_alone(outputs):
    app = open_page()
    app.text_input(key="form.lora_name").set_value("cat").run()
    every = len(app.number_input)
    app.text_input(key="form-find").set_value("DROPOUT").run()
    shown = {one.key for one in app.number_input}
    assert {"form.network_dropout", "form.caption_dropout_rate"} <= shown and len(shown) < every
    app.text_input(key="form-find").set_value("no such thing").run()
    assert "No setting has that word" in text(app)
    app.text_input(key="form-find").set_value("").run()
    assert app.toggle(key="form-changed").disabled or "form.seed" in {one.key for one in app.number_input}
    app.number_input(key="form.seed").set_value(7).run()
    app.toggle(key="form-changed").set_value(True).run()
    shown = {one.key for one in app.number_input}
    assert "form.seed" in shown and "form.network_dropout" not in shown
    app.button(key="usual-seed").click().run()
    assert newest_draft(outputs).values["seed"] != 7


def test_the_trigger_word_goes_into_the_prompts(outputs):
    app = open_page()
    assert app.button(key="prompts-trigger").disabled
    app.text_input(key="form.concept_sentence").set_value("p3t").run()
    app.text_area(key="form.sample_prompts").set_value("a cat\nP3T on the moon").run()
    app.button(key="prompts-trigger").click().run()
    assert newest_draft(outputs).values["sample_prompts"] == "p3t, a cat\nP3T on the moon"
    assert app.text_area(key="form.sample_prompts").value == "p3t, a cat\nP3T on the moon"
    assert app.button(key="prompts-trigger").disabled


def test_an_edited_command_that_was_not_used_is_asked_for_before_the_start(outputs):
    app = open_page()
    app.text_input(key="form.lora_name").set_value("cat").run()
    add_pictures(outputs)
    command = app.text_area(key="command.text").value
    edited = command.replace("--start", "--set seed=7 --start")
    app.text_area(key="command.text").set_value(edited).run()
    app.session_state["text.open"] = False
    app.run()
    assert "command.text" not in [one.key for one in app.text_area]
    app.button(key="start").click().run()
    assert "the command that you edited, or put it back" in text(app) and not (outputs / "cat").exists()
    app.session_state["text.open"] = True
    app.run()
    assert app.text_area(key="command.text").value == edited, "it is there when it is unfolded again"
    app.button(key="command-text-back").click().run()
    assert app.text_area(key="command.text").value == command and "that you edited" not in text(app)
