"""GPU readings through the real pynvml, against a driver library of our own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runner.gpus import _visible

ROOT = Path(__file__).resolve().parents[1]
READ = "import json; from runner.gpus import NvmlGpus; g = NvmlGpus(); print(json.dumps([g.uuids(), g.sample()]))"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_driver(tmp_path_factory.mktemp("driver"))


def compile_driver(folder: Path) -> Path:
    """Put a compiled libnvidia-ml.so.1 into `folder`; returns it."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    source, library = ROOT / "tests" / "fake_nvml.c", folder / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return folder


def fake_environment(driver: Path, gpus: Path | None, **more: str) -> dict[str, str]:
    environment = {key: value for key, value in os.environ.items() if key != "CUDA_VISIBLE_DEVICES"}
    environment |= {"LD_LIBRARY_PATH": str(driver), **more}
    return environment | ({"FAKE_NVML": str(gpus)} if gpus else {})


def read(driver: Path, gpus: Path | None, code: str = READ, **more: str) -> Any:
    environment = fake_environment(driver, gpus, **more)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_readings_and_functions_that_the_driver_lacks(driver: Path, tmp_path: Path) -> None:
    steer = tmp_path / "gpus"
    steer.write_text("GPU-a 97 20480 24576 310500 ok\nGPU-b 0 512 24576 21000 ok\n")
    uuids, samples = read(driver, steer)
    assert uuids == ["GPU-a", "GPU-b"]
    assert samples[0] == {
        "index": 0, "uuid": "GPU-a", "name": "Fake GPU", "utilization_percent": 97, "memory_used_gib": 20.0,
        "memory_total_gib": 24.0, "power_watts": 310.5, "power_limit_watts": None, "temperature_c": None,
        "throttle_reasons": None,
    }  # fmt: skip
    assert samples[1]["utilization_percent"] == 0


def test_unsupported_is_unknown_and_never_zero(driver: Path, tmp_path: Path) -> None:
    steer = tmp_path / "gpus"
    steer.write_text("GPU-a -1 512 24576 21000 ok\n")
    assert read(driver, steer)[1][0]["utilization_percent"] is None


def test_a_lost_gpu_is_unknown_and_the_others_go_on(driver: Path, tmp_path: Path) -> None:
    steer = tmp_path / "gpus"
    steer.write_text("GPU-a 50 1 2 3 lost\nGPU-b 60 512 24576 21000 ok\n")
    uuids, samples = read(driver, steer)
    assert uuids == ["GPU-b"] and samples[0]["utilization_percent"] is None and samples[1]["utilization_percent"] == 60


def test_a_gpu_that_is_lost_on_the_way_keeps_its_name_and_is_offered_to_nobody(driver: Path, tmp_path: Path) -> None:
    steer = tmp_path / "gpus"
    steer.write_text("GPU-a 50 1 2 3 ok\n")
    code = f"""
import json
from runner.gpus import NvmlGpus
gpus = NvmlGpus(); gpus.sample()
open({str(steer)!r}, "w").write("GPU-a 50 1 2 3 lost\\n")
print(json.dumps([gpus.uuids(), gpus.sample()]))
"""
    uuids, samples = read(driver, steer, code)
    assert uuids == [] and samples[0]["uuid"] == "GPU-a" and samples[0]["utilization_percent"] is None


def test_no_library_and_no_driver_mean_no_gpus(driver: Path, tmp_path: Path) -> None:
    assert read(tmp_path, None) == [[], []]
    assert read(driver, None) == [[], []]


def test_a_driver_that_goes_and_comes_back(driver: Path, tmp_path: Path) -> None:
    steer = tmp_path / "gpus"
    steer.write_text("GPU-a 50 1 2 3 ok\n")
    code = f"""
import json, os
from runner.gpus import NvmlGpus
now = [0.0]
gpus, file = NvmlGpus(clock=lambda: now[0]), {str(steer)!r}
seen = [gpus.uuids()]
os.rename(file, file + "x"); seen.append(gpus.uuids())
os.rename(file + "x", file); seen.append(gpus.uuids())
now[0] = 61.0; seen.append(gpus.uuids())
print(json.dumps(seen))
"""
    assert read(driver, steer, code) == [["GPU-a"], [], [], ["GPU-a"]]


def test_the_runners_own_cuda_visible_devices_hold(
    monkeypatch: pytest.MonkeyPatch, driver: Path, tmp_path: Path
) -> None:
    steer = tmp_path / "gpus"
    steer.write_text("GPU-a 1 1 2 3 ok\nGPU-b 2 1 2 3 ok\n")
    assert read(driver, steer, CUDA_VISIBLE_DEVICES="GPU-b")[0] == ["GPU-b"]
    assert read(driver, steer, CUDA_VISIBLE_DEVICES="0")[0] == ["GPU-a"]
    assert read(driver, steer, CUDA_VISIBLE_DEVICES="")[0] == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
    assert not _visible(0, None)
