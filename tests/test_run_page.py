"""A run's page without a browser: its tabs by their address, and what a person does to a run there."""

from __future__ import annotations

import json
import re

import pytest
from streamlit.testing.v1 import AppTest

from fluxcore.log import read_events
from fluxcore.runs import load_run
from fluxcore.runs.about import set_tags, set_title
from fluxcore.runs.trash import list_trash
from studio import ask, notice, step_charts
from studio.drafts import newest_draft
from studio.files import run_url
from studio.live import live_runs
from studio.run import log as log_tab
from studio.run import samples
from tests.drawn_pages import open_page, settings_of, text
from tests.drawn_pages import outputs as outputs  # the fixture
from tests.fake_runs import FakeRun
from tests.stub_trainer import save_state


@pytest.fixture
def ended(outputs) -> FakeRun:
    """A run of two attempts with two states, samples and logs."""
    run = FakeRun(outputs, "cat")
    run.start(pid=1, create_time=1)
    run.sample()
    run.steps(20)
    run.machine()
    evidence = {"phase": "train", "seconds_without_progress": 301.2, "limit_seconds": 300}
    resume = {"resume_checkpoint": "cat-000004-state", "resume_step": 10}
    run.append("runner", "run.stalled", {"verdict": "gpu_idle", "evidence": evidence, "stacks": None} | resume)
    run.append("runner", "run.killed", {"pids": [1], "signals": ["TERM"], "seconds": 1.0, "survivors": []} | resume)
    run.step = 10
    run.start(pid=1, create_time=1, resume_step=10)
    run.steps(20)
    run.sample()
    save_state(run.folder.path, "cat-000004-state", 10, 4)
    save_state(run.folder.path, "cat-000008-state", 30, 8)
    run.append("runner", "run.stopped", {"reason": "user", "resume_checkpoint": "cat-000008-state", "resume_step": 30})
    run.folder.train_log.write_text("step 1\n\x1b[31mUserWarning: old\x1b[0m\nRuntimeError: <b>boom</b>\n")
    run.folder.monitor_log.write_text("2026-11-23 20:01:15 - INFO - monitors cat\n")
    return run


def tab(name: str, run: str = "cat") -> AppTest:
    return open_page("run", name=run, tab=name)


def test_each_tab_has_an_address_and_only_it_is_drawn(ended):
    says = {
        "overview": "Newest samples",
        "samples": "before",
        "loss": "attempt 2 at step 10",
        "monitor": "The GPU has done nothing for 5 min",
        "log": "UserWarning: old",
        "checkpoints": "Resume takes this one",
    }
    app = open_page("run", name="cat")
    for name, words in says.items():
        app.query_params["tab"] = name
        shown = text(app.run())
        assert not app.exception and words in shown
        assert not [other for other in says.values() if other != words and other in shown], name
    app.query_params["tab"] = "nonsense"
    assert says["overview"] in text(app.run())


def test_the_loss_is_drawn_as_asked(ended):
    app = tab("loss")
    before = app.get("arrow_vega_lite_chart") or app.get("vega_lite_chart")
    assert len(before) == 3, "loss, learning rate, gradient norm"
    app.toggle(key="loss-log").set_value(True).run()
    app.toggle(key="loss-clip").set_value(True).run()
    app.slider(key="loss-smoothing").set_value(0.0).run()
    assert not app.exception and "are drawn at" in text(app)
    chart = (app.get("arrow_vega_lite_chart") or app.get("vega_lite_chart"))[0]
    assert '"type": "log"' in chart.proto.spec or '"type":"log"' in chart.proto.spec


def test_the_log_is_searched_and_its_levels_are_seen(ended):
    app = tab("log")
    lines = next(item.proto.body for item in app.get("html") if "class=fg-log" in item.proto.body)
    assert "<span class='fg-warn'>UserWarning: old</span>" in lines and "\x1b" not in lines
    assert "<span class='fg-bad'>RuntimeError: &lt;b&gt;boom" in lines
    app.text_input(key="log-search").set_value("BOOM").run()
    lines = next(item.proto.body for item in app.get("html") if "class=fg-log" in item.proto.body)
    assert "<mark>boom</mark>" in lines and "UserWarning" not in lines and "1 line of 3" in text(app)
    app.text_input(key="log-search").set_value("nowhere").run()
    assert "No line has" in text(app)


@pytest.mark.parametrize(
    ("line", "level"),
    [("no errors so far", ""), ("2026 - ERROR - x", "bad"), ("DEBUG x", "quiet"), ("a WARNING", "warn")],
)
def test_levels(line, level):
    assert (f"fg-{level}" if level else "fg-") in log_tab._line(line, "") or not level
    assert level or "span" not in log_tab._line(line, "")


def test_events_are_narrowed(ended):
    app = tab("events")
    shown = app.dataframe[0].value
    assert "train.step" not in set(shown["type"]) and "run.stalled" in set(shown["type"])
    app.multiselect(key="events-types-cat").set_value(["train.step"]).run()
    assert len(app.dataframe[0].value) == 40
    app.text_input(key="events-search-cat").set_value('"step":7,').run()
    assert len(app.dataframe[0].value) == 1


def test_an_event_is_shown_whole(ended):
    app = tab("events")
    row = list(app.dataframe[0].value["type"]).index("run.stopped")
    app.session_state["events-cat"] = {"selection": {"rows": [row], "columns": [], "cells": []}}
    app.run()
    assert not app.exception
    [shown] = app.json
    event = json.loads(shown.value)
    assert event["type"] == "run.stopped" and event["data"]["resume_step"] == 30 and event["writer"]


def test_another_one_like_it_is_a_draft(ended, outputs):
    app = open_page()
    app.text_input(key="form.lora_name").set_value("mine").run()
    mine = newest_draft(outputs)
    app.switch_page("../pages/run.py").run()
    app.button(key="run-duplicate").click().run()
    app.button(key="duplicate-yes").click().run()
    assert not app.exception
    draft = newest_draft(outputs)
    assert draft.id != mine.id and (draft.values["num_repeats"], draft.values["lora_name"]) == (120, "cat-2")
    assert sorted(file.name for file in draft.dataset.glob("*.png")) == [f"picture{i}.png" for i in range(4)]
    app.switch_page("../pages/train.py").run()
    app.button(key="go-back").click().run()
    assert app.text_input(key="form.lora_name").value == "mine"


def test_it_goes_on_from_the_state_that_was_chosen(ended, outputs):
    app = tab("checkpoints")
    app.button(key="from-cat-000004-state").click().run()
    assert not app.exception
    [asked] = [event for event in read_events(outputs / "cat") if event.type == "run.requested"][2:]
    assert asked.data["resume_from"] == "cat-000004-state" and load_run(outputs, "cat")[1].state == "queued"


def test_a_click_on_a_sample_is_that_sample(ended):
    run = live_runs().get("cat")
    path = next(one["path"] for one in run.state.samples if (one["step"], one["index"]) == (30, 2))
    found = samples._of_address(["nobody", "cat"], run_url(run.folder, path))
    assert found and (found[0].name, samples.step_of(found[1]), samples.index_of(found[1])) == ("cat", 30, 2)
    assert samples._of_address(["cat"], "files/runs/cat/dataset/picture1.png") is None


def test_a_config_is_held_against_the_defaults_and_another_run(ended, outputs):
    FakeRun(outputs, "dog", network_dim=32)
    app = tab("config")
    assert "num_repeats" in settings_of(app) and "resolution" not in settings_of(app), "flux-mini's own"
    app.selectbox(key="config-other-cat").select("dog").run()
    assert settings_of(app) == {"lora_name": ["cat", "dog"], "network_dim": ["8", "32"]}
    app.toggle(key="config-only").set_value(False).run()
    assert len(settings_of(app)) > 30


def test_a_checkpoint_is_deleted_after_a_question(ended, outputs):
    app = tab("checkpoints")
    app.button(key="delete-cat-000008-state").click().run()
    assert (outputs / "cat" / "cat-000008-state").is_dir() and "Resume takes this one" in app.warning[0].value
    app.button(key="checkpoint-delete-yes").click().run()
    assert not app.exception and not (outputs / "cat" / "cat-000008-state").exists()
    assert (outputs / "cat" / "cat-000004-state").is_dir()


def test_no_checkpoint_of_a_live_run_can_be_deleted(outputs):
    run = FakeRun(outputs, "cat")
    run.start(pid=1, create_time=1)
    save_state(run.folder.path, "cat-000004-state", 10, 4)
    keys = [button.key for button in tab("checkpoints").button]
    assert "delete-cat-000004-state" not in keys
    assert tab("overview").button(key="run-delete").disabled


def test_title_tags_and_note_are_kept(ended, outputs):
    app = open_page("run", name="cat")
    app.button(key="run-about").click().run()
    app.text_input(key="about-title").set_value("The  good one")
    app.multiselect(key="about-tags").set_value(["keep"])
    app.text_area(key="about-note").set_value("epoch 8")
    app.button(key="about-done").click().run()
    assert not app.exception and "about-note" not in [area.key for area in app.text_area]
    state = load_run(outputs, "cat")[1]
    assert (state.title, state.tags, state.note) == ("The good one", ["keep"], "epoch 8")
    assert "The good one" in text(open_page("run", name="cat"))


def test_the_dialog_holds_what_the_run_has_when_it_is_opened(ended, outputs):
    app = open_page("run", name="cat")
    set_title(outputs, "cat", "cli", "Theirs")
    set_tags(outputs, "cat", "cli", ["theirs"])
    app.button(key="run-about").click().run()
    assert app.text_input(key="about-title").value == "Theirs" and app.multiselect(key="about-tags").value == ["theirs"]
    lines = len(list(read_events(outputs / "cat")))
    app.text_input(key="about-title").set_value("Theirs ").run()
    assert len(list(read_events(outputs / "cat"))) == lines, "nothing has changed"
    app.text_area(key="about-note").set_value("epoch 8").run()
    assert load_run(outputs, "cat")[1].note == "epoch 8" and len(list(read_events(outputs / "cat"))) == lines + 1


def test_what_a_field_of_the_dialog_may_not_hold_is_told_there_and_it_stays_open(ended, outputs):
    app = open_page("run", name="cat")
    app.button(key="run-about").click().run()
    app.multiselect(key="about-tags").set_value(["keep", "x" * 60]).run()
    app.button(key="about-done").click().run()
    assert "tags of at most 40 characters" in text(app) and load_run(outputs, "cat")[1].tags == []
    app.multiselect(key="about-tags").set_value(["keep"]).run()
    assert "of at most 40" not in text(app) and load_run(outputs, "cat")[1].tags == ["keep"]
    app.button(key="about-done").click().run()
    assert "about-tags" not in [one.key for one in app.multiselect]


def test_a_run_is_deleted_and_had_back(ended, outputs):
    app = open_page("run", name="cat")
    app.button(key="run-delete").click().run()
    assert (outputs / "cat").is_dir(), "it asks first"
    app.button(key="delete-yes").click().run()
    assert not (outputs / "cat").exists() and [one.name for one in list_trash(outputs)] == ["cat"]


def test_an_archived_run_is_out_of_sight_and_comes_back(ended, outputs):
    app = open_page("run", name="cat")
    app.button(key="run-archive").click().run()
    assert load_run(outputs, "cat")[1].archived
    app = open_page("run", name="cat")
    app.button(key="run-archive").click().run()
    assert not load_run(outputs, "cat")[1].archived


def test_large_goes_through_steps_and_prompts(ended):
    app = tab("samples")
    app.button(key="samples-large").click().run()
    assert "step **30**" in text(app) and app.button(key="large-right").disabled, "there is none later"
    assert not app.button(key="large-left").disabled
    app.button(key="large-left").click().run()
    assert "step **0**" in text(app) and app.button(key="large-left").disabled
    assert not app.button(key="large-right").disabled
    app.button(key="large-next").click().run()
    assert "grinning cat" in text(app)


def addresses(app: AppTest) -> dict[str, str]:
    return {item.proto.label: item.proto.url for item in app.get("link_button")}


def test_samples_and_states_are_to_be_had_as_one_file(ended):
    assert addresses(tab("samples"))["All as a zip"] == "files/runs/cat/sample?zip"
    assert addresses(tab("samples"))["As one picture"] == "files/runs/cat/sample?grid"
    assert addresses(tab("checkpoints"))["Download"] == "files/runs/cat/cat-000004-state?zip"


@pytest.fixture
def best(outputs) -> FakeRun:
    """A run that was measured thrice: its second LoRA file is the best; the last one is no file any more."""
    run = FakeRun(outputs, "cat")
    run.start(pid=1, create_time=1)
    run.sample()
    for loss in (0.5, 0.3, 0.4, 0.2):
        run.steps(61)
        run.measure(loss)
        run.sample()
    (run.folder.path / "cat-000005.safetensors").unlink()
    run.append("runner", "run.completed", {"weights": run.weights(kilobytes=1), "steps": 244, "seconds": 9.0})
    return run


def test_the_best_lora_is_marked_and_to_be_had(best):
    app = tab("loss")
    url = addresses(app)["Download the best"]
    assert url.startswith("files/runs/cat/cat-000003.safetensors?v=") and addresses(app)["Best: step 122"] == url
    assert "0.2 at step 244, where nothing was saved" in text(app)
    chart = app.get("arrow_vega_lite_chart") or app.get("vega_lite_chart")
    assert "held-out loss" in chart[0].proto.spec and "held-out loss" not in chart[1].proto.spec
    shown = text(tab("samples"))
    assert "step 122, the best" in shown and "★ 122" in shown and ">before<" in shown
    shown = text(tab("checkpoints"))
    assert shown.count(":material/star: best") == 1 and "**cat\\-000003\\.safetensors**" in shown.split("star: best")[0]


def test_a_run_that_measured_nothing_says_how_it_would(ended):
    assert "Share of pictures held out" in text(tab("loss"))
    FakeRun(live_runs().outputs, "dog", validation_split=0.5).steps(3)
    live_runs().expire()  # what a page has just read it reads again a moment later only
    assert "not been measured yet" in text(tab("loss", "dog"))


def test_the_chart_has_what_was_measured_and_its_marks_over_steps_and_over_time(ended):
    run = FakeRun(live_runs().outputs, "dog", minutes_ago=60)
    run.start(pid=1, create_time=1)
    begun = run.now.timestamp()
    run.steps(20, seconds=3.0)
    run.measure(0.5)
    run.append("runner", "run.stalled", {"verdict": "silent", "evidence": {}} | {"resume_step": 10}, wait=300)
    run.step = 10
    run.start(pid=1, create_time=1, resume_step=10)
    run.steps(10, seconds=3.0)
    dog = live_runs().get("dog")
    points = dog.curve("loss")
    by_step, _ = step_charts._rows(dog, points, "step", 0.9)
    told = [(row["step"], row["mark"], row["lane"]) for row in by_step.to_pylist() if row["mark"]]
    assert told == [(20, "stalled", 0), (10, "attempt 2", 1)]
    assert [row["value"] for row in by_step.to_pylist()][-2:] == [None, None], "no line goes through a mark"
    rows = step_charts._rows(dog, points, "time", 0.9)[0].to_pylist()
    at = [round(row["time"] / 1000 - begun) for row in rows]
    assert at[:10] == [3 * step for step in range(1, 11)] and at[-2:] == [360, 361]
    assert [row["piece"] for row in rows[:20]] == [1] * 10 + [2] * 10, "the line breaks where an attempt ended"
    app = tab("loss")
    app.segmented_control(key="loss-axis").set_value("Time").run()
    assert not app.exception
    charts = app.get("arrow_vega_lite_chart") or app.get("vega_lite_chart")
    assert all('"temporal"' in chart.proto.spec for chart in charts)


def test_the_ends_of_epochs_are_on_the_axis(ended):
    run = FakeRun(live_runs().outputs, "dog", minutes_ago=60, max_train_epochs=16)
    run.start(pid=1, create_time=1)
    run.steps(480)
    dog = live_runs().get("dog")
    each = dog.state.total_steps // 16
    marks = step_charts.epoch_marks(dog.state, 480)
    assert 0 < len(marks) <= 6 and all(step == epoch * each <= 480 for epoch, step in marks.items())
    assert step_charts.epoch_marks(dog.state, each) == {1: each} and not step_charts.epoch_marks(dog.state, each - 1)
    points = dog.curve("loss")
    for axis in ("step", "time"):
        rows = [row for row in step_charts._rows(dog, points, axis, 0.9)[0].to_pylist() if row["kind"] == "epoch"]
        assert [(row["step"], row["mark"]) for row in rows] == [(step, f"epoch {n}") for n, step in marks.items()]
        assert axis == "step" or all(row["time"] > 0 for row in rows)
    dog.state.config["max_train_steps"] = 960
    assert not step_charts.epoch_marks(dog.state, 480)


@pytest.fixture
def start():
    """Starts runs with a process that plays the trainer: a run whose process is gone is lost."""
    started = []

    def begin(run: FakeRun) -> FakeRun:
        run.start()
        started.append(run)
        return run

    yield begin
    for run in started:
        run.end_trainer()


def test_a_training_is_asked_for_samples_and_a_checkpoint(outputs, start):
    run = start(FakeRun(outputs, "cat", sample_prompts="a cat"))
    run.steps(3)
    app = open_page("run", name="cat")
    app.button(key="run-sample").click().run()
    app.button(key="run-save").click().run()
    assert not app.exception
    asked = [event.type for event in read_events(outputs / "cat") if event.type.endswith(".requested")]
    assert asked[-2:] == ["sample.requested", "save.requested"]
    ask.sample("cat")
    ask.save("cat")
    assert [event.type for event in read_events(outputs / "cat")].count("sample.requested") == 1, "it stands already"
    assert app.button(key="run-sample").disabled and app.button(key="run-save").disabled
    run.append("trainer", "phase.started", {"phase": "sample"})
    live_runs().expire()
    app.run()
    assert not app.button(key="run-sample").disabled and app.button(key="run-save").disabled


def test_what_can_not_be_asked_for_is_not_offered(outputs, start):
    for name, settings in (("a", {}), ("b", {"trainer": "sd-scripts", "sample_prompts": "x"})):
        start(FakeRun(outputs, name, **settings))
    keys = {name: [button.key for button in open_page("run", name=name).button] for name in "ab"}
    assert "run-save" in keys["a"] and "run-sample" not in keys["a"]
    assert "run-stop" in keys["b"] and not {"run-save", "run-sample"} & set(keys["b"])


def test_it_says_what_took_how_long_and_how_far_the_preparation_is(outputs):
    run = FakeRun(outputs, "cat")
    run.start(pid=1, create_time=1)
    run.append("trainer", "phase.started", {"phase": "load"})
    run.append("trainer", "phase.started", {"phase": "cache", "total": 22, "unit": "pictures"}, wait=42)
    run.append("trainer", "phase.progress", {"phase": "cache", "done": 11, "total": 22})
    app = open_page("run", name="cat")
    assert "<i>loading the model</i>42 s" in text(app) and "<i>preparing pictures</i>now" in text(app)
    assert re.findall(r"aria-valuenow=([\d.]+)", text(app)) == ["50.0", "50.0"], "in the banner and on the page"


def test_a_change_of_state_is_told_once_and_the_title_says_how_far(outputs):
    run = FakeRun(outputs, "cat")
    run.start(pid=1, create_time=1)
    run.steps(96)
    app = open_page("runs")
    assert not app.toast and notice.title("runs") == "10 % cat · FluxGym"
    run.append("runner", "run.completed", {"weights": run.weights(kilobytes=1), "steps": 96, "seconds": 9.0})
    live_runs().expire()
    assert [toast.value for toast in app.run().toast] == ["**cat** is finished: 96 steps"]
    assert not app.run().toast and notice.title("runs") == "Runs · FluxGym"
    assert notice.title("nonsense") == "FluxGym"
