"""GPU readings through the real pynvml, against a driver library of our own; and a driver that hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runner.gpus import NvmlGpus
from runner.nvml import Nvml, _visible
from tests.place import build_driver

ROOT = Path(__file__).resolve().parents[1]
READ = "import json; from runner.nvml import Nvml; print(json.dumps(Nvml().read()))"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def old_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_driver(tmp_path_factory.mktemp("old-driver"), "-DOLD")


@pytest.fixture
def steer(tmp_path: Path) -> Path:
    return tmp_path / "gpus"


def compile_driver(folder: Path, *options: str) -> Path:
    """Put a compiled libnvidia-ml.so.1 into `folder`; returns it."""
    return build_driver(folder, *options) or pytest.skip("no C compiler")


def fake_environment(driver: Path, gpus: Path | None, **more: str) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    environment |= {"LD_LIBRARY_PATH": str(driver), **more}
    return environment | ({"FAKE_NVML": str(gpus)} if gpus else {})


def read(driver: Path, gpus: Path | None, code: str = READ, **more: str) -> Any:
    environment = fake_environment(driver, gpus, **more)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def rounds(driver: Path, steer: Path, *files: str | None, clock: str = "time.monotonic") -> list[Any]:
    """Readings by one and the same process, each after the steering file has become the next of `files`."""
    code = f"""
import json, os, time
from runner.nvml import Nvml
now, path = [0.0], {str(steer)!r}
driver, seen = Nvml(clock={clock}), []
for text in {files!r}:
    if text is None:
        os.unlink(path)
    else:
        open(path, "w").write(text)
    seen.append(driver.read()); now[0] += 40
print(json.dumps(seen))
"""
    return read(driver, steer, code)


# -- what a driver tells ---------------------------------------------------------------------------------------------


def test_all_that_a_driver_tells(driver: Path, steer: Path) -> None:
    steer.write_text(
        "GPU-a 97 20480 24576 310500 ok temp=71 limit=350000 throttle=36 sm=1695 mem=7600 ecc=2\n"
        "GPU-b 0 512 24576 21000 ok\n"
    )
    first, second = read(driver, steer)
    assert first == {
        "index": 0, "uuid": "GPU-a", "name": "Fake GPU", "utilization_percent": 97, "memory_used_gib": 20.0,
        "memory_total_gib": 24.0, "power_watts": 310.5, "power_limit_watts": 350.0, "temperature_c": 71,
        "throttle_reasons": ["power_cap", "sw_thermal"], "sm_clock_mhz": 1695, "memory_clock_mhz": 7600,
        "ecc_uncorrected": 2, "xid_errors": [], "problem": None,
    }  # fmt: skip
    assert second["utilization_percent"] == 0 and second["ecc_uncorrected"] is None


def test_what_an_old_driver_lacks_is_unknown(old_driver: Path, steer: Path) -> None:
    steer.write_text("GPU-a 97 20480 24576 310500 ok temp=71 ecc=1 xid=79\n")
    (sample,) = read(old_driver, steer)
    unknown = {key for key, value in sample.items() if value is None}
    assert unknown == {
        "power_limit_watts", "temperature_c", "throttle_reasons", "sm_clock_mhz", "memory_clock_mhz", "ecc_uncorrected",
        "xid_errors", "problem",
    }  # fmt: skip
    assert sample["utilization_percent"] == 97


def test_under_mig_the_utilization_is_unknown_and_never_zero(driver: Path, steer: Path) -> None:
    steer.write_text("GPU-a 50 512 24576 -1 mig\n")
    (sample,) = read(driver, steer)
    assert sample["utilization_percent"] is None and sample["power_watts"] is None and sample["problem"] is None
    assert sample["memory_used_gib"] == 0.5


@pytest.mark.parametrize("state", ["lost", "gone", "broken"])
def test_a_gpu_that_is_lost_on_the_way_keeps_its_name_and_the_others_go_on(
    driver: Path, steer: Path, state: str
) -> None:
    good, other = "GPU-a 50 1 2 3 ok ecc=0\n", "GPU-b 60 512 24576 21000 ok\n"
    before, after = rounds(driver, steer, good + other, f"GPU-a 50 1 2 3 {state} ecc=0 xid=79\n{other}")
    assert before[0]["problem"] is None and before[0]["utilization_percent"] == 50
    lost = after[0]
    assert (lost["uuid"], lost["name"], lost["problem"], lost["xid_errors"]) == ("GPU-a", "Fake GPU", "lost", [79])
    assert lost["utilization_percent"] is None and lost["memory_total_gib"] is None
    assert after[1]["utilization_percent"] == 60 and after[1]["problem"] is None


def test_a_gpu_that_is_lost_in_the_midst_of_a_reading_is_wholly_unknown() -> None:
    import pynvml

    class Dying:
        """A driver whose GPU goes after its utilization was read."""

        NVMLError, NVMLLibraryMismatchError = pynvml.NVMLError, pynvml.NVMLLibraryMismatchError

        def nvmlDeviceGetUUID(self, handle: object) -> str:
            return "GPU-a"

        def nvmlDeviceGetUtilizationRates(self, handle: object) -> Any:
            return SimpleNamespace(gpu=0)

        def nvmlDeviceGetPowerUsage(self, handle: object) -> int:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    driver = Nvml()
    driver._nvml = Dying()
    sample = driver._one(0, object())
    assert (sample["uuid"], sample["problem"], sample["utilization_percent"]) == ("GPU-a", "lost", None)


def test_a_gpu_that_was_lost_from_the_beginning_has_no_name(driver: Path, steer: Path) -> None:
    steer.write_text("GPU-a 50 1 2 3 lost\n")
    (sample,) = read(driver, steer)
    assert (sample["uuid"], sample["problem"]) == (None, "lost")


def test_xids_add_up_each_for_its_own_gpu(driver: Path, steer: Path) -> None:
    one, two = "GPU-a 50 1 2 3 ok{}\n", "GPU-b 50 1 2 3 ok{}\n"
    texts = [
        one.format(a) + two.format(b)
        for a, b in [(" xid=13", ""), (" xid=13,48", " xid=31"), (" xid=13,48", " xid=31,94")]
    ]
    seen = rounds(driver, steer, *texts)
    assert [[sample["xid_errors"] for sample in reading] for reading in seen] == [
        [[], []],  # what was there before is not ours
        [[48], [31]],
        [[48], [31, 94]],
    ]


def test_no_library_and_no_driver_mean_no_reading(driver: Path, tmp_path: Path) -> None:
    assert read(tmp_path, None) is None
    assert read(driver, None) is None


def test_a_driver_that_goes_and_comes_back_is_tried_again_after_a_minute(driver: Path, steer: Path) -> None:
    good = "GPU-a 50 1 2 3 ok xid=48\n"
    seen = rounds(driver, steer, good, None, good, good, clock="lambda: now[0]")
    assert [reading and reading[0]["utilization_percent"] for reading in seen] == [50, None, None, 50]
    assert seen[3][0]["xid_errors"] == []


def test_the_runners_own_cuda_visible_devices_hold(monkeypatch: pytest.MonkeyPatch, driver: Path, steer: Path) -> None:
    steer.write_text("GPU-a 1 1 2 3 ok\nGPU-b 2 1 2 3 ok\n")

    def uuids(visible: str) -> list[str]:
        return [sample["uuid"] for sample in read(driver, steer, CUDA_VISIBLE_DEVICES=visible)]

    assert uuids("GPU-b") == ["GPU-b"]
    assert uuids("0") == ["GPU-a"]
    assert uuids("") == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
    assert not _visible(0, None)


# -- a driver that does not answer -----------------------------------------------------------------------------------


def test_a_call_that_hangs_keeps_nobody_waiting_and_is_unknown(driver: Path, steer: Path) -> None:
    steer.write_text("GPU-a 50 1 2 3 ok\n")
    code = f"""
import json, time
from pathlib import Path
from runner.gpus import NvmlGpus
now, file = [0.0], Path({str(steer)!r})
gpus, seen, waited = NvmlGpus(clock=lambda: now[0]), [], 0.0
gpus.start()
def ask(*questions):
    global waited
    for question in questions:
        begun = time.monotonic(); seen.append(question()); waited = max(waited, time.monotonic() - begun)
ask(gpus.sample, gpus.by_index)
now[0] = 6.0; file.write_text("GPU-a 50 1 2 3 hang\\n"); ask(gpus.sample, gpus.by_index)
now[0] = 10.0; ask(gpus.sample, gpus.by_index)
file.write_text("GPU-a 70 1 2 3 ok\\n")
while gpus._asked is not None: time.sleep(0.005)
now[0] = 70.0; ask(gpus.sample, gpus.sample, gpus.by_index)
file.write_text("GPU-a 70 1 2 3 hang\\n"); now[0] = 80.0; ask(gpus.sample); gpus.close()
print(json.dumps([seen, waited]))
"""
    seen, waited = read(driver, steer, code)
    assert (seen[0][0]["utilization_percent"], seen[1]) == (50, {"0": "GPU-a"})
    assert seen[2:4] == [None, {"0": "GPU-a"}], "on its way"
    unknown = seen[4][0]
    assert (unknown["uuid"], unknown["problem"], unknown["utilization_percent"]) == ("GPU-a", "no_answer", None)
    assert seen[5] is None, "no machine without GPUs"
    fresh = next(answer for answer in seen[6:8] if answer)[0]
    assert (fresh["utilization_percent"], fresh["problem"]) == (70, None)
    assert waited < 0.5


class Driver:
    """Readings that a test lets through one by one."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.answers: list[Any] = []
        self.calls = 0

    def __call__(self) -> Any:
        self.calls += 1
        self.go.acquire()
        return self.answers.pop(0)

    def answer(self, gpus: NvmlGpus, answer: Any) -> None:
        """Let the reading that waits have this answer."""
        self.answers.append(answer)
        self.go.release()
        while gpus._asked is not None:
            pass


def reading(use: int | None = 5, problem: str | None = None, uuid: str = "GPU-a", index: int = 0) -> dict[str, Any]:
    return {
        "index": index,
        "uuid": uuid,
        "name": "x",
        "utilization_percent": use,
        "xid_errors": [48],
        "problem": problem,
    }


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> tuple[Driver, NvmlGpus, list[float]]:
    monkeypatch.setattr("runner.gpus.QUICK_SECONDS", 0.0)
    driver, now = Driver(), [100.0]
    return driver, NvmlGpus(read=driver, clock=lambda: now[0]), now


Slow = tuple[Driver, NvmlGpus, list[float]]


def test_a_slow_reading_is_had_at_the_next_turn_by_all_and_only_then(slow: Slow) -> None:
    driver, gpus, now = slow
    assert gpus.sample() is None and gpus.sample() is None
    driver.answer(gpus, [reading(5)])
    now[0] += 1.0
    assert gpus.sample() == gpus.sample() == [reading(5)]
    assert driver.calls == 1, "two runs share it"
    now[0] += 1.0
    assert gpus.sample() is None, "it is never repeated as fresh"
    driver.answer(gpus, [reading(6)])


def test_a_reading_that_comes_too_late_is_thrown_away_but_for_what_adds_up(slow: Slow) -> None:
    driver, gpus, now = slow
    gpus.sample()
    driver.answer(gpus, [reading(5)])
    gpus.sample()
    now[0] += 5.0
    assert gpus.sample() is None
    now[0] += 4.0
    assert gpus.sample() == [reading(None, "no_answer")] and driver.calls == 2
    now[0] += 600.0
    assert gpus.sample() == [reading(None, "no_answer")] and driver.calls == 2, "it is asked once"
    driver.answer(gpus, [reading(99)])
    assert gpus.sample() is None
    driver.answer(gpus, [reading(7)])
    assert gpus.sample() == [reading(7)]


def test_which_gpus_there_are(slow: Slow) -> None:
    driver, gpus, now = slow
    before: list[dict[int, str] | None] = [None]

    def ask(answer: Any) -> dict[int, str] | None:
        now[0] += 10.0
        assert gpus.by_index() == before[-1], "while it is on its way the last known ones hold"
        driver.answer(gpus, answer)
        before.append(gpus.by_index())
        return before[-1]

    one, two = reading(), reading(uuid="GPU-b", index=1)
    assert ask(None) == {}, "no driver, no GPUs"
    assert ask([]) == {}
    assert ask([one, two]) == {0: "GPU-a", 1: "GPU-b"}
    assert ask([reading(None, "lost"), two]) == {1: "GPU-b"}, "a lost one is offered to nobody"
    assert ask([reading(None, "lost"), reading(None, "lost", "GPU-b", 1)]) is None, "that makes it no machine without"
    assert ask(None) is None
    assert ask([one]) == {0: "GPU-a"}
    now[0] += 10.0
    assert gpus.by_index() == {0: "GPU-a"}
    now[0] += 3.1
    assert gpus.by_index() is None, "its driver gives no answer"
    driver.answer(gpus, [one])


def test_a_driver_that_surprises_is_one_that_gives_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Callable[[], Any]] = [lambda: [reading()], lambda: 1 / 0, lambda: [reading(8)]]
    now = [0.0]
    gpus = NvmlGpus(read=lambda: answers.pop(0)(), clock=lambda: now[0])
    monkeypatch.setattr("runner.gpus.QUICK_SECONDS", 5.0)
    seen = []
    for _ in range(3):
        now[0] += 10
        seen.append(gpus.sample())
    assert seen == [[reading()], [reading(None, "no_answer")], [reading(8)]]
    gpus.close()
