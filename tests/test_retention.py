"""Old states go only once a newer one is whole, the only whole one never, and a killed save leaves no debris for long."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from fluxcore.runs import RunFolder, list_checkpoints
from fluxcore.runs.retention import prune_states, sweep_leftovers
from tests.stub_trainer import save_state, tiny_safetensors


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    made = RunFolder.of(tmp_path, "cat")
    made.path.mkdir()
    return made


def saved(folder: RunFolder, name: str, step: int, *, torn: bool = False) -> str:
    path = save_state(folder.path, name, step)
    if torn:
        (path / "random_states_0.pkl").unlink()
    return name


def left(folder: RunFolder) -> list[str]:
    return sorted(found.name for found in list_checkpoints(folder))


def test_the_newest_of_each_kind_stay(folder: RunFolder) -> None:
    epochs = [saved(folder, f"cat-{epoch:06d}-state", 10 * epoch) for epoch in (4, 8, 12)]
    steps = [saved(folder, f"cat-step{step:08d}-state", step) for step in (45, 90, 119, 125)]
    assert prune_states(folder, 2, 30, 125) == [steps[0], steps[1], epochs[0]]
    assert left(folder) == sorted([*epochs[1:], *steps[2:]])


def test_zero_keeps_all(folder: RunFolder) -> None:
    names = [saved(folder, f"cat-{epoch:06d}-state", epoch) for epoch in (1, 2, 3)]
    names.append(saved(folder, "cat-step00000004-state", 4))
    assert prune_states(folder, 0, 0, 1000) == [] and left(folder) == sorted(names)


@pytest.mark.parametrize("torn", ["cat-000008-state", "cat-step00000080-state"])
def test_a_torn_newer_state_costs_not_the_only_whole_one(folder: RunFolder, torn: str) -> None:
    only = saved(folder, "cat-000004-state", 40)
    saved(folder, torn, 80, torn=True)
    assert prune_states(folder, 1, 1, 80) == []
    assert only in left(folder)


def test_the_newest_whole_one_stays_also_where_its_kind_would_be_pruned(folder: RunFolder) -> None:
    """Steps are kept for one step only: at a later step even the newest state is too old, but there is no newer one."""
    saved(folder, "cat-step00000010-state", 10)
    newest = saved(folder, "cat-step00000020-state", 20)
    assert prune_states(folder, 0, 1, 500) == ["cat-step00000010-state"]
    assert left(folder) == [newest]


def test_the_final_state_is_never_pruned(folder: RunFolder) -> None:
    saved(folder, "cat-000004-state", 40)
    final = saved(folder, "cat-state", 80)
    saved(folder, "cat-000009-state", 90)
    assert prune_states(folder, 1, 1, 90) == ["cat-000004-state"] and final in left(folder)


def test_a_kill_while_pruning_leaves_no_half_state_under_its_name(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(folder, "cat-000004-state", 40)
    newest = saved(folder, "cat-000008-state", 80)

    class Killed(BaseException):
        pass

    def killed(path: Path, *_: object, **__: object) -> None:
        if path.exists():
            (path / "model.safetensors").unlink()  # it had begun
            raise Killed

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(Killed):
        prune_states(folder, 1, 0, 80)
    monkeypatch.undo()
    assert left(folder) == [newest]
    assert sweep_leftovers(folder) == [".cat-000004-state.gone"]
    assert os.listdir(folder.path) == [newest]


def test_debris_of_killed_saves_is_swept_and_nothing_else(folder: RunFolder) -> None:
    for name in (".cat-000002-state.tmp", ".cat-state.tmp", ".cat-step00000007-state.gone"):
        (folder.path / name).mkdir()
        (folder.path / name / "optimizer.bin").write_bytes(b"half")
    (folder.path / ".cat-000004.safetensors.4711-3f2a10.tmp").write_bytes(b"half")
    tiny_safetensors(folder.final_weights)
    for name in (".superseded", ".attempts", "dataset", ".dog-000004-state.tmp"):
        (folder.path / name).mkdir()
    (folder.path / ".ui_state.json.12-ab.tmp").write_bytes(b"{}")
    kept = saved(folder, "cat-000004-state", 40)
    assert len(sweep_leftovers(folder)) == 4
    assert sorted(os.listdir(folder.path)) == sorted(
        [".attempts", ".dog-000004-state.tmp", ".superseded", ".ui_state.json.12-ab.tmp", "cat.safetensors", kept]
        + ["dataset"]
    )
