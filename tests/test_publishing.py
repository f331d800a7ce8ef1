"""A LoRA on the Hub: what the card says, what is sent, what is refused, and the way there by page and command line."""

from __future__ import annotations

import hashlib

import pytest
import yaml
from cli_tools import call

from fluxcore.models import hub_token
from fluxcore.models.registry import find_model
from fluxcore.publishing import PublishError, Wish, check_wish, publish, publishable, publishing
from fluxcore.publishing.card import MARK, model_card, newest_samples
from fluxcore.publishing.hub import send
from fluxcore.runs import RunError, load_run
from tests.drawn_pages import open_page, text
from tests.drawn_pages import outputs as outputs  # the fixture
from tests.fake_hub import COMMIT, fake_hub
from tests.fake_runs import PROMPTS, FakeRun
from tests.place import wait_until

TOKEN = "hf_" + "a" * 20


@pytest.fixture
def run(outputs, tmp_path, monkeypatch):
    monkeypatch.setattr("fluxcore.models.hub_token.token_file", lambda: tmp_path / "no" / "token")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no" / "token"))
    run = FakeRun(outputs, "cat", minutes_ago=3000, base_model="flux-dev", resolution=512, num_repeats=120)
    run.start(pid=1, create_time=1)
    run.steps(60)
    run.sample()
    run.weights("cat-000001.safetensors", kilobytes=1)
    run.steps(60)
    run.sample()
    run.append("runner", "run.completed", {"weights": run.weights(kilobytes=1), "steps": 120, "seconds": 99.0})
    return run


@pytest.fixture
def hub(tmp_path, monkeypatch):
    for name in hub_token.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    with fake_hub(monkeypatch, tmp_path / "hub") as hub:
        hub.token = TOKEN
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


def wish(file: str = "cat.safetensors", repo: str = "cat", **more: bool) -> Wish:
    return Wish(repo, file, **more)


def header(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_the_lora_its_samples_and_a_card_become_one_commit(run, hub):
    outputs, told = run.folder.path.parent, []
    url = send(outputs, "cat", wish(), "cli", lambda *at: told.append(at))
    sent = hub.files["me/cat"]
    assert url.endswith("/me/cat") and hub.private["me/cat"] is True
    assert hub.commits == [("me/cat", "cat.safetensors by FluxGym")]
    assert sent["cat.safetensors"] == (run.folder.path / "cat.safetensors").read_bytes()
    state = load_run(outputs, "cat")[1]
    samples = newest_samples(run.folder, state)
    assert [prompt for prompt, _ in samples] == list(PROMPTS)
    assert {f"images/{file.name}": file.read_bytes() for _, file in samples} == {
        name: content for name, content in sent.items() if name.startswith("images/")
    }
    about = header(sent["README.md"].decode())
    assert about["base_model"] == "black-forest-labs/FLUX.1-dev" and about["instance_prompt"] == "r1so"
    assert (about["license"], about["license_name"]) == ("other", "flux-1-dev-non-commercial-license")
    assert about["widget"][1] == {"text": PROMPTS[1], "output": {"url": f"images/{samples[1][1].name}"}}
    assert told[-1] == (6, 6)
    found = state.published
    assert (found["repo"], found["file"], found["private"], found["revision"]) == (
        "me/cat", "cat.safetensors", True, COMMIT
    )  # fmt: skip
    assert TOKEN not in (run.folder.path / "events.jsonl").read_text()


def test_again_is_a_new_version_and_what_is_there_is_not_sent_twice(run, hub):
    outputs = run.folder.path.parent
    for file in ("cat-000001.safetensors", "cat.safetensors", "cat.safetensors"):
        send(outputs, "cat", wish(file, "team/cats", samples=False), "cli", lambda *at: None)
    assert set(hub.files["team/cats"]) == {"cat.safetensors", "cat-000001.safetensors", "README.md"}
    digest = hashlib.sha256((run.folder.path / "cat.safetensors").read_bytes()).hexdigest()
    puts = [path for kind, path, _ in hub.requests if kind == "PUT"]
    assert puts.count(f"/lfs/{digest}") == 1


def test_a_card_that_a_person_has_made_their_own_stays(run, hub):
    outputs = run.folder.path.parent
    send(outputs, "cat", wish(), "cli", lambda *at: None)
    own = hub.files["me/cat"]["README.md"].replace(MARK.encode(), b"").replace(b"# cat", b"# My cat")
    hub.files["me/cat"]["README.md"] = own
    send(outputs, "cat", wish(repo="me/cat"), "cli", lambda *at: None)
    assert hub.files["me/cat"]["README.md"] == own


def test_what_is_public_gets_nothing_that_was_meant_to_be_private(run, hub):
    hub.files["me/cat"], hub.private["me/cat"] = {}, False
    with pytest.raises(PublishError, match="me/cat is there already and public: choose public, or take another name"):
        send(run.folder.path.parent, "cat", wish(), "cli", lambda *at: None)
    assert hub.files["me/cat"] == {} and hub.blobs == {}
    hub.private["me/cats"], hub.files["me/cats"] = True, {}
    with pytest.raises(PublishError, match="me/cats is there already and private: make it public on the Hub"):
        send(run.folder.path.parent, "cat", wish(repo="cats", public=True), "cli", lambda *at: None)
    send(run.folder.path.parent, "cat", wish(public=True), "cli", lambda *at: None)
    assert load_run(run.folder.path.parent, "cat")[1].published["private"] is False


def test_what_is_published_and_can_not_be_written_down_is_said_to_be_there(run, hub, monkeypatch):
    def full(*_: object) -> None:
        raise RunError("the event log of cat can't be written")

    monkeypatch.setattr("fluxcore.publishing.hub.append_event", full)
    with pytest.raises(PublishError, match=r"it stands at \S+/me/cat, but the run doesn't know of it"):
        send(run.folder.path.parent, "cat", wish(), "cli", lambda *at: None)
    assert hub.commits


def test_each_refusal_says_what_to_do(run, hub, monkeypatch):
    outputs = run.folder.path.parent

    def refused(**given) -> str:
        with pytest.raises(PublishError) as caught:
            send(outputs, "cat", wish(**given), "cli", lambda *at: None)
        return str(caught.value)

    assert "can't be a repository" in refused(repo="a/b/c")
    assert "can't be a repository" in refused(repo="../x")
    assert "no whole LoRA file ../../etc/passwd; it has cat.safetensors, cat-000001" in refused(file="../../etc/passwd")
    hub.may_write = False
    assert "may not write" in refused()
    hub.may_write, hub.token = True, "hf_another"
    assert "does not accept the token" in refused()
    hub.status = 500
    assert "the Hub refused it" in refused()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert "could not be reached" in refused()
    monkeypatch.delenv("HF_TOKEN")
    assert "make one at huggingface.co/settings/tokens" in refused()
    assert load_run(outputs, "cat")[1].published is None
    (run.folder.path / "cat.safetensors").write_bytes(b"torn")
    assert publishable(outputs, "cat") == ["cat-000001.safetensors"]
    with pytest.raises(PublishError):
        check_wish(outputs, "cat", wish())


def test_the_card_says_only_what_is_known_and_nothing_in_it_is_markup(run, tmp_path):
    run.append("app", "run.titled", {"title": "<script>*cat*"})
    state = load_run(run.folder.path.parent, "cat")[1]
    state.config |= {"concept_sentence": "a: `b`\n---", "learning_rate": "8e-4"}
    card = model_card("me/cat", "cat.safetensors", state, None, [])
    assert "\\<script\\>\\*cat\\*" in card and "<Gallery" not in card
    about = header(card.replace("a: b ---", "x"))
    assert "license" not in about and "base_model" not in about and "widget" not in about
    assert "| Steps | 120 |" in card and "| Learning rate | 8e-4 |" in card
    assert "Use `a: b ---` in the prompt." in card
    mini = model_card("me/cat", "cat.safetensors", state, find_model("flux-mini"), [])
    assert "license: apache-2.0" in mini and "base_model" not in mini and "diffusers:" not in mini
    mirror = model_card("me/cat", "cat.safetensors", state, find_model("flux-dev-mirror"), [])
    assert (
        "base_model: black-forest-labs/FLUX.1-dev" in mirror
        and "from_pretrained('black-forest-labs/FLUX.1-dev'" in mirror
    )


def test_the_command_prints_the_address(run, hub, capsys):
    answer = call(capsys, "publish", "cat", "--repo", "me/cats", "--public", "--outputs", run.folder.path.parent)
    assert answer.code == 0 and answer.out.strip().endswith("/me/cats")
    assert set(hub.files["me/cats"]) >= {"cat.safetensors", "README.md"}
    hub.may_write = False
    answer = call(capsys, "publish", "cat", "--repo", "me/cats", "--public", "--outputs", run.folder.path.parent)
    assert answer.code != 0 and "may not write" in answer.err and "Traceback" not in answer.err


def test_the_page_asks_sends_and_says_where_it_stands(run, hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    outputs = run.folder.path.parent
    for name, value in (("HF_ENDPOINT", constants.ENDPOINT), ("HF_HUB_DISABLE_XET", "1"), ("HF_HUB_CACHE", tmp_path)):
        monkeypatch.setenv(name, str(value))  # for the job's process
    app = open_page("run", name="cat")
    app.button(key="run-publish").click().run()
    assert "Its licence is that of FLUX.1-dev" in text(app).replace("\\", "")
    app.text_input(key="publish-repo").set_value("me/a/b")
    [send_it] = [button for button in app.button if button.label == "Publish"]
    send_it.click().run()
    assert "can't be a repository" in text(app)
    app.text_input(key="publish-repo").set_value("me/my-cat")
    [send_it] = [button for button in app.button if button.label == "Publish"]
    send_it.click().run()
    assert not app.exception
    assert wait_until(lambda: (job := publishing(outputs, "cat")) and job.state != "running", seconds=60)
    assert publishing(outputs, "cat").state == "done", publishing(outputs, "cat").message
    app = open_page("run", name="cat")
    assert "is on the Hugging Face Hub as [me/my\\-cat]" in text(app) and ", private; " in text(app)

    hub.may_write = False
    publish(outputs, "cat", wish(repo="me/other"), "app")
    assert wait_until(lambda: publishing(outputs, "cat").state == "failed", seconds=60)
    app = open_page("run", name="cat")
    assert "Publishing: the token may not write me/other" in text(app).replace("\\", "")
    app.button(key="publish-understood").click().run()
    assert "Publishing: " not in text(app)
    monkeypatch.delenv("HF_TOKEN")
    app.button(key="run-publish").click().run()
    assert "Publishing needs a token" in text(app).replace("\\", "")
