"""What goes wrong is said in the browser, and the button beside it mends it."""

from __future__ import annotations

import io
import os
import signal
import zipfile

import pytest
from PIL import Image

from fluxcore.runs import load_run
from fluxcore.runs.supervision import runner_alive
from studio.shots import settle
from tests.browser.conftest import STUB_TRAINER
from tests.browser.test_story import wait_for_state
from tests.place import Place, build_driver, wait_until

pytestmark = pytest.mark.browser
BUSY = "GPU-a 90 1024 24576 300000 ok ecc=0\n"


def test_a_run_whose_gpu_stands_still_is_resumed_with_a_click(make_gym, tmp_path, monkeypatch):
    driver = build_driver(tmp_path)
    if driver is None:
        pytest.skip("no C compiler")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = tmp_path / "gpus"
    gpus.write_text(BUSY)
    gym = make_gym(FLUXGYM_TRAINER=STUB_TRAINER, LD_LIBRARY_PATH=str(driver), FAKE_NVML=str(gpus))
    config = {"stall_seconds": 2, "stop_grace_seconds": 1, "auto_resume": 0, "sample_gpu_seconds": 0.3}
    going_on = {"steps": 30, "step_seconds": 0.05, "save_every": 10}
    Place(gym.outputs).make("cat", config, **going_on, hang_at=14, attempts={"2": {**going_on, "hang_at": None}})
    page = gym.open("/run?name=cat")
    page.get_by_role("button", name="Start training").click()
    wait_until(lambda: load_run(gym.outputs, "cat")[1].step == 14, 60)
    aside = gpus.with_suffix(".tmp")
    aside.write_text(BUSY.replace(" 90 ", " 0 "))
    os.replace(aside, gpus)
    wait_for_state(gym.outputs, "cat", "stalled")
    assert load_run(gym.outputs, "cat")[1].verdict == "gpu_idle"
    page.get_by_text("the GPU at 0 % for").first.wait_for()
    aside.write_text(BUSY)
    os.replace(aside, gpus)
    page.locator(".st-key-banner-resume-cat button").click()
    wait_for_state(gym.outputs, "cat", "completed")
    first, second = load_run(gym.outputs, "cat")[1].attempts
    assert (first.outcome, second.resume_step) == ("run.stalled", 14), "the stub saves when it is ended"
    page.get_by_role("link", name="Download LoRA").wait_for()


def test_uploads_that_are_no_pictures_are_refused_with_a_sentence(gym):
    def zipped(**members: bytes) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(f"{name}.png", data)
        return buffer.getvalue()

    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(picture, "PNG")
    whole = zipped(good=picture.getvalue())
    files = {"good.zip": whole, "bomb.zip": zipped(bomb=b"\0" * 60_000_000), "broken.zip": whole[: len(whole) // 2]}
    page = gym.open()
    page.locator('input[type="file"]').set_input_files(
        [{"name": name, "mimeType": "application/zip", "buffer": data} for name, data in files.items()]
    )
    page.get_by_text("1 picture", exact=True).wait_for()
    page.get_by_text("bomb.zip was left out").wait_for()
    page.get_by_text("broken.zip is no zip that can be read").wait_for()
    page.get_by_role("button", name="Understood").click()
    page.get_by_text("bomb.zip was left out").wait_for(state="detached")
    assert page.locator('[data-testid="stException"]').count() == 0


def test_a_runner_that_is_gone_is_started_with_a_click(gym):
    page = gym.open("/runs")
    first = wait_until(lambda: runner_alive(gym.outputs), 60)
    page.wait_for_timeout(1000)  # who started it has seen it by now, and starts no other one
    os.kill(first.pid, signal.SIGKILL)
    page.get_by_text("The runner is not alive").wait_for()
    page.locator(".st-key-start-runner button").click()
    wait_until(lambda: runner_alive(gym.outputs), 30)
    page.get_by_text("The runner is not alive").wait_for(state="detached")
    settle(page)
    assert runner_alive(gym.outputs).pid != first.pid
