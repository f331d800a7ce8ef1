"""The Settings page without a browser: what it changes, and that no secret comes out of it."""

from __future__ import annotations

import io
import stat
import zipfile

import pytest

from fluxcore.alerts import add_target, load_targets
from fluxcore.errors import UserError
from fluxcore.models import hub_token
from fluxcore.runs import RunError, read_installation
from fluxcore.runs.installation import save_defaults
from fluxcore.runs.trash import empty_trash, list_trash, restore_run, trash_run
from studio import diagnostics
from studio.drafts import Draft
from studio.live import live_runs
from tests.drawn_pages import open_page, text
from tests.drawn_pages import outputs as outputs  # the fixture
from tests.fake_runs import FakeRun


@pytest.fixture(autouse=True)
def no_token(tmp_path, monkeypatch):
    monkeypatch.setattr("fluxcore.models.hub_token.token_file", lambda: tmp_path / "hub" / "token")
    for name in hub_token.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)


def test_the_queue_is_paused_and_goes_on(outputs):
    app = open_page("settings")
    app.button(key="queue-pause").click().run()
    assert read_installation(outputs).paused
    app.button(key="queue-resume").click().run()
    assert not read_installation(outputs).paused


def test_new_drafts_begin_with_the_defaults_that_were_saved(outputs):
    app = open_page("settings")
    app.number_input(key="default-stall_seconds").set_value(900)
    app.checkbox(key="default-enable_monitoring").uncheck()
    [save] = [button for button in app.button if button.label == "Save"]
    save.click().run()
    assert not app.exception and not app.error
    draft = Draft(outputs)
    assert (draft.values["stall_seconds"], draft.values["enable_monitoring"]) == (900, False)
    draft.edit({"lora_name": "cat", "vram": "12G"})
    assert Draft(outputs, draft.id).values["stall_seconds"] == 900 and "stall_seconds" not in draft.touched


def test_a_default_that_ends_healthy_runs_is_told(outputs):
    for seconds in (900, 3):
        save_defaults(outputs, "app", {"stall_seconds": seconds})
        assert ("may be taken for a stall" in text(open_page("settings"))) is (seconds == 3)


def test_defaults_that_cannot_be_are_refused(outputs):
    app = open_page("settings")
    app.number_input(key="default-stall_seconds").set_value(-5)
    [save] = [button for button in app.button if button.label == "Save"]
    save.click().run()
    assert "Stuck after" in app.error[0].value and not (outputs / ".events.jsonl").exists()


def test_an_alert_target_is_added_tested_and_forgotten(outputs, monkeypatch):
    sent = []
    monkeypatch.setattr("studio.settings.alerts.check_url", lambda url: None)
    monkeypatch.setattr("studio.settings.alerts.send_test", lambda outputs, name: sent.append(name))
    app = open_page("settings")
    app.text_input(key="alert-name").set_value("phone")
    app.text_input(key="alert-url").set_value("ntfys://ntfy.sh/s3cret")
    [add] = [button for button in app.button if button.label == "Add"]
    add.click().run()
    assert not app.exception and [target.name for target in load_targets(outputs)] == ["phone"]
    assert "s3cret" not in text(app) and not app.text_input(key="alert-url").value
    assert app.toast[0].value == "phone will be told"
    app.button(key="alert-test-phone").click().run()
    assert sent == ["phone"] and "reached phone" in app.toast[0].value
    app.button(key="alert-remove-phone").click().run()
    assert [target.name for target in load_targets(outputs)] == ["phone"], "it is asked first"
    app.button(key="confirm-yes").click().run()
    assert not app.exception and load_targets(outputs) == []


def test_a_token_goes_in_and_never_out(outputs):
    token = "hf_" + "a1B2" * 8
    app = open_page("settings")
    assert "wants a token" in text(app)
    app.text_input(key="hub-token-given").set_value("nonsense")
    [keep] = [button for button in app.button if button.label == "Keep"]
    keep.click().run()
    assert "no token of the Hub" in app.error[0].value and "nonsense" not in app.error[0].value
    app.text_input(key="hub-token-given").set_value(token)
    [keep] = [button for button in app.button if button.label == "Keep"]
    keep.click().run()
    assert hub_token.token_source() == "file"
    assert stat.S_IMODE(hub_token.token_file().stat().st_mode) == 0o600
    app = open_page("settings")
    assert token not in text(app) and "kept on this machine" in text(app)
    app.button(key="hub-token-forget").click().run()
    assert hub_token.token_source() == "file", "it is asked first"
    app.button(key="confirm-yes").click().run()
    assert hub_token.token_source() == "" and "hub-token-forget" not in [button.key for button in app.button]


def test_no_secret_is_in_the_diagnostics(outputs, monkeypatch):
    run = FakeRun(outputs, "cat")
    run.start(pid=1, create_time=1)
    run.folder.train_log.write_text(
        "loading with token=abcdef123456 from https://me:pass@host/x\nHub: hf_abcdefghijklmnop\nstep 3 loss 0.2\n"
    )
    monkeypatch.setenv("FLUXGYM_TOKEN", "gate-secret-1")
    add_target(outputs, "phone", "ntfys://ntfy.sh/s3cret-topic")
    (outputs / ".runner.log").write_text("told ntfys://ntfy.sh/s3cret-topic and gate-secret-1\n")
    with zipfile.ZipFile(io.BytesIO(diagnostics.make(outputs, live_runs().all()))) as file:
        everything = "\n".join(file.read(name).decode() for name in file.namelist())
        assert "runs/cat/train.log" in file.namelist()
    for secret in ("abcdef123456", "me:pass", "hf_abcdefghijklmnop", "gate-secret-1", "s3cret-topic", "r1so"):
        assert secret not in everything, secret
    assert "step 3 loss 0.2" in everything and '"streamlit"' in everything


def test_the_trash(outputs):
    for name in ("cat", "dog"):
        FakeRun(outputs, name)
    gone = trash_run(outputs, "cat")
    assert not (outputs / "cat").exists() and [run.name for run in live_runs().all()] == ["dog"]
    app = open_page("settings")
    app.button(key=f"restore-{gone.id}").click().run()
    assert (outputs / "cat" / "events.jsonl").exists() and list_trash(outputs) == []
    gone = trash_run(outputs, "cat")
    FakeRun(outputs, "Cat")
    with pytest.raises(RunError, match="another run 'cat'"):
        restore_run(outputs, gone.id)
    assert empty_trash(outputs, older_than=3600) == 0 and empty_trash(outputs) == 1
    with pytest.raises(UserError):
        restore_run(outputs, "../dog")
    live = FakeRun(outputs, "live")
    live.start(pid=1, create_time=1)
    with pytest.raises(RunError, match="stop it first"):
        trash_run(outputs, "live")


def test_the_trash_is_emptied_when_that_is_confirmed(outputs):
    FakeRun(outputs, "cat")
    trash_run(outputs, "cat")
    app = open_page("settings")
    app.button(key="empty-trash").click().run()
    assert len(list_trash(outputs)) == 1 and "Nothing can bring them back" in text(app)
    app.switch_page("../pages/runs.py").run()
    app.switch_page("../pages/settings.py").run()
    assert "confirm-yes" not in [button.key for button in app.button], "a question is not taken along"
    app.button(key="empty-trash").click().run()
    app.button(key="confirm-yes").click().run()
    assert not app.exception and list_trash(outputs) == []
    assert [toast.value for toast in app.toast] == ["The trash is empty"]


def test_a_base_model_is_fetched_ahead_of_a_run(outputs, tmp_path, monkeypatch):
    from huggingface_hub import constants

    from fluxcore.models.fetch import fetching
    from studio.settings import models
    from tests.fake_hub import fake_hub
    from tests.place import wait_until

    (outputs / "models.toml").write_text('[tiny]\ntitle = "A tiny one"\nrepo = "someone/tiny"\n')
    with fake_hub(monkeypatch, tmp_path / "hub") as hub:
        monkeypatch.setenv("HF_ENDPOINT", constants.ENDPOINT)  # for the job's process
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        models._is_here.clear()
        app = open_page("settings")
        app.button(key="model-fetch-tiny").click().run()
        assert wait_until(lambda: (job := fetching(outputs, "tiny")) and job.state != "running", seconds=60)
        assert "there is no model someone/tiny" in fetching(outputs, "tiny").message
        app = open_page("settings")
        assert "no model someone/tiny" in text(app).replace("\\", "")
        hub.files["someone/tiny"] = {"model_index.json": b"{}", "vae/w.safetensors": b"x" * 300_000}
        app.button(key="model-fetch-tiny").click().run()
        assert wait_until(lambda: (job := fetching(outputs, "tiny")) and job.state == "done", seconds=60)
        assert fetching(outputs, "tiny").done == 300_002
        models._is_here.clear()
        app = open_page("settings")
        assert not app.exception and "model-fetch-tiny" not in [button.key for button in app.button]
    models._is_here.clear()
