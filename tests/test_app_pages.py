"""The pages without a browser: what they show of a log, what they append to it, what they say to wrong input."""

from __future__ import annotations

import shutil
import time

import pytest
import streamlit as st
from streamlit.runtime.uploaded_file_manager import DeletedFile
from streamlit.testing.v1 import AppTest

from fluxcore.alerts import add_target
from fluxcore.config import RunConfig, defaults
from fluxcore.log import read_events
from fluxcore.runs import RunError, load_run
from studio import banner, dataset_view, words
from studio.drafts import DRAFTS, Draft, newest_draft
from studio.live import live_runs
from tests.drawn_pages import MAIN, add_pictures, open_page, text, woken
from tests.drawn_pages import night as night  # fixtures
from tests.drawn_pages import outputs as outputs
from tests.fake_runs import FakeRun
from tests.stub_trainer import save_state


def test_a_page_that_is_only_looked_at_writes_nothing(outputs):
    open_page()
    assert list(outputs.iterdir()) == []


def test_what_is_typed_is_there_for_the_next_visitor(outputs):
    app = open_page()
    app.text_input(key="form.lora_name").set_value("My Cat!").run()
    app.number_input(key="form.network_dim").set_value(16).run()
    app.text_area(key="form.sample_prompts").set_value("one\ntwo").run()
    app.checkbox(key="form.enable_monitoring").uncheck().run()
    assert "`My-Cat`" in text(app), "the name is slugified where one sees it"
    again = open_page()
    assert again.text_input(key="form.lora_name").value == "My Cat!"
    assert again.number_input(key="form.network_dim").value == 16
    assert again.text_area(key="form.sample_prompts").value == "one\ntwo"
    assert again.checkbox(key="form.enable_monitoring").value is False


def test_whom_to_tell_is_chosen_and_never_typed(outputs):
    add_target(outputs, "phone", "ntfys://ntfy.sh/s3cret")
    app = open_page()
    chosen = app.selectbox(key="form.alerts")
    assert chosen.options == ["all", "off", "phone"] and chosen.value == "all"
    chosen.set_value("phone").run()
    assert open_page().selectbox(key="form.alerts").value == "phone"
    assert not app.selectbox(key="form.alerts").proto.accept_new_options and "s3cret" not in text(app)


def test_another_page_and_back_forgets_nothing(outputs):
    app = open_page()
    app.text_input(key="form.lora_name").set_value("cat").run()
    app.switch_page("../pages/runs.py").run()
    app.switch_page("../pages/train.py").run()
    assert app.text_input(key="form.lora_name").value == "cat"


def test_a_base_model_sets_what_nobody_touched(outputs):
    app = open_page()
    assert app.number_input(key="form.resolution").value == 64
    app.number_input(key="form.network_dim").set_value(32).run()
    app.selectbox(key="form.base_model").set_value("flux-dev").run()
    assert app.number_input(key="form.resolution").value == 512
    assert app.number_input(key="form.network_dim").value == 32


@pytest.mark.parametrize(
    ("kind", "name", "value", "says"),
    [
        ("number_input", "num_repeats", 0, "must be at least 1"),
        ("number_input", "resolution", 100, "must be a multiple of 16"),
        ("number_input", "network_dim", 99_999, "must be at most 1024"),
        ("text_input", "learning_rate", "fast", "must be a number such as 8e-4"),
    ],
)
def test_a_wrong_value_is_said_at_its_field_and_kept(outputs, kind, name, value, says):
    app = open_page()
    app.text_input(key="form.lora_name").set_value("cat").run()
    getattr(app, kind)(key=f"form.{name}").set_value(value).run()
    assert not app.exception and says in text(app)
    assert name not in text(app), "the label above the field names it"
    assert getattr(app, kind)(key=f"form.{name}").value == value
    assert app.text_input(key="form.lora_name").value == "cat"
    app.button(key="start").click().run()
    assert "Before it can start" in text(app) and [path.name for path in outputs.iterdir()] == [".drafts"]


def test_an_unknown_base_model_is_said_at_its_field(outputs):
    Draft(outputs).edit({"lora_name": "cat", "base_model": "flux-9000"})
    app = open_page()
    assert "unknown base model 'flux-9000'" in text(app)
    assert app.text_input(key="form.lora_name").value == "cat"


def test_a_taken_name_is_refused(outputs):
    FakeRun(outputs, "Cat")
    app = open_page()
    app.text_input(key="form.lora_name").set_value("cat").run()
    assert "'Cat' is taken" in text(app)


def test_start_says_what_is_missing(outputs):
    app = open_page()
    app.button(key="start").click().run()
    assert "Name: a name of letters" in text(app) and "Add pictures" in text(app)
    app.text_input(key="form.lora_name").set_value("cat").run()
    add_pictures(outputs)
    app.run()
    assert "trigger word, or caption" in text(app) and "Name: a name of letters" not in text(app)


def test_start_makes_the_run_and_asks_for_it(outputs):
    app = open_page()
    app.text_input(key="form.lora_name").set_value("My Cat!").run()
    app.text_input(key="form.concept_sentence").set_value("p3t").run()
    add_pictures(outputs)
    app.run()
    assert "100 epochs" in text(app) and "100 steps" in text(app)
    app.button(key="start").click().run()
    folder, state = load_run(outputs, "My-Cat")
    assert state.state == "queued" and state.config["concept_sentence"] == "p3t"
    assert len(list(folder.dataset.glob("*.png"))) == 3
    assert [event.type for event in read_events(folder.path)] == ["config.saved", "run.requested"]
    assert newest_draft(outputs) is None, "the draft became the run"
    assert woken == [outputs], "a request is served by the runner: there must be one"
    again = open_page()
    assert again.text_input(key="form.lora_name").value == "My-Cat-2"
    assert again.text_input(key="form.concept_sentence").value == "p3t"
    again.button(key="use-pictures").click().run()
    assert not again.exception and len(list(newest_draft(outputs).dataset.glob("*.png"))) == 3


def test_a_fields_help_tells_the_default_of_its_base_model(outputs):
    app = open_page()
    usual = defaults()["resolution"]
    assert f"Default here: 64 (elsewhere {usual})." in app.number_input(key="form.resolution").help
    app.selectbox(key="form.base_model").set_value("flux-dev").run()
    assert f"Default: {usual}." in app.number_input(key="form.resolution").help


def test_prompts_that_would_not_be_drawn_are_told(outputs):
    app = open_page()
    assert "only when you ask" not in text(app) and "draws emoji of 64 pixels" in text(app)
    app.text_area(key="form.sample_prompts").set_value("p3t on the moon").run()
    assert "drawn only when you ask" in text(app)
    app.number_input(key="form.sample_every_n_steps").set_value(20).run()
    assert "drawn only when you ask" not in text(app)
    app.selectbox(key="form.base_model").set_value("flux-dev").run()
    assert "draws emoji" not in text(app)


@pytest.mark.parametrize("long_after", [False, True])
def test_a_start_that_another_message_broke_off_is_made_by_the_next_drawing(outputs, monkeypatch, long_after):
    app = open_page()
    app.text_input(key="form.lora_name").set_value("cat").run()
    app.text_input(key="form.concept_sentence").set_value("p3t").run()
    add_pictures(outputs)
    broken = iter([RuntimeError("broken off")])

    def drawn(*_: object) -> None:
        if failure := next(broken, None):
            raise failure

    monkeypatch.setattr("studio.estimate.show", drawn)
    app.button(key="start").click().run()
    assert app.exception and not (outputs / "cat").exists()
    seconds = time.monotonic
    if long_after:
        monkeypatch.setattr(time, "monotonic", lambda: seconds() + 60)
    app.run()
    assert not app.exception and (outputs / "cat").exists() != long_after


def test_going_back_to_what_another_tab_has_started_makes_nothing(outputs):
    app = open_page()
    app.text_input(key="form.lora_name").set_value("cat").run()
    first = newest_draft(outputs)
    app.button(key="clear-form").click().run()
    first.discard()
    app.button(key="go-back").click().run()
    assert not first.exists and not app.exception


def test_clear_form_begins_anew(outputs):
    app = open_page()
    app.text_input(key="form.lora_name").set_value("cat").run()
    app.button(key="clear-form").click().run()
    assert app.text_input(key="form.lora_name").value == ""
    app.button(key="go-back").click().run()
    assert app.text_input(key="form.lora_name").value == "cat", "and can be undone"
    assert not [button for button in app.button if button.key == "go-back"], "there is nothing else to go back to"
    assert open_page().text_input(key="form.lora_name").value == "cat"


def test_a_form_just_emptied_does_not_come_back_when_the_next_one_has_become_a_run(outputs):
    app = open_page()
    app.text_input(key="form.lora_name").set_value("cat").run()
    app.button(key="clear-form").click().run()
    app.button(key="clear-form").click().run()
    app.button(key="try-example").click().run()
    assert len(list((outputs / DRAFTS).iterdir())) == 2
    app.button(key="go-back").click().run()
    assert app.text_input(key="form.lora_name").value == "cat"
    app.button(key="go-back").click().run()
    app.button(key="start").click().run()
    assert load_run(outputs, "riso")[1].state == "queued"
    assert open_page().text_input(key="form.lora_name").value == "cat", "what was typed waits"

    other = open_page()
    assert not [button for button in other.button if button.key == "go-back"]
    other.text_input(key="form.lora_name").set_value("").run()
    other.button(key="clear-form").click().run()
    meanwhile = newest_draft(outputs)
    meanwhile.edit({"lora_name": "typed elsewhere"})
    other.button(key="clear-form").click().run()
    other.button(key="go-back").click().run()
    assert other.text_input(key="form.lora_name").value == "typed elsewhere"


def test_every_form_that_was_left_can_be_had_back(outputs):
    app = open_page()
    for name in ("cat", "dog", "bird"):
        app.text_input(key="form.lora_name").set_value(name).run()
        app.button(key="clear-form").click().run()
    names = []
    for _ in range(4):
        app.button(key="go-back").click().run()
        names.append(app.text_input(key="form.lora_name").value)
    assert names == ["bird", "dog", "cat", "bird"]


def test_the_banner_tells_every_state(night):
    shown = text(open_page())
    assert "running" in shown and "my\\-cat" in shown and "step 480 / 960" in shown and "epoch 8 / 16" in shown
    assert "stalled" in shown and "can go on from step 300" in shown
    assert "failed" in shown and "smaller resolution" in shown
    for word in ("96 %", "0.276", "18.2 / 24 GiB", "checkpoints", "monitoring"):
        assert word in shown or word.replace(" ", "") in shown
    assert "no runner" in shown, "a live run without a runner is said"


def test_the_banner_folds_away(outputs):
    run = FakeRun(outputs, "sketches")
    assert "sketches" not in "".join(item.value for item in open_page().markdown)
    run.start(pid=1, create_time=1)
    live_runs().expire()
    assert "sketches" in "".join(item.value for item in open_page().markdown)


def test_stop_and_resume_are_asked_for(night, outputs):
    app = open_page()
    app.button(key="banner-stop-my-cat").click().run()
    assert load_run(outputs, "my-cat")[1].state == "stopping" and len(woken) == 1
    app.button(key="banner-resume-old-film").click().run()
    assert load_run(outputs, "old-film")[1].state == "queued" and len(woken) == 2


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RunError("the outputs folder is full")])
def test_what_cannot_be_asked_for_is_said_on_the_page(outputs, night, monkeypatch, error):
    def refused(*_args, **_more):
        raise error

    for what in ("request_stop", "ensure_runner", "create_run"):
        monkeypatch.setattr(f"studio.ask.{what}", refused)
    app = open_page()
    app.button(key="banner-stop-my-cat").click().run()
    assert not app.exception and not app.error
    said = str(error.strerror if isinstance(error, OSError) else error)
    assert said in app.toast[0].value
    app.text_input(key="form.lora_name").set_value("cat").run()
    app.text_input(key="form.concept_sentence").set_value("p3t").run()
    add_pictures(outputs)
    app.run()
    app.button(key="start").click().run()
    assert not app.exception and said in app.error[0].value
    assert newest_draft(outputs).values["lora_name"] == "cat", "nothing typed is lost"


def test_a_run_that_was_made_but_not_started_can_be_started_on_its_page(outputs, monkeypatch):
    def refused(*_args, **_more):
        raise RunError("the event log can't be written")

    monkeypatch.setattr("studio.ask.request_start", refused)
    app = open_page()
    app.text_input(key="form.lora_name").set_value("cat").run()
    app.text_input(key="form.concept_sentence").set_value("p3t").run()
    add_pictures(outputs)
    app.run()
    app.button(key="start").click().run()
    assert not app.exception and load_run(outputs, "cat")[1].state == "draft"
    assert open_page("run", name="cat").button(key="run-start")


def told_first(item) -> object:
    """What a browser takes a widget's value to be before it has heard the value that the script set."""
    proto = item.proto
    if item.type in ("selectbox", "button_group"):
        return proto.options[proto.default] if item.type == "selectbox" else proto.options[proto.default[0]].content
    return proto.default


def test_what_a_browser_says_before_it_has_heard_of_the_draft_is_the_draft(outputs):
    typed = {
        "lora_name": "cat", "concept_sentence": "n3xt", "base_model": "/my/model", "vram": "8G", "learning_rate": "3e-4",
        "lr_scheduler": "cosine", "sample_prompts": "a cat\na dog", "enable_monitoring": False, "network_dim": 7,
        "network_dropout": 0.3, "seed": 10**18, "alerts": "off", "ema_decay": float("inf"),
    }  # fmt: skip
    Draft(outputs).edit(typed)
    app = open_page()
    assert not app.exception
    drawn = [item for item in app.main if (getattr(item, "key", None) or "").startswith("form.")]
    assert len(drawn) > 80
    shown = {item.key.removeprefix("form."): item for item in drawn}
    for name, item in shown.items():
        told = told_first(item)
        if name in ("base_model", "vram"):
            assert typed[name] in told
        elif name not in ("seed", "ema_decay"):
            assert told == Draft(outputs, newest_draft(outputs).id).values[name] == item.value, name
    assert shown["seed"].value == 2**53 - 1 and shown["ema_decay"].value == RunConfig().ema_decay


def test_what_is_closed_is_not_drawn_and_opens_by_itself_where_something_is_wrong(outputs):
    draft = Draft(outputs)
    draft.edit({"lora_name": "cat", "network_dim": 16})
    app = AppTest.from_file(str(MAIN), default_timeout=30).run()
    keys = {item.key for item in app.main if getattr(item, "key", None)}
    assert "form.lora_name" in keys and not {"form.network_dim", "config.text"} & keys
    assert newest_draft(outputs).values["network_dim"] == 16
    draft.edit({"network_dim": -1})
    app.run()
    assert app.number_input(key="form.network_dim").value == -1
    app.number_input(key="form.network_dim").set_value(8).run()
    assert app.number_input(key="form.network_dim").value == 8, "and stays open"


def test_a_browser_that_reports_every_widget_edits_nothing(outputs, monkeypatch):
    from studio import form

    draft = Draft(outputs)
    # Two of them no widget can show as they are: what it shows instead is no edit either.
    typed = {"lora_name": "cat", "vram": "8G", "seed": 10**18, "ema_decay": float("inf")}
    draft.edit(typed)
    monkeypatch.setattr(form.st, "session_state", {})
    form.fill(draft)
    before = draft.folder.events.read_bytes()
    for name in RunConfig.model_fields:
        form.edited(draft, name)
    assert draft.folder.events.read_bytes() == before and draft.touched == set(typed)


def test_what_is_typed_in_the_same_moment_as_a_preset_is_chosen_stays(outputs, monkeypatch):
    from studio import form

    draft = Draft(outputs)
    draft.edit({"base_model": "FLUX.1-dev"})
    monkeypatch.setattr(form.st, "session_state", state := {})
    form.fill(draft)
    before = dict(draft.values)
    state |= {"form.vram": "8G", "form.concept_sentence": "n3xt", "form.blocks_to_swap": 3}
    for name in ("vram", "concept_sentence", "blocks_to_swap"):
        form.edited(draft, name)
    again = newest_draft(outputs).values
    assert (again["concept_sentence"], again["blocks_to_swap"], again["vram"]) == ("n3xt", 3, "8G")
    followed = {name: value for name, value in again.items() if value != before[name]}
    assert len(followed) > 4 and all(state[f"form.{name}"] == value for name, value in followed.items())


def test_no_error_at_a_field_names_the_field_again(outputs):
    from studio import form

    for name, info in RunConfig.model_fields.items():
        if info.annotation not in (int, float, str):
            continue
        draft = Draft(outputs)
        draft.values |= {"lora_name": "cat", name: "x" * 40_000 if info.annotation is str else -(10**9)}
        _, errors = form.check(draft)
        if name != "lora_name":  # what was typed there becomes a valid name
            assert errors[name] and name not in errors[name]


def test_no_resume_is_offered_where_the_checkpoint_is_gone(night, outputs):
    shutil.rmtree(outputs / "old-film" / "old-film-000004-state")
    app = open_page()
    assert "can go on" not in text(app)
    assert "banner-resume-old-film" not in [button.key for button in app.button]
    assert open_page("run", name="old-film").button(key="run-restart")


def test_the_runs_page_lists_and_filters(night):
    app = open_page("runs")
    for name in ("my\\-cat", "old\\-film", "tulips", "sketches"):
        assert name in text(app)
    app.text_input(key="runs-search").set_value("sketch").run()
    assert sum("sketches" in item.value for item in app.markdown) == 1


def test_a_run_page_shows_the_run(night):
    app = open_page("run", name="my-cat")
    shown = text(app)
    assert "my\\-cat" in shown and "step 480" in shown and "a red apple" in shown and "NVIDIA RTX 4090" in shown
    assert app.get("vega_lite_chart") or app.get("arrow_vega_lite_chart")


def test_a_run_page_says_what_goes_otherwise_than_asked_for(night):
    said = {"step": 1, "checkpoint": "x", "pictures": 5, "notice": "Other *pictures*.", "hint": "Take the old ones."}
    night["my-cat"].append("trainer", "dataset.changed", said)
    live_runs().expire()
    app = open_page("run", name="my-cat")
    assert [item.value for item in app.info] == [words.escape("Other *pictures*. Take the old ones.")]


def test_a_failure_says_what_to_do(night):
    app = open_page("run", name="too-large")
    assert "choose a smaller GPU memory preset" in app.error[0].value
    assert app.button(key="run-restart").label == "Start again"


@pytest.mark.parametrize("name", ["nobody", "../etc", "", "<b>x</b>"])
def test_an_unknown_run_is_said(outputs, name):
    shown = text(open_page("run", name=name))
    assert ("There is no run" if name else "There are no runs yet") in shown


def test_monitoring_is_switched(night, outputs):
    app = AppTest.from_function(_monitor_of).run(timeout=30)
    assert not app.exception
    app.button(key="monitor-off").click().run()
    assert load_run(outputs, "my-cat")[1].monitoring is False


def _monitor_of() -> None:
    from studio.live import live_runs
    from studio.run import monitor

    monitor.show(live_runs().get("my-cat"))


@pytest.mark.parametrize("part", ["overview", "samples", "loss", "monitor", "log", "checkpoints", "config", "events"])
def test_every_part_of_every_run_is_drawn(night, part):
    for name in night:
        app = AppTest.from_function(_part_of, args=(part, name)).run(timeout=30)
        assert not app.exception and len(app.main), name


def _part_of(part: str, name: str) -> None:
    from importlib import import_module

    from studio.live import live_runs

    import_module(f"studio.run.{part}").show(live_runs().get(name))


@pytest.mark.parametrize("part", ["samples", "overview"])
def test_after_a_restart_the_samples_that_were_moved_away_are_not_the_newest(outputs, part):
    run = FakeRun(outputs, "again")
    run.start(pid=1, create_time=1)
    run.steps(100)
    run.sample()
    run.folder.samples.rename(run.folder.path / "aside")
    app = AppTest.from_function(_part_of, args=(part, "again")).run(timeout=30)
    assert not app.exception and "samples" in app.caption[0].value and "<img" not in text(app)
    run.step = 50
    run.sample()
    live_runs().expire()
    app = AppTest.from_function(_part_of, args=(part, "again")).run(timeout=30)
    assert not app.exception and "step 50" in text(app) and "step 100" not in text(app)


def test_words_of_a_person_are_shown_as_they_are(outputs):
    run = FakeRun(outputs, "cat")
    run.append("cli", "run.titled", {"title": ":red[*boom*] <b> $x$ `y`"})
    run.start(pid=1, create_time=1)
    app = open_page()
    assert any("\\:red\\[\\*boom\\*\\]" in item.value for item in app.markdown)


def test_a_thousand_steps_cost_little_a_tick(outputs):
    run = FakeRun(outputs, "cat")
    run.start(pid=1, create_time=1)
    run.steps(3000, total=5000)
    open_page("run", name="cat")
    begun = time.perf_counter()
    for _ in range(50):
        live_runs().expire()
        banner.progress_words(live_runs().get("cat").state)
    assert time.perf_counter() - begun < 1.0, "the log is not read from its start at each tick"


def test_the_monitor_shows_where_a_stuck_attempt_stood(night, outputs):
    folder = load_run(outputs, "old-film")[0]
    folder.stacks(1).parent.mkdir(parents=True)
    folder.stacks(1).write_text('Thread 1 (idle): "MainThread"\n    wait_for_the_loader (train.py:6)\n')

    def monitor() -> None:
        from studio.live import live_runs
        from studio.run import monitor

        monitor.show(live_runs().get("old-film"))

    app = AppTest.from_function(monitor, default_timeout=30).run()
    assert not app.exception and "attempt 1" in app.expander[0].label
    assert any("wait_for_the_loader" in block.value for block in app.code)


def test_a_stall_that_a_gpu_caused_says_so(outputs):
    run = FakeRun(outputs, "cat", minutes_ago=5)
    run.start()
    hint = "GPU 0 fell off the bus (XID 79): restart the machine or rent another GPU, then start again."
    run.append("runner", "run.stalled", {"verdict": "no_progress", "evidence": {}, "stacks": None, "hint": hint})
    run.end_trainer()
    assert "XID 79" in banner.why(live_runs().get("cat"))


@pytest.mark.parametrize(
    ("resume_from", "says"), [(None, "start again from step 0"), ("latest", "resume from step 300")]
)
def test_a_run_that_waits_again_shows_nothing_of_the_attempt_before(night, outputs, resume_from, says):
    night["old-film"].append("app", "run.requested", {"config": "", "resume_from": resume_from})
    run = live_runs().get("old-film")
    waits = {"position": 1, "waiting_for": "the machine, used by my-cat"}
    assert run.state.is_coming and says in banner.progress_words(run.state)
    assert banner.progress(run.state) == pytest.approx((300 if resume_from else 0) / 960)
    shown = "".join(str(item.proto) for item in open_page("run", name="old-film").get("html"))
    assert "took" not in shown.split("my-cat")[-1] and "best" not in shown
    night["old-film"].append("runner", "run.queued", {"request": "x"} | waits)
    live_runs().expire()
    told = banner.progress_words(live_runs().get("old-film").state).replace("\\", "")
    assert told.startswith("number 1 in the queue: waits for the machine, used by my-cat · will")


def test_the_length_is_what_the_config_sets(outputs):
    FakeRun(outputs, "a", max_train_steps=300)
    FakeRun(outputs, "b")
    assert banner.length(live_runs().get("a").state) == ("steps", "300")
    assert banner.length(live_runs().get("b").state) == ("epochs", "16")


def test_phases_are_said_in_words(outputs):
    run = FakeRun(outputs, "cat", sample_at_first=True, sample_every_n_steps=100, sample_prompts="a cat")
    run.start(pid=1, create_time=1)
    run.append("trainer", "phase.started", {"phase": "cache", "total": 22, "unit": "pictures"})
    run.append("trainer", "phase.progress", {"phase": "cache", "done": 9, "total": 22})
    assert banner.progress_words(live_runs().get("cat").state) == "preparing pictures 9 of 22"
    app = AppTest.from_function(_part_of, args=("samples", "cat")).run(timeout=30)
    assert "drawn before the first step" in app.caption[0].value


def test_only_a_state_with_steps_left_is_what_resume_takes(outputs):
    run = FakeRun(outputs, "cat", max_train_steps=300)
    run.start(pid=1, create_time=1)
    run.steps(300, total=300)
    save_state(run.folder.path, "cat-state", 300, 4)
    run.append("runner", "run.completed", {"weights": None, "steps": 300})
    app = AppTest.from_function(_part_of, args=("checkpoints", "cat")).run(timeout=30)
    assert "cat" in text(app) and "Resume takes" not in text(app)
    run.append("app", "config.saved", {"config": run.config.model_dump() | {"max_train_steps": 600}})
    live_runs().expire()
    app = AppTest.from_function(_part_of, args=("checkpoints", "cat")).run(timeout=30)
    assert "Resume takes" in text(app) and app.button(key="from-cat-state")


def test_a_draft_without_pictures_says_so(outputs):
    run = FakeRun(outputs, "cat")
    for picture in run.folder.dataset.iterdir():
        picture.unlink()
    app = open_page("run", name="cat")
    assert "pictures are missing" in app.info[0].value
    assert "run-start" not in [button.key for button in app.button] and app.get("page_link")


def test_the_evidence_is_a_sentence():
    seen = {"phase": "train", "seconds_without_progress": 15.5, "limit_seconds": 15.0, "longest_step_seconds": 9.0}
    assert words.evidence(seen | {"gpu_idle_seconds": None, "seconds_without_life": 14.0}) == (
        "15.5 s without a step (limit 15 s); the longest step took 9 s; no sign of life for 14 s."
    )
    assert words.evidence({}) == ""


def test_the_style_stands_among_the_page_and_not_where_toasts_go(outputs):
    app = open_page()
    assert any("fg-facts" in str(item.proto) for item in app.main.get("html"))


def test_pictures_that_were_taken_already_are_no_news(outputs, monkeypatch):
    state = {"uploader": [DeletedFile("1"), DeletedFile("2")], "upload.turn": 3}
    monkeypatch.setattr(st, "session_state", state)
    dataset_view._arrived(None, "uploader")
    assert state["upload.turn"] == 3 and "upload.taken" not in state


def test_a_page_that_streamlit_draws_in_two_threads_is_drawn_once_more(outputs, monkeypatch):
    failures = iter([RuntimeError("dictionary changed size during iteration"), None, RuntimeError("none of that")])

    def drawn() -> None:
        if failure := next(failures, None):
            raise failure

    monkeypatch.setattr("studio.form.drawn", drawn)
    app = open_page()
    assert not app.exception and app.text_input(key="form.lora_name").value == ""
    app.run()
    assert len(app.exception) == 1, "other failures are said"


def test_a_page_that_fails_again_and_again_is_not_drawn_for_ever(outputs, monkeypatch):
    def drawn() -> None:
        raise RuntimeError("dictionary changed size during iteration")

    monkeypatch.setattr("studio.form.drawn", drawn)
    assert AppTest.from_file(str(MAIN), default_timeout=30).run().exception
