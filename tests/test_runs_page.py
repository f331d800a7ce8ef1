"""The Runs page without a browser: finding, sorting, choosing several; and comparing them."""

from __future__ import annotations

import pytest

from fluxcore.history.compaction import compact
from fluxcore.runs import RunState, load_run
from fluxcore.runs.about import set_note
from studio import charts, overlay
from studio.live import LiveRun, live_runs
from tests.drawn_pages import open_page, settings_of, text
from tests.drawn_pages import outputs as outputs  # the fixture
from tests.fake_runs import FakeRun
from tests.stub_trainer import save_state


@pytest.fixture(autouse=True)
def three_runs(outputs):
    for i, name in enumerate(("ant", "bee", "cow")):
        run = FakeRun(outputs, name, minutes_ago=3000 - i, network_dim=4 + i)
        run.start(pid=1, create_time=1)
        run.steps(10 * (3 - i))
        if name != "cow":
            run.sample()
        run.append("runner", "run.stopped", {"reason": "user"})


def listed(app) -> list[str]:
    return [box.key.removeprefix("choose-") for box in app.checkbox if box.key.startswith("choose-")]


def test_runs_are_found_and_sorted(outputs):
    app = open_page("runs")
    assert listed(app) == ["cow", "bee", "ant"] and "data:image/svg" in text(app) and "fg-thumb src" in text(app)
    app.selectbox(key="runs-sort").select("Name").run()
    assert listed(app) == ["ant", "bee", "cow"]
    app.selectbox(key="runs-sort").select("Most steps").run()
    assert listed(app) == ["ant", "bee", "cow"]
    app.text_input(key="runs-search").set_value("BE").run()
    assert listed(app) == ["bee"]


def test_several_are_tagged_put_away_and_deleted_at_once(outputs):
    app = open_page("runs")
    app.checkbox(key="choose-ant").check().run()
    app.checkbox(key="choose-bee").check().run()
    assert "**2** of 3 chosen" in text(app)
    app.button(key="bulk-tag").click().run()
    app.multiselect(key="bulk-tags").set_value(["insects"])
    next(button for button in app.button if button.label == "Add to all").click().run()
    assert [load_run(outputs, name)[1].tags for name in ("ant", "bee", "cow")] == [["insects"], ["insects"], []]
    app.multiselect(key="runs-tags").set_value(["insects"]).run()
    assert listed(app) == ["bee", "ant"]
    app.button(key="bulk-archive").click().run()
    assert listed(app) == [] and load_run(outputs, "ant")[1].archived
    app.multiselect(key="runs-tags").set_value([]).run()
    assert listed(app) == ["cow"]
    app.segmented_control(key="runs-group").set_value("Archived").run()
    assert listed(app) == ["bee", "ant"]
    app.checkbox(key="choose-ant").check().run()
    app.button(key="bulk-delete").click().run()
    app.button(key="delete-yes").click().run()
    assert not (outputs / "ant").exists() and (outputs / "bee").exists()
    app.button(key="undo-delete").click().run()
    assert (outputs / "ant" / "events.jsonl").exists()


def test_those_that_run_are_stopped_at_once(outputs):
    for name in ("dog", "eel"):
        run = FakeRun(outputs, name, minutes_ago=5)
        run.start(pid=1, create_time=1)
        run.steps(5)
    app = open_page("runs")
    app.checkbox(key="choose-ant").check().run()
    assert "bulk-stop" not in [button.key for button in app.button], "it has ended"
    for name in ("dog", "eel"):
        app.checkbox(key=f"choose-{name}").check().run()
    app.button(key="bulk-stop").click().run()
    assert not app.exception and "2 runs asked to stop" in app.toast[0].value
    asked = {name: load_run(outputs, name)[1].stop_requested for name in ("ant", "dog", "eel")}
    assert not asked["ant"] and asked["dog"] and asked["eel"]


def test_all_are_chosen_and_those_that_can_go_on_do(outputs):
    for name in ("dog", "eel"):
        run = FakeRun(outputs, name, minutes_ago=50)
        run.start(pid=1, create_time=1)
        run.steps(20)
        save_state(run.folder.path, f"{name}-000001-state", 20)
        run.append("runner", "run.stopped", {"reason": "user", "resume_checkpoint": f"{name}-000001-state"})
    app = open_page("runs")
    app.checkbox(key="choose-ant").check().run()
    assert "bulk-resume" not in [button.key for button in app.button], "it has no checkpoint"
    app.button(key="bulk-all").click().run()
    assert "**5** of 5 chosen" in text(app) and "bulk-all" not in [button.key for button in app.button]
    app.button(key="bulk-resume").click().run()
    assert not app.exception and [toast.value for toast in app.toast] == ["2 runs go on, in turn"]
    states = {name: load_run(outputs, name)[1].state for name in ("ant", "dog", "eel")}
    assert states == {"ant": "stopped", "dog": "queued", "eel": "queued"}


def test_runs_are_compared(outputs):
    app = open_page("compare", runs="ant,cow,nobody")
    assert app.multiselect(key="compare-runs").value == ["ant", "cow"]
    assert app.get("arrow_vega_lite_chart") or app.get("vega_lite_chart")
    assert settings_of(app) == {"network_dim": ["4", "6"]} and "LoRA rank" in text(app)
    assert "a red apple" in text(app), "samples beside each other"
    assert "step 30" in text(app) and "compare-measure" not in [one.key for one in app.segmented_control]
    app.toggle(key="compare-only").set_value(False).run()
    assert len(settings_of(app)) > 30
    app.multiselect(key="compare-runs").set_value(["ant"]).run()
    assert "Choose at least two" in text(app)


def test_runs_are_compared_by_held_out_loss_and_over_time(outputs):
    run = FakeRun(outputs, "dog", minutes_ago=60)
    run.start(pid=1, create_time=1)
    for loss in (0.5, 0.4):
        run.steps(60, seconds=2.0)
        run.measure(loss)
    app = open_page("compare", runs="ant,dog")
    assert "best held-out loss" in text(app) and "0.4" in text(app)
    app.segmented_control(key="compare-measure").set_value("Held-out loss").run()
    assert not app.exception and "No held-out loss yet: ant." in text(app)
    app.segmented_control(key="compare-axis").set_value("Time").run()
    assert not app.exception
    dog = live_runs().get("dog")
    at, losses = overlay.curve(dog, 0.9, "time", "held-out loss")
    assert losses.tolist() == [0.5, 0.4] and at.round(2).tolist() == [1.97, 3.97], "minutes since the first step"
    at, losses = overlay.curve(dog, 0.0, "step", "loss")
    assert at.tolist() == list(range(1, 121)) and len(losses) == 120


def test_a_curve_is_drawn_for_the_list(outputs):
    assert charts.spark(live_runs().get("ant")).startswith("data:image/svg+xml;base64,")
    FakeRun(outputs, "new")
    live_runs().expire()
    assert charts.spark(live_runs().get("new")) == ""


def test_no_log_of_a_compacted_run_is_read_to_find_it_or_to_begin_like_it(outputs, monkeypatch):
    set_note(outputs, "bee", "cli", "Too Blue")
    compact(outputs)
    read = []
    monkeypatch.setattr(LiveRun, "_read", lambda run: read.append(run.name) or RunState(run.name))
    assert len(live_runs().all()) == len(live_runs().history.compacted) == 3
    app = open_page()
    assert "cow" in text(app) and app.number_input(key="form.network_dim").value == 6, "as the newest run"
    assert not read
    app.switch_page("../pages/runs.py").run()
    read.clear()
    app.text_input(key="runs-search").set_value("too blue").run()
    assert listed(app) == ["bee"] and set(read) <= {"bee"}


def test_runs_are_called_by_their_titles_and_their_prompts_lined_up_without_trigger_words(outputs):
    for name, word in (("dog", "d0g"), ("elk", "3lk")):
        run = FakeRun(outputs, name, minutes_ago=60, concept_sentence=word)
        run.start(pid=1, create_time=1)
        run.steps(10)
        run.sample(prompts=[f"{word} on a beach", "a red apple"])
        run.append("app", "run.titled", {"title": "My animals"})
    app = open_page("compare", runs="dog,elk")
    said = text(app)
    assert "My animals (dog)" in app.multiselect(key="compare-runs").options, "two have that title"
    assert "<th scope=row>… on a beach</th>" in said and "d0g on a beach" in said, "the large one's words are its own"
    assert "<th scope=row>a red apple</th>" in said
    assert said.count("<th scope=col>My animals (dog)</th><th scope=col>My animals (elk)</th>") == 2
