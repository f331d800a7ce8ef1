"""Drafts: every edit is in the log when it returns, and another process finds all of it."""

from __future__ import annotations

import pytest

from fluxcore.config import defaults
from fluxcore.log import read_events
from fluxcore.runs import RunError, list_run_folders
from studio.drafts import Draft, copy_pictures, draft_folder, follow_presets, new_draft, newest_draft
from tests.fake_runs import FakeRun


def test_an_edit_is_found_by_the_next_process(tmp_path):
    draft = Draft(tmp_path)
    assert not draft.exists, "looking leaves nothing behind"
    draft.edit({"lora_name": "My Cat!"})
    draft.edit({"network_dim": 16})
    found = newest_draft(tmp_path)
    assert found.id == draft.id
    assert found.values["lora_name"] == "My Cat!" and found.values["network_dim"] == 16
    assert found.touched == {"lora_name", "network_dim"}
    assert [event.n for event in read_events(draft.folder.path)] == [1, 2]
    assert list_run_folders(tmp_path) == []


def test_two_tabs_do_not_undo_each_other(tmp_path):
    one = Draft(tmp_path)
    one.edit({"lora_name": "cat"})
    two = newest_draft(tmp_path)
    two.edit({"network_dim": 16})
    one.edit({"max_train_epochs": 3})
    two.refresh()
    assert two.values["lora_name"] == "cat" and two.values["network_dim"] == 16 and two.values["max_train_epochs"] == 3


def test_tabs_opened_before_anything_was_typed_share_one_draft(tmp_path):
    first, second, third = Draft(tmp_path), Draft(tmp_path), Draft(tmp_path)
    first.edit({"lora_name": "cat"})
    second.edit({"concept_sentence": "p3t"})
    assert third.dataset == first.dataset, "pictures too"
    found = newest_draft(tmp_path)
    assert (found.id, found.values["lora_name"], found.values["concept_sentence"]) == (first.id, "cat", "p3t")
    assert new_draft(tmp_path).id != first.id, "one that was asked for is another one"


def test_what_an_edit_finds_of_another_tab_is_told_after_it(tmp_path):
    one = Draft(tmp_path)
    one.edit({"lora_name": "cat"})
    two = Draft(tmp_path, one.id)
    two.edit({"concept_sentence": "p3t", "lora_name": "dog"})
    one.edit({"lora_name": "cow"})  # it reads what the other one wrote, and its fields must be drawn anew all the same
    assert one.overwritten == {"lora_name": "dog"}
    assert one.refresh() == ["concept_sentence"] and one.refresh() is None


def test_untouched_fields_follow_the_model_and_the_memory(tmp_path):
    draft = Draft(tmp_path)
    draft.edit({"network_dim": 32})
    draft.edit({"base_model": "flux-mini"})
    assert draft.values["resolution"] == 64 and draft.values["network_dim"] == 32
    draft.edit({"base_model": "flux-dev", "vram": "12G"})
    assert draft.values["resolution"] == defaults()["resolution"] and draft.values["optimizer_type"] == "adafactor"
    assert follow_presets({**defaults(), "base_model": "no such"}, {"base_model"})["base_model"] == "no such"


def test_the_newest_draft_is_the_one_edited_last(tmp_path):
    import os

    old, new = new_draft(tmp_path), new_draft(tmp_path)
    for draft, time in ((old, 2000), (new, 1000)):
        os.utime(draft.folder.events, (time, time))
    assert newest_draft(tmp_path).id == old.id


def test_a_draft_that_became_a_run_is_gone_in_the_other_tab(tmp_path):
    one = new_draft(tmp_path)
    two = newest_draft(tmp_path)
    one.discard()
    assert two.gone and not Draft(tmp_path).gone


def test_copied_captions_are_copies(tmp_path):
    run = FakeRun(tmp_path, "cat")
    draft = new_draft(tmp_path)
    copy_pictures(run.folder.dataset, draft.dataset)
    (draft.dataset / "picture0.txt").write_text("changed")
    assert (run.folder.dataset / "picture0.txt").read_text() == "r1so thing 0\n"
    assert len(list(draft.dataset.glob("*.png"))) == 4


@pytest.mark.parametrize("draft_id", ["", "..", "../cat", "cat", "00000000-00000g", "00000000-000000/x"])
def test_a_drafts_address_is_checked(tmp_path, draft_id):
    with pytest.raises(RunError):
        draft_folder(tmp_path, draft_id)


def test_a_draft_that_cannot_be_read_is_said_at_the_edit_and_a_new_one_goes_on(tmp_path):
    draft = new_draft(tmp_path)
    draft.folder.events.unlink()
    draft.folder.events.mkdir()
    with pytest.raises(RunError, match="can't be kept"):
        newest_draft(tmp_path).edit({"lora_name": "cat"})
    new_draft(tmp_path).edit({"lora_name": "cat"})


@pytest.mark.parametrize("change", [{"sample_prompts": "x" * 400_000}, {"sample_every_n_steps": 10**23}])
def test_an_edit_that_no_log_can_keep_is_refused_and_the_next_one_is_kept(tmp_path, change):
    draft = Draft(tmp_path)
    draft.edit({"lora_name": "cat"})
    before = dict(draft.values), set(draft.touched)
    with pytest.raises(RunError, match="can't be kept"):
        draft.edit(change)
    assert (draft.values, draft.touched) == before
    draft.edit({"network_dim": 16})
    assert newest_draft(tmp_path).values["network_dim"] == 16
