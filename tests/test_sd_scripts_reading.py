"""What sd-scripts print, log and save, read: tqdm's own bars, a real TensorBoard file, half-written checkpoints."""

from __future__ import annotations

import io
import json
import math
import os
import struct
import sys
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tqdm import tqdm

from fluxcore.config import parse_config
from fluxcore.log import EventLog, PatientLog, read_events
from fluxcore.runs import RunFolder
from fluxcore.sd_scripts.collect import Collector
from fluxcore.sd_scripts.command import Files, Plan
from fluxcore.sd_scripts.failures import exit_of, explanation
from fluxcore.sd_scripts.place import Scripts
from fluxcore.sd_scripts.progress import Bar, Phase, Reader, read_line
from fluxcore.sd_scripts.report import Report
from fluxcore.sd_scripts.scalars import PATTERN, Step, StepFile, read_event
from fluxcore.sd_scripts.trainer import POLL_SECONDS, Attempt
from fluxcore.training.failures import Exit, TrainingError
from fluxcore.training.order import Order
from runner.watch import LIFE_SECONDS
from tests.fake_sd_scripts.flux_train_network import png, safetensors
from tests.test_events_page import undocumented

REAL_SCALARS = Path(__file__).resolve().parent / "data" / "scalars.tfevents"
"""Written by accelerate's tracker and tensorboard 2.21: steps 1 to 3, an epoch's average, step 300 with a loss of NaN."""
KEY = "lora_unet_single_blocks_0_linear1.lora_down.weight"


def drawn_by_tqdm() -> bytes:
    """A training's bar as tqdm draws it into a file, with lines between as sd-scripts print them."""
    out = io.StringIO()
    with tqdm(range(3), smoothing=0, desc="steps", file=out, mininterval=0) as bar:
        for step in range(1, 4):
            bar.update(1)
            bar.set_postfix(avr_loss=0.5 / step)
            if step == 2:
                out.write("\nsaving checkpoint: /out/cat-step00000002.safetensors\n")
    return out.getvalue().encode()


@given(cuts=st.lists(st.integers(1, 40), max_size=60))
def test_a_bar_is_read_however_its_bytes_arrive(cuts: list[int]) -> None:
    data, reader, found = drawn_by_tqdm(), Reader(), []
    for length in [*cuts, len(data)]:
        found += reader.feed(data[:length])
        data = data[length:]
    bars = [item for item in found if isinstance(item, Bar)]
    assert {bar.label for bar in bars} == {"steps"} and {bar.total for bar in bars} == {3}
    steps = [bar.done for bar in bars]
    assert steps == sorted(steps) and set(steps) == {0, 1, 2, 3}
    assert {bar.done: bar.loss for bar in bars}[3] == 0.167
    assert [item for item in found if isinstance(item, Phase)] == [Phase("save")]


@pytest.mark.parametrize(
    ("line", "item"),
    [
        (" 45%|████▌     | 9/20 [00:03<00:04,  2.51it/s]", Bar("", 9, 20)),
        ("steps:   2%|▏ | 3/160 [00:04<03:51,  1.47s/it, avr_loss=nan]", Bar("steps", 3, 160, math.nan)),
        ("2026-02-16 08:07:29 INFO     saving state at epoch 4    train_util.py:5943", Phase("save")),
        ("INFO     caching Text Encoder outputs with caching strategy.", Phase("cache")),
        ("INFO     generating sample images at step / x: 20", Phase("sample")),
        ("import network module: networks.lora_flux", Phase("load")),
        ("epoch 1/16", None),
        ("", None),
    ],
)
def test_lines(line: str, item: Any) -> None:
    assert repr(read_line(line)) == repr(item)  # a NaN is equal to nothing


def test_a_real_event_file_is_read_step_by_step_while_it_grows(tmp_path: Path) -> None:
    data = REAL_SCALARS.read_bytes()
    steps = StepFile(tmp_path)
    assert not steps.exists and steps.read_new() == []
    path = tmp_path / "20260216" / PATTERN.replace("*", "1.vm.2.0")
    path.parent.mkdir()
    found = []
    for end in range(0, len(data) + 1, 5):
        path.write_bytes(data[:end])
        found += steps.read_new()
    path.write_bytes(data)
    found += steps.read_new()
    assert [(step.step, step.loss, step.lr) for step in found[:3]] == [
        (1, 0.5, 0.0008),
        (2, 0.25, 0.0008),
        (3, 0.1666667, 0.0008),
    ]
    assert found[3].step == 300 and math.isnan(found[3].loss) and len(found) == 4
    assert steps.exists and steps.read_new() == []


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reading_of_an_event(data: bytes) -> None:
    value = b"\n\x04loss\x15" + struct.pack("<f", 0.5)  # its tag, its simple_value
    event = b"*%c\n%c%s" % (len(value) + 2, len(value), value)
    (*_, tag, loss), *others = read_event(event + data)
    assert (tag, loss) == ("loss", 0.5), "what stands before them is read"
    assert repr([other[2:] for other in others]) == repr([alone[2:] for alone in read_event(data)])  # nan is not nan


@contextmanager
def opened() -> Iterator[Counter[str]]:
    """How often which path is opened or listed meanwhile, by anyone in this process."""
    counts: Counter[str] = Counter()
    _COUNTERS.append(counts)
    try:
        yield counts
    finally:
        _COUNTERS.remove(counts)


_COUNTERS: list[Counter[str]] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _COUNTERS and event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], str | os.PathLike):
        _COUNTERS[-1][os.fspath(arguments[0])] += 1


sys.addaudithook(_audit)


class Place:
    """A run's folder, sd-scripts' output folder in it, and a report into its log."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.folder = RunFolder(path / "cat")
        self.output = self.folder.attempt(1) / "sd-scripts" / "output"
        self.output.mkdir(parents=True)
        self.config = parse_config({"lora_name": "cat", "sample_prompts": "a cat\na dog", "sample_every_n_steps": 5})
        self.now = 1000.0
        log = PatientLog(EventLog(self.folder.path, "trainer", attempt=1))
        self.report = Report(log, self.folder, self.config, plan, lambda: self.now)
        self.collector = Collector(self.output, self.folder, plan)

    def state(self, name: str, step: int, *, torn: bool = False) -> Path:
        path = self.output / name
        path.mkdir()
        (path / "train_state.json").write_text(json.dumps({"current_epoch": 1, "current_step": step}))
        safetensors(path / "model.safetensors", [KEY])
        (path / "optimizer.bin").write_bytes(b"o")
        if torn:
            (path / "random_states_0.pkl").write_bytes(b"PK\x03\x04")
        else:
            with zipfile.ZipFile(path / "random_states_0.pkl", "w") as archive:
                archive.writestr("data.pkl", b"r")
        return path

    def take(self, up_to: int | None) -> list[tuple[str, int]]:
        return [(found.path.name, found.step) for found in self.collector.checkpoints(up_to)]

    def events(self, *types: str) -> list[tuple[str, dict[str, Any]]]:
        assert undocumented(self.folder.path, "trainer") == []
        return [(event.type, event.data) for event in read_events(self.folder.path) if event.type in types]


def test_checkpoints_get_their_true_names_and_steps(tmp_path: Path) -> None:
    place = Place(tmp_path, Plan(first=60, total=300, per_epoch=30))
    place.state("cat-step00000010-state", 10)
    place.state("cat-000001-state", 30)
    safetensors(place.output / "cat-000001.safetensors", [KEY], {"ss_steps": "30"})
    safetensors(place.output / "cat-000002.safetensors", [KEY], {"ss_steps": "60"})
    place.state("cat-state", 240)
    assert place.take(30) == [
        ("cat-step00000070-state", 70),
        ("cat-000003-state", 90),
        ("cat-000003.safetensors", 90),
    ]
    assert place.take(None) == [("cat-000004.safetensors", 120), ("cat-state", 300)]
    saved = json.loads((place.folder.path / "cat-000003-state" / "train_state.json").read_text())
    assert saved == {"current_epoch": 3, "current_step": 90}


def test_an_epoch_that_began_in_the_midst_of_one_goes_by_its_step(tmp_path: Path) -> None:
    place = Place(tmp_path, Plan(first=70, total=300, per_epoch=30))
    place.state("cat-000001-state", 30)
    assert place.take(None) == [("cat-step00000100-state", 100)]


def test_half_a_checkpoint_is_left_alone_until_it_is_whole(tmp_path: Path) -> None:
    place = Place(tmp_path, Plan(0, 300, 30))
    state = place.state("cat-000001-state", 30, torn=True)
    weights = place.output / "cat-000001.safetensors"
    safetensors(weights, [KEY], {"ss_steps": "30"})
    whole = weights.read_bytes()
    for length in (0, 4, 20, len(whole) - 1):
        weights.write_bytes(whole[:length])
        assert place.take(None) == []
    weights.write_bytes(whole)
    assert place.take(None) == [("cat-000001.safetensors", 30)] and state.is_dir()


def test_what_may_not_be_taken_yet_is_read_once_while_it_does_not_change(tmp_path: Path) -> None:
    """A LoRA lies there until its step's loss is known: reading it over and over would be the run's sign of life."""
    place = Place(tmp_path, Plan(0, 300, 30))
    weights = place.output / "cat-000001.safetensors"
    safetensors(weights, [KEY], {"ss_steps": "30"})
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    place.state("cat-000001-state", 30)
    torn = place.state("cat-000002-state", 60, torn=True)
    assert place.take(29) == []
    with opened() as counts:
        assert place.take(29) == place.take(29) == []
    inside = {path: count for path, count in counts.items() if path.startswith(os.fspath(place.output) + os.sep)}
    assert set(inside) == {str(place.output / name) for name in ("cat-000001-state", "cat-000002-state")}, "listed only"
    weights.write_bytes(whole)
    with zipfile.ZipFile(torn / "random_states_0.pkl", "w") as archive:
        archive.writestr("data.pkl", b"r")
    assert place.take(29) == []
    taken = ["cat-000001-state", "cat-000001.safetensors", "cat-000002-state"]
    assert [name for name, _ in place.take(60)] == taken


def test_a_state_is_taken_without_new_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk it is all there is: its count is mended where it stands, and it goes in one rename."""
    place = Place(tmp_path, Plan(first=60, total=300, per_epoch=30))
    path = place.state("cat-step00000010-state", 10)
    blocks = (path / "train_state.json").stat().st_ino

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fluxcore.atomic.secrets.token_hex", full)
    assert place.take(None) == [("cat-step00000070-state", 70)]
    saved = place.folder.path / "cat-step00000070-state" / "train_state.json"
    assert json.loads(saved.read_text()) == {"current_epoch": 3, "current_step": 70}
    assert saved.stat().st_ino == blocks
    assert sorted(os.listdir(place.folder.path)) == [".attempts", "cat-step00000070-state"]


def test_an_idle_adapter_shows_no_sign_of_life(tmp_path: Path) -> None:
    """Ten seconds of looking while nothing comes: far below what the stall rules take for one (runner/watch.py)."""
    place = Place(tmp_path, Plan(0, 300, 30))
    place.folder.train_log.write_text("saving state\n")
    (place.folder.attempt(1) / "logs").mkdir()
    (place.folder.attempt(1) / "logs" / PATTERN.replace("*", "1.vm.2.0")).write_bytes(REAL_SCALARS.read_bytes()[:99])
    files = Files(tmp_path / "d.toml", None, place.output, place.folder.attempt(1) / "logs")
    log = PatientLog(EventLog(place.folder.path, "trainer", attempt=1))
    order = Order(place.folder, 1, place.config, log, None, 0)
    now = [1000.0]
    attempt = Attempt(order, Scripts(tmp_path, "/bin/true"), files, Plan(0, 300, 30), clock=lambda: now[0])
    weights = place.output / "cat-000001.safetensors"
    safetensors(weights, [KEY], {"ss_steps": "30"})
    place.state("cat-000001-state", 30)
    looks = int(LIFE_SECONDS / POLL_SECONDS)
    with opened() as counts:
        for _ in range(looks):
            attempt.look()
            now[0] += POLL_SECONDS
    assert counts[str(weights)] == 2, "once for its length, once for its step"
    assert 5 <= counts[str(place.output)] <= LIFE_SECONDS + 1
    assert counts[str(place.folder.train_log)] == looks and sum(counts.values()) < 2 * looks + 50
    assert attempt.follow(lambda: False) == Exit.DONE
    assert {path.name for path in place.folder.path.glob("cat-*")} == {"cat-000001.safetensors", "cat-000001-state"}


def test_the_random_states_that_torch_saves_are_known_as_whole(tmp_path: Path) -> None:
    import torch

    path = tmp_path / "random_states_0.pkl"
    torch.save({"torch_manual_seed": torch.get_rng_state()}, path)
    data = path.read_bytes()
    assert zipfile.is_zipfile(path)
    for length in (0, 100, len(data) // 2, len(data) - 30):
        path.write_bytes(data[:length])
        assert not zipfile.is_zipfile(path)


def test_what_lies_under_a_name_already_is_kept(tmp_path: Path) -> None:
    place = Place(tmp_path, Plan(0, 300, 30))
    (place.folder.path / "cat-000001-state").mkdir()
    (place.folder.path / "cat-000001-state" / "mine").write_text("")
    place.state("cat-000001-state", 30)
    assert place.take(None) == [("cat-000001-state", 30)]
    assert (place.folder.superseded / "cat-000001-state" / "mine").exists()


def test_samples_are_taken_whole_under_their_true_step(tmp_path: Path) -> None:
    place = Place(tmp_path, Plan(60, 300, 30))
    (place.output / "sample").mkdir()
    path = place.output / "sample" / "cat_000010_01_20260216080729_43.png"
    png(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    assert list(place.collector.samples(None)) == []
    path.write_bytes(whole)
    assert list(place.collector.samples(9)) == []
    for drawn in place.collector.samples(10):
        place.report.sample(drawn)
    ((_, data),) = place.events("sample.saved")
    assert data == {
        "step": 70, "epoch": 3, "index": 1, "prompt": "a dog", "seed": 43,
        "path": "sample/cat_000070_01_20260216080729_43.png",
    }  # fmt: skip


def test_steps_are_counted_on_and_timed_but_for_what_held_them_up(tmp_path: Path) -> None:
    place = Place(tmp_path, Plan(60, 300, 30))
    report = place.report
    report.phase("load")
    report.heard([Phase("cache"), Bar("", 0, 4), Bar("", 4, 4), Phase("cache"), Bar("", 0, 4)], steps_too=False)
    report.heard([Phase("load"), Bar("steps", 0, 240)], steps_too=False)
    report.step(Step(1, 0.5, 8e-4, 1002.0))
    report.heard([Bar("steps", 2, 240), Phase("save"), Bar("steps", 2, 240, 0.4)], steps_too=False)
    report.step(Step(2, 0.4, 8e-4, 1030.0))
    report.step(Step(3, 0.3, 8e-4, 1032.0))
    report.step(Step(3, 0.3, 8e-4, 1032.0))
    steps = [data for _, data in place.events("train.step")]
    assert [(data["step"], data["epoch"], data["step_seconds"]) for data in steps] == [
        (61, 3, 2.0),
        (62, 3, None),
        (63, 3, 2.0),
    ]
    assert steps[0]["lr"] == 8e-4 and steps[0]["images_per_second"] == 0.5 and steps[0]["total_steps"] == 300
    phases = [data["phase"] for _, data in place.events("phase.started")]
    assert phases == ["load", "cache", "cache", "load", "train", "save", "train"]
    assert [data["done"] for _, data in place.events("phase.progress")] == [0, 4, 0]


def test_a_save_stays_a_save_though_its_steps_loss_is_read_later(tmp_path: Path) -> None:
    report = (place := Place(tmp_path, Plan(0, 300, 30))).report
    report.step(Step(3, 0.5, 8e-4, 1000.0))
    report.heard([Bar("steps", 4, 300), Phase("save")], steps_too=False)
    report.step(Step(4, 0.4, 8e-4, 1002.0))
    assert [data["phase"] for _, data in place.events("phase.started")] == ["train", "save"]
    report.heard([Bar("steps", 5, 300)], steps_too=False)
    assert [data["phase"] for _, data in place.events("phase.started")] == ["train", "save", "train"]


def test_without_tensorboard_the_bar_tells_the_steps(tmp_path: Path) -> None:
    place = Place(tmp_path, Plan(0, 300, 30))
    bars = [Bar("steps", 0, 300), Bar("steps", 1, 300), Bar("steps", 1, 300, 0.5), Bar("steps", 4, 300, 0.25)]
    place.report.heard(bars, steps_too=True)
    steps = [data for _, data in place.events("train.step")]
    assert [(data["step"], data["loss"], data["lr"]) for data in steps] == [(1, 0.5, None), (4, 0.25, None)]


def test_a_loss_that_is_no_number_ends_it(tmp_path: Path) -> None:
    place = Place(tmp_path, Plan(60, 300, 30))
    with pytest.raises(TrainingError, match="nan at step 65: lower the learning rate") as error:
        place.report.step(Step(5, math.nan, 8e-4, 1.0))
    assert error.value.code == Exit.NAN_LOSS
    assert place.events("train.step")[0][1]["loss"] == "nan"


TRACE = 'Traceback (most recent call last):\n  File "flux_train_network.py", line 560, in <module>\n'


@pytest.mark.parametrize(
    ("code", "said", "reason", "words"),
    [
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", Exit.OOM_GPU, "Tried to allocate"),
        (1, "OSError: [Errno 28] No space left on device", Exit.DISK_FULL, "Errno 28"),
        (1, "FileNotFoundError: [Errno 2] No such file: '/m/ae.sft'", Exit.BAD_CONFIG, "/m/ae.sft"),
        (1, "ModuleNotFoundError: No module named 'voluptuous'", Exit.BAD_CONFIG, "requirements.txt"),
        (1, "PIL.UnidentifiedImageError: cannot identify image file 'a.png'", Exit.BAD_DATA, "a.png"),
        (1, "OSError: Can't load tokenizer for 'google/t5-v1_1-xxl'", Exit.DOWNLOAD, "t5-v1_1-xxl"),
        (2, "flux_train_network.py: error: unrecognized arguments: --x", Exit.BAD_CONFIG, "--x"),
        (1, "ValueError: something else", Exit.CRASH, "something else"),
        (1, "", Exit.CRASH, "exit code 1"),
    ],
)  # fmt: skip
def test_how_it_failed_becomes_fluxgyms_exit_code_and_a_sentence(
    code: int, said: str, reason: Exit, words: str
) -> None:
    lines = f"{TRACE}{said}\nsteps:  12%|█▎ | 40/320 [00:10<01:00,  1.0it/s]".splitlines()
    assert exit_of(code, lines) == reason
    assert words in explanation(code, lines if said else [])
