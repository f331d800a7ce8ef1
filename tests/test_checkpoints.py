"""Checkpoints on disk: names, what is whole, which one a resume takes, what is set aside."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from fluxcore.log import Event
from fluxcore.runs import RunFolder, best_weights, find_state, fold, list_checkpoints, resume_choice
from fluxcore.runs.checkpoints import inspect_state, safetensors_problem, set_aside
from fluxcore.runs.files import RunError, parse_checkpoint_name
from fluxcore.runs.state_files import ABOUT_FILE, content_problem, read_about, write_about


def weights(path: Path, size: int = 16, cut: int = 0) -> Path:
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * (size - cut))
    return path


def state(folder: RunFolder, name: str, step: int, *, without: str = "", attempt: int | None = None) -> Path:
    path = folder.path / name
    path.mkdir(parents=True)
    where = {"current_epoch": step // 10, "current_step": step} | ({"attempt": attempt} if attempt else {})
    (path / "train_state.json").write_text(json.dumps(where))
    weights(path / "model.safetensors")
    (path / "optimizer.bin").write_bytes(b"x")
    (path / "random_states_0.pkl").write_bytes(b"x")
    if without:
        (path / without).unlink()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.of(tmp_path, "cat")
    made.path.mkdir()
    return made


def events(*items: tuple[str, dict, int | None]) -> list[Event]:
    return [
        Event(f"2026-11-23T20:00:{n:02d}.000000Z", "cat", type, "trainer", "t", n, data, attempt)
        for n, (type, data, attempt) in enumerate(items, 1)
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat-000004-state", ("state", 4, None)),
        ("cat-8-state", ("state", 8, None)),
        ("cat-step00000120-state", ("state", None, 120)),
        ("cat-state", ("state", None, None)),
        ("cat-000004.safetensors", ("weights", 4, None)),
        ("cat.safetensors", ("weights", None, None)),
        ("cat-2-000004-state", None),
        ("dog-state", None),
        (".cat-state.tmp", None),
        ("cat.safetensors.tmp", None),
    ],
)
def test_sd_scripts_names_are_recognised(name: str, expected: object) -> None:
    assert parse_checkpoint_name("cat", name) == expected


@pytest.mark.parametrize("missing", ["train_state.json", "model.safetensors", "optimizer.bin", "random_states_0.pkl"])
def test_a_state_is_whole_only_with_all_its_parts(folder: RunFolder, missing: str) -> None:
    assert inspect_state(state(folder, "cat-000001-state", 10)).complete
    broken = inspect_state(state(folder, "cat-000002-state", 20, without=missing))
    assert not broken.complete and broken.problem


@pytest.mark.parametrize("name", ["optimizer.bin", "scheduler.bin", "sub/more.bin", ABOUT_FILE])
@pytest.mark.parametrize("how", ["cut", "longer", "gone"])
def test_a_torn_file_makes_a_listed_state_incomplete_and_an_older_one_is_taken(
    folder: RunFolder, name: str, how: str
) -> None:
    state(folder, "cat-000001-state", 10)  # as older versions and sd-scripts write it: without a list
    newest = state(folder, "cat-000002-state", 20)
    (newest / "sub").mkdir()
    for file in ("optimizer.bin", "scheduler.bin", "sub/more.bin"):
        (newest / file).write_bytes(b"moments")
    write_about(newest, "cat", "flux-mini")
    assert (about := read_about(newest)).base_model == "flux-mini" and about.run == "cat" and len(about.files) == 6
    assert inspect_state(newest).complete and content_problem(newest) == ""
    if how == "gone" and name == ABOUT_FILE:
        (newest / name).unlink()
        assert inspect_state(newest).complete, "a state without the list is taken as it is"
        return
    file = newest / name
    content = file.read_bytes()
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes(content[:-3] if how == "cut" else content + b"}")
    found = inspect_state(newest)
    assert not found.complete and name in found.problem
    chosen = resume_choice(folder, fold("cat", []))
    assert chosen is not None and chosen.name == "cat-000001-state"


def test_other_bytes_of_the_same_length_are_found_by_their_hash(folder: RunFolder) -> None:
    path = state(folder, "cat-000001-state", 10)
    write_about(path, "cat", "flux-mini")
    (path / "optimizer.bin").write_bytes(b"y")
    assert inspect_state(path).complete, "that would mean reading all of it at each look"
    assert content_problem(path) == "optimizer.bin is not as it was written"


def test_torn_weights_are_found_by_their_length(tmp_path: Path) -> None:
    assert safetensors_problem(weights(tmp_path / "whole.safetensors")) == ""
    assert "cut short" in safetensors_problem(weights(tmp_path / "cut.safetensors", cut=3))
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    assert "torn" in safetensors_problem(tmp_path / "junk.safetensors")


def test_resume_takes_the_highest_complete_step(folder: RunFolder) -> None:
    state(folder, "cat-000001-state", 10)
    state(folder, "cat-000002-state", 20)
    state(folder, "cat-000003-state", 30, without="random_states_0.pkl")
    chosen = resume_choice(folder, fold("cat", []))
    assert chosen is not None and (chosen.name, chosen.step) == ("cat-000002-state", 20)


def test_a_run_whose_folder_was_renamed_keeps_its_checkpoints(folder: RunFolder) -> None:
    """Or copied: the files have the old name, by which its log knows them."""
    state(folder, "dog-000001-state", 10)
    state(folder, "dog-000002-state", 20)
    weights(folder.path / "dog.safetensors")
    state(folder, "stranger-state", 30)
    log = events(
        ("run.started", {"request": "a:1"}, 1),
        ("checkpoint.saved", {"path": "dog-000001-state", "kind": "state", "step": 10}, 1),
        ("checkpoint.saved", {"path": "dog-000002-state", "kind": "state", "step": 20}, 1),
        ("checkpoint.saved", {"path": "dog.safetensors", "kind": "weights", "step": 20}, 1),
        ("run.failed", {"reason": "crash"}, 1),
    )
    there = [found.name for found in list_checkpoints(folder, fold("cat", log))]
    assert there == ["dog-000001-state", "dog-000002-state", "dog.safetensors"]
    chosen = resume_choice(folder, fold("cat", log))
    assert chosen is not None and chosen.name == "dog-000002-state"
    assert find_state(folder, "dog-000001-state") is not None
    assert set_aside(folder, 0, fold("cat", log)) == there


def test_a_later_state_of_an_attempt_that_was_gone_behind_is_no_choice(folder: RunFolder) -> None:
    state(folder, "cat-000001-state", 10)
    state(folder, "cat-000003-state", 30)
    log = events(
        ("run.started", {"request": "a:1"}, 1),
        ("checkpoint.saved", {"path": "cat-000001-state", "kind": "state", "step": 10}, 1),
        ("checkpoint.saved", {"path": "cat-000003-state", "kind": "state", "step": 30}, 1),
        ("run.failed", {"reason": "crash"}, 1),
        ("run.started", {"request": "a:2", "resume_from": "cat-000001-state", "resume_step": 10}, 2),
    )
    chosen = resume_choice(folder, fold("cat", log))
    assert chosen is not None and chosen.step == 10
    again = [*log, *events(("checkpoint.saved", {"path": "cat-000003-state", "kind": "state", "step": 30}, 2))]
    chosen = resume_choice(folder, fold("cat", again))
    assert chosen is not None and chosen.step == 30


def _step(step: int, attempt: int) -> tuple[str, dict, int]:
    return "train.step", {"step": step}, attempt


def test_a_state_written_again_counts_although_its_writer_died_before_it_could_say_so(folder: RunFolder) -> None:
    state(folder, "cat-000001-state", 10)
    state(folder, "cat-000003-state", 30)
    log = events(
        ("run.started", {"request": "a:1"}, 1),
        ("checkpoint.saved", {"path": "cat-000003-state", "kind": "state", "step": 30}, 1),
        ("run.failed", {"reason": "crash"}, 1),
        ("run.started", {"request": "a:2", "resume_from": "cat-000001-state", "resume_step": 10}, 2),
        _step(30, 2),  # whoever gets as far has set the first attempt's states aside before
    )
    chosen = resume_choice(folder, fold("cat", log))
    assert chosen is not None and chosen.step == 30


def test_a_state_that_nobody_spoke_of_is_its_attempts_by_the_steps(folder: RunFolder) -> None:
    state(folder, "cat-000001-state", 10)
    state(folder, "cat-000003-state", 30)
    first = [("run.started", {"request": "a:1"}, 1), _step(30, 1), ("run.failed", {"reason": "killed"}, 1)]
    chosen = resume_choice(folder, fold("cat", events(*first)))
    assert chosen is not None and chosen.step == 30
    # The second attempt goes behind it, and dies before it could set it aside.
    second = ("run.started", {"request": "a:2", "resume_from": "cat-000001-state", "resume_step": 10}, 2)
    chosen = resume_choice(folder, fold("cat", events(*first, second)))
    assert chosen is not None and chosen.step == 10
    chosen = resume_choice(folder, fold("cat", events(*first, second, _step(30, 2))))
    assert chosen is not None and chosen.step == 30


def test_weights_whose_event_is_missing_tell_their_step_and_stay_where_they_belong(folder: RunFolder) -> None:
    header = json.dumps({"__metadata__": {"ss_steps": "10"}, "a": {"data_offsets": [0, 4]}}).encode()
    path = folder.epoch_weights(1)
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    (found,) = list_checkpoints(folder)
    assert (found.step, found.epoch, found.complete) == (10, 1, True)
    set_aside(folder, 10, fold("cat", []))
    assert path.exists()
    set_aside(folder, 9, fold("cat", []))
    assert not path.exists()


def test_a_state_that_no_event_tells_of_says_itself_whose_it_is(folder: RunFolder) -> None:
    """A full disk: attempt 1 wrote a state but no event of its steps; attempt 2 begins afresh and dies at once."""
    again = fold("cat", events(("run.started", {}, 1), ("run.failed", {}, 1), ("run.started", {}, 2)))
    state(folder, "cat-step00000015-state", 15, attempt=1)
    assert resume_choice(folder, again) is None
    state(folder, "cat-step00000007-state", 7, attempt=2)
    chosen = resume_choice(folder, again)
    assert chosen is not None and chosen.step == 7


def test_what_lies_beyond_is_set_aside_and_nothing_is_overwritten(folder: RunFolder) -> None:
    for _ in range(2):
        state(folder, "cat-000003-state", 30)
        weights(folder.final_weights)
        folder.samples.mkdir(exist_ok=True)
        (folder.samples / "cat_000030_00.png").write_bytes(b"x")
        set_aside(folder, 10, fold("cat", []))
    assert list_checkpoints(folder) == []
    names = sorted(path.relative_to(folder.superseded).as_posix() for path in folder.superseded.rglob("cat*"))
    assert [name for name in names if "/" not in name] == [
        "cat-000003-state", "cat-000003-state.2", "cat.safetensors", "cat.safetensors.2",
    ]  # fmt: skip
    assert {"sample/cat_000030_00.png", "sample/cat_000030_00.png.2"} <= set(names)


def test_the_best_lora_is_the_one_with_the_lowest_held_out_loss_that_is_there(folder: RunFolder) -> None:
    def saved(n: int, loss: float | str | None) -> Event:
        data = {"step": n * 10, "epoch": n, "path": f"cat-00000{n}.safetensors", "kind": "weights"}
        data |= {} if loss is None else {"validation_loss": loss}
        weights(folder.path / str(data["path"]))
        return Event("2026-11-23T20:00:00.000000Z", "cat", "checkpoint.saved", "trainer", "trainer-1", n, data, 1)

    log = fold("cat", [saved(1, 0.5), saved(2, 0.3), saved(3, 0.4), saved(4, "nan"), saved(5, None)])
    assert best_weights(folder, log).path == "cat-000002.safetensors"
    weights(folder.path / "cat-000002.safetensors", cut=1)
    assert best_weights(folder, log).path == "cat-000003.safetensors"
    for gone in (2, 3):
        (folder.path / f"cat-00000{gone}.safetensors").unlink()
    assert best_weights(folder, log) is None, "one alone is not the best of any"


@pytest.mark.parametrize("name", ["../cat-state", "/etc", "cat-state/..", "dog-state", "cat.safetensors", ""])
def test_no_name_leads_out_of_the_folder(folder: RunFolder, name: str) -> None:
    weights(folder.final_weights)
    assert find_state(folder, name) is None


def test_no_run_name_leads_out_of_outputs(tmp_path: Path) -> None:
    for name in ("..", "a/b", "", ".x"):
        with pytest.raises(RunError):
            RunFolder.of(tmp_path, name)
