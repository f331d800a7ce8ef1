"""The whole story in a browser: drop pictures, start, watch it move, reload in the middle, find the LoRA at the end."""

from __future__ import annotations

import io
import json
import re
import time
from pathlib import Path

import pytest
from PIL import Image

from fluxcore.log import read_events
from fluxcore.runs import load_run
from fluxcore.runs.checkpoints import safetensors_problem
from fluxcore.runs.supervision import runner_alive
from studio.shots import settle
from tests.browser.conftest import STUB_TRAINER, kept
from tests.place import wait_until

pytestmark = pytest.mark.browser


def drop_pictures(page, count: int = 6) -> None:
    files = []
    for i in range(count):
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), (i * 40, 80, 200 - i * 30)).save(buffer, "PNG")
        files.append({"name": f"p{i}.png", "mimeType": "image/png", "buffer": buffer.getvalue()})
        files.append({"name": f"p{i}.txt", "mimeType": "text/plain", "buffer": f"p3t thing {i}".encode()})
    page.locator('input[type="file"]').set_input_files(files)
    page.get_by_text(f"{count} pictures", exact=True).wait_for()


def set_field(page, name: str, value: str) -> None:
    field = page.get_by_label(name, exact=True)
    field.fill(value)
    field.press("Tab")


def wait_for_state(outputs: Path, name: str, *wanted: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        state = load_run(outputs, name)[1]
        if state.state in wanted:
            return
        time.sleep(0.2)
    log = outputs / name / "train.log"
    tail = log.read_text()[-2000:] if log.exists() else "(no train.log)"
    raise AssertionError(f"{name} is {state.state} ({state.reason} {state.hint}), not {wanted}: {tail}")


def step_shown(page) -> int:
    found = re.search(r"step ([\d,]+) / [\d,]+", page.locator(".st-key-banner").inner_text())
    return int(found[1].replace(",", "")) if found else -1


@pytest.mark.parametrize("trainer", ["stub", "real"])
def test_from_pictures_to_a_lora(make_gym, trainer):
    stub = {"FLUXGYM_TRAINER": STUB_TRAINER, "STUB": json.dumps({"steps": 60, "step_seconds": 0.25, "save_every": 20})}
    # One thread: on a busy machine two that wait for each other are slower by far.
    gym = make_gym(**(stub if trainer == "stub" else {"OMP_NUM_THREADS": "1"}))
    page = gym.open()
    set_field(page, "Name", "My Cat!")
    set_field(page, "Trigger word", "p3t")
    drop_pictures(page)
    set_field(page, "Epochs", "24")
    page.get_by_text("24 steps").wait_for()
    page.get_by_role("button", name="Start training").click()

    page.wait_for_url("**/run?name=My-Cat")
    page.get_by_role("heading", name="My-Cat").wait_for()
    assert runner_alive(gym.outputs), "the app started the runner"
    banner = page.locator(".st-key-banner")
    banner.get_by_text("running").wait_for(timeout=60_000)
    page.wait_for_function("/step [1-9]/.test(document.querySelector('.st-key-banner').innerText)", timeout=60_000)
    first = step_shown(page)
    deadline = time.monotonic() + 60
    while step_shown(page) <= first:  # it moves without a reload
        assert time.monotonic() < deadline, f"the page still shows step {first}"
        page.wait_for_timeout(200)

    page.reload()
    settle(page)
    page.get_by_role("heading", name="My-Cat").wait_for()
    page.wait_for_function("/step [1-9]/.test(document.querySelector('.st-key-banner').innerText)")
    assert step_shown(page) > first
    another = gym.open("/")
    another.locator(".st-key-banner").get_by_text("My-Cat").wait_for()
    another.close()

    wait_for_state(gym.outputs, "My-Cat", "completed", seconds=300)
    link = page.get_by_role("link", name="Download LoRA")
    link.wait_for()
    with page.expect_download() as download:
        link.click()
    saved = Path(download.value.path())
    assert download.value.suggested_filename == "My-Cat.safetensors"
    assert saved.read_bytes() == (gym.outputs / "My-Cat" / "My-Cat.safetensors").read_bytes()
    assert not safetensors_problem(gym.outputs / "My-Cat" / "My-Cat.safetensors")


def test_stop_and_resume_from_the_banner(make_gym):
    gym = make_gym(FLUXGYM_TRAINER=STUB_TRAINER, STUB=json.dumps({"steps": 400, "step_seconds": 0.1, "save_every": 20}))
    page = gym.open()
    set_field(page, "Name", "cat")
    drop_pictures(page, 3)
    page.get_by_role("button", name="Start training").click()
    page.wait_for_url("**/run?name=cat")
    wait_for_state(gym.outputs, "cat", "running")
    banner = page.locator(".st-key-banner")
    banner.get_by_role("button", name="Stop").click()
    wait_for_state(gym.outputs, "cat", "stopped")
    banner.get_by_text("It can go on from step").wait_for()
    at = load_run(gym.outputs, "cat")[1].resume_step
    banner.get_by_role("button", name="Resume").click()
    wait_for_state(gym.outputs, "cat", "running")
    wait_until(lambda: load_run(gym.outputs, "cat")[1].step > at, 60)
    first, second = load_run(gym.outputs, "cat")[1].attempts
    assert (first.outcome, first.last_step, second.resume_step) == ("run.stopped", at, at)


def test_kill_9_of_the_app_in_mid_run_loses_nothing(make_gym):
    stub = {"FLUXGYM_TRAINER": STUB_TRAINER, "STUB": json.dumps({"steps": 150, "step_seconds": 0.2})}
    gym = make_gym(**stub)
    page = gym.open()
    set_field(page, "Name", "cat")
    drop_pictures(page, 3)
    page.get_by_role("button", name="Start training").click()
    page.wait_for_url("**/run?name=cat")
    wait_for_state(gym.outputs, "cat", "running")
    draft = gym.open("/")
    set_field(draft, "Trigger word", "n3xt")
    wait_until(lambda: kept(gym.outputs, "concept_sentence") == "n3xt", 30)
    gym.process.kill()
    gym.process.wait()
    at = load_run(gym.outputs, "cat")[1].step
    wait_until(lambda: load_run(gym.outputs, "cat")[1].step > at, 60)  # the training does not know of it
    runner = runner_alive(gym.outputs)
    again = make_gym(gym.outputs, **stub)
    page = again.open("/run?name=cat")
    # On a slow machine it may have come to its end by now.
    page.wait_for_function("/step [1-9]|completed/.test(document.querySelector('.st-key-banner').innerText)")
    assert runner_alive(gym.outputs) == runner, "the runner lived on and is used"
    trigger = again.open("/").get_by_label("Trigger word", exact=True)
    wait_until(lambda: trigger.input_value() == "n3xt", 20)
    wait_for_state(gym.outputs, "cat", "completed")
    assert [event.data["step"] for event in read_events(gym.outputs / "cat") if event.type == "train.step"] == [
        *range(1, 151)
    ]


def test_the_example_is_two_clicks(make_gym):
    gym = make_gym(FLUXGYM_TRAINER=STUB_TRAINER, STUB=json.dumps({"steps": 3}))
    page = gym.open()
    page.get_by_role("button", name="Try the example").click()
    page.get_by_text("all captioned").wait_for()
    page.get_by_role("button", name="Start training").click()
    page.wait_for_url("**/run?name=riso")
    wait_for_state(gym.outputs, "riso", "completed")
    state = load_run(gym.outputs, "riso")[1]
    assert state.config["base_model"] == "flux-mini" and state.config["concept_sentence"] == "r1so"
    assert len(list((gym.outputs / "riso" / "dataset").glob("*.png"))) >= 20
