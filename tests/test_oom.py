"""Out of memory for real: a runner in a control group with a limit, and the kernel's own count."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fluxcore.log import Event
from fluxcore.runs import request_start
from runner.host import cgroup_available
from runner.watch import OOM_SECONDS, Watch
from tests.test_runner_process import ROOT, Place, place  # noqa: F401
from tests.test_shim import wait_until

LIMIT = 400 << 20
TRAINER = """
import sys, time
if sys.argv[sys.argv.index("--run") + 1] == "eater":
    time.sleep(0.5)
    hoard = []
    while len(hoard) < 60:
        hoard.append(bytearray(16 << 20)); time.sleep(0.005)
time.sleep(120)
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of our own with a memory limit, version 2 or 1."""
    kinds = [("/sys/fs/cgroup", "cgroup.controllers", "memory.max")]
    kinds += [("/sys/fs/cgroup/memory", "tasks", "memory.limit_in_bytes")]
    for root, sign, limit in kinds:
        if not (Path(root) / sign).exists():
            continue
        made = Path(root) / f"fluxgym-test-{os.getpid()}"
        try:
            made.mkdir()
            (made / limit).write_text(str(LIMIT))
        except OSError:
            if made.exists():
                made.rmdir()
            continue
        yield made
        wait_until(lambda made=made: not (made / "cgroup.procs").read_text())
        made.rmdir()
        return
    pytest.skip("no control group with a memory limit can be made here")


def test_the_victim_is_known_and_who_is_killed_later_is_not_one(
    place: Place,  # noqa: F811
    group: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    monkeypatch.setenv("FLUXGYM_TRAINER", f"{sys.executable} {script}")
    monkeypatch.setenv("FLUXGYM_CPU_SLOTS", "2")
    enter = f"import os, sys; open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid())); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", enter, sys.executable, "-m", "runner", "--outputs", str(place.outputs)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL) as runner:
        try:
            for name in ("other", "eater"):
                place.make(name, {"auto_resume": 0})
                request_start(place.outputs, name, "cli")
                place.until(name, lambda state: state.host)
            eaten = place.ended("eater")
            assert (eaten.state, eaten.reason) == ("failed", "oom_host")
            assert eaten.host["memory_available_gib"] < 0.4, "the container's limit, not the machine's memory"
            time.sleep(OOM_SECONDS + 0.5)
            before = len(events(place, "other"))
            wait_until(lambda: len(events(place, "other")) > before + 3)  # samples that have counted it
            os.kill(place.state("other").attempts[0].pid, signal.SIGKILL)
            assert place.ended("other").reason == "killed", "that one was someone else's memory"
        finally:
            runner.kill()
    wait_until(lambda: place.runners() == [])
    for pid in place.trainers():
        os.kill(pid, signal.SIGKILL)


def events(place: Place, name: str) -> list[str]:  # noqa: F811
    return [line for line in (place.outputs / name / "events.jsonl").read_text().splitlines() if "host.sampled" in line]


@pytest.mark.parametrize("version", [1, 2])
def test_what_a_container_may_still_take(tmp_path: Path, version: int) -> None:
    files = {
        1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file", "7:memory:/pod/box"),
        2: (".", "memory.max", "memory.current", "inactive_file", "0::/pod/box"),
    }
    root, limit, used, cached, line = files[version]
    own = tmp_path / "cgroup"
    own.write_text(f"1:name=systemd:/\n{line}\n")
    inner, outer = tmp_path / root / "pod" / "box", tmp_path / root / "pod"
    inner.mkdir(parents=True)

    def group(folder: Path, most: str, now: int, reclaimable: int) -> None:
        (folder / limit).write_text(f"{most}\n")
        (folder / used).write_text(f"{now}\n")
        (folder / "memory.stat").write_text(f"anon 5\n{cached} {reclaimable}\n")

    group(inner, "1000", 400, 50)
    assert cgroup_available(tmp_path, own) == [650]
    group(outer, "700", 600, 0)
    assert sorted(cgroup_available(tmp_path, own)) == [100, 650]
    group(inner, "max" if version == 2 else str(2**63 - 4096), 400, 50)
    assert cgroup_available(tmp_path, own) == [100]
    assert cgroup_available(tmp_path / "none", own) == [] and cgroup_available(tmp_path, tmp_path / "none") == []


def test_the_last_sample_may_have_counted_the_end_itself() -> None:
    watch = Watch()
    for n, kills in enumerate((3, 3, 4)):
        watch.event(Event("", "cat", "host.sampled", "runner", "w", n, {"oom_kills": kills}, 1))
    assert watch.oom_kills == 3
