"""What a browser typed while the server was away, as it is told to the new one."""

from __future__ import annotations

from PIL import Image
from streamlit.testing.v1 import AppTest

from fluxcore.dataset import read_caption
from studio.drafts import Draft
from studio.put_back import put_back


def _told(outputs: str, draft_id: str, left: dict, own: dict) -> None:
    from pathlib import Path

    import streamlit as st

    from studio.drafts import Draft
    from studio.put_back import put_back, remember_found
    from studio.typing_saver import save_while_typing, take_own

    draft = Draft(Path(outputs), draft_id)
    remember_found(draft)
    take_own(own)
    put_back(draft, left, True)
    take_own(own)
    save_while_typing(draft.id)
    st.caption(", ".join(sorted(st.session_state.get("typed.kept", {}))))


def test_what_was_typed_is_kept_and_another_tabs_word_is_told(tmp_path):
    draft = Draft(tmp_path)
    draft.edit({"concept_sentence": "c4t", "lora_name": "cat", "seed": 1})
    Image.new("RGB", (8, 8)).save(draft.dataset / "one.png")
    (draft.dataset / "one.txt").write_text("a cat")
    left = {
        "form.concept_sentence": {"base": "p", "text": "p3t"},
        "form.lora_name": {"base": "", "text": "cats"},
        "form.seed": {"base": "1", "text": "7"},
        "form.resolution": {"base": "1", "text": str(draft.values["resolution"])},  # it is on the disk already
        "form.network_dropout": {"base": "0", "text": "0,"},  # half typed
        "form.base_model": {"base": "flux-dev", "text": "nonsense"},  # it is chosen, not typed
        "form.nothing": {"base": "", "text": "x"},
        "Caption of one.png": {"base": "a cat", "text": "a cat on a sofa"},
        "Caption of two.png": {"base": "", "text": "x"},
        "form.workers": "no entry",
    }
    own = {
        "form.concept_sentence": ["p", "p3", "p3t"],
        "form.lora_name": ["", "cat", "cats"],  # its own word was kept, and nobody said so
        "form.seed": ["1", "7"],
        "form.resolution": [str(draft.values["resolution"])],
        "form.network_dropout": ["0", "0,"],
        "form.workers": "no list",
        "Caption of one.png": [" a  cat", "a cat on a sofa"],
    }
    before = Draft(tmp_path, draft.id).values
    app = AppTest.from_function(_told, args=(str(tmp_path), draft.id, left, own), default_timeout=30).run()
    assert not app.exception
    after = Draft(tmp_path, draft.id).values
    changed = {name: value for name, value in after.items() if value != before[name]}
    assert changed == {"concept_sentence": "p3t", "lora_name": "cats", "seed": 7}
    assert read_caption(draft.dataset / "one.png") == "a cat on a sofa"
    refused = {"Caption of two.png", "form.base_model", "form.network_dropout", "form.nothing"}  # nor told again
    kept = {"Caption of one.png", "form.concept_sentence", "form.lora_name", "form.resolution", "form.seed"}
    assert set(app.caption[0].value.split(", ")) == kept | refused
    assert [one.value for one in app.toast] == [
        "Another tab had set Trigger word to “c4t”; what you set here stands now"
    ]


def test_another_tabs_word_is_told_though_an_unheard_session_has_written_over_it(tmp_path):
    draft = Draft(tmp_path)
    for word in ("b1rd", "p3", "c4t", "p3t"):  # before it began to type; its own; another's; its own once more
        draft.edit({"concept_sentence": word, "lora_name": f"the {word}"})
    left = {
        "form.concept_sentence": {"base": "p3", "text": "p3ts"},
        "form.lora_name": {"base": "", "text": "the p3t"},  # what stood there first was never written down
    }
    own = {"form.concept_sentence": ["p3", "p3t", "p3ts"], "form.lora_name": ["", "the b1rd", "the p3", "the p3t"]}
    app = AppTest.from_function(_told, args=(str(tmp_path), draft.id, left, own), default_timeout=30).run()
    assert [one.value for one in app.toast] == [
        "Another tab had set Trigger word to “c4t”; what you set here stands now",
        "Another tab had set Name to “the c4t”; what you set here stands now",
    ]


def test_what_stood_before_one_began_to_type_is_no_news(tmp_path):
    draft = Draft(tmp_path)
    for word in ("b1rd", "p3"):
        draft.edit({"concept_sentence": word})
    left = {"form.concept_sentence": {"base": "p3", "text": "p3t"}}
    app = AppTest.from_function(
        _told, args=(str(tmp_path), draft.id, left, {"form.concept_sentence": ["p3", "p3t"]}), default_timeout=30
    ).run()
    assert Draft(tmp_path, draft.id).values["concept_sentence"] == "p3t" and not app.toast


def test_a_number_that_no_field_can_show_is_not_put_back(tmp_path):
    draft = Draft(tmp_path)
    draft.edit({"seed": 1})
    left = {"form.seed": {"base": "1", "text": str(10**18)}}
    app = AppTest.from_function(
        _told, args=(str(tmp_path), draft.id, left, {"form.seed": ["1", str(10**18)]}), default_timeout=30
    ).run()
    assert not app.exception and Draft(tmp_path, draft.id).values["seed"] == 1
    assert app.caption[0].value == "form.seed", "nor is it told again"


def test_what_was_said_to_be_kept_is_only_judged_and_a_draft_that_became_a_run_stays_gone(tmp_path):
    import shutil

    draft = Draft(tmp_path)
    for word in ("p3", None, "c4t", "p3t on"):
        draft.edit({"concept_sentence": word})
    left = {"form.concept_sentence": {"base": "p3", "text": None}}
    own = {"form.concept_sentence": ["p3", "p3t", "p3t on"]}
    app = AppTest.from_function(_told, args=(str(tmp_path), draft.id, left, own), default_timeout=30).run()
    assert not app.exception and "c4t" in app.toast[0].value and len(app.toast) == 1
    assert Draft(tmp_path, draft.id).values["concept_sentence"] == "p3t on"
    gone = Draft(tmp_path, draft.id)
    shutil.rmtree(gone.folder.path)
    put_back(gone, {"form.concept_sentence": {"base": "", "text": "x"}}, True)
    assert not gone.exists


def _told_and_contradicted(outputs: str, draft_id: str) -> None:
    from pathlib import Path

    import streamlit as st

    from fluxcore.dataset import list_pictures
    from studio import dataset_view, form
    from studio.drafts import Draft
    from studio.put_back import put_back, remember_found

    draft = Draft(Path(outputs), draft_id)
    remember_found(draft)
    left = {"Caption of one.png": {"base": "", "text": "a cat"}, "form.concept_sentence": {"base": "", "text": "p3t"}}
    put_back(draft, left, False)
    [picture] = list_pictures(draft.dataset)
    caption, trigger = dataset_view._caption_key(draft, picture), form.key("concept_sentence")
    for said_caption, said_trigger in (("", ""), ("a dog", "c4t")):
        st.session_state[caption], st.session_state[trigger] = said_caption, said_trigger
        dataset_view._captioned(picture, caption)
        form.edited(draft, "concept_sentence")
        st.text(f"{picture.path.with_suffix('.txt').read_text().strip()} {draft.values['concept_sentence']}")


def _said_once_more(outputs: str, draft_id: str) -> None:
    from pathlib import Path

    import streamlit as st

    from fluxcore.dataset import list_pictures, write_caption
    from studio import dataset_view
    from studio.drafts import Draft

    [picture] = list_pictures(Draft(Path(outputs), draft_id).dataset)
    widget = "caption"
    st.session_state[widget] = st.session_state[f"seen.{widget}"] = "a cat"
    write_caption(picture.path, "another tab's")
    dataset_view._captioned(picture, widget)


def test_a_caption_that_nobody_changed_here_is_not_put_over_another_tabs(tmp_path):
    draft = Draft(tmp_path)
    Image.new("RGB", (8, 8)).save(draft.dataset / "one.png")
    app = AppTest.from_function(_said_once_more, args=(str(tmp_path), draft.id), default_timeout=30).run()
    assert not app.exception and read_caption(draft.dataset / "one.png") == "another tab's"


def test_a_message_of_before_takes_nothing_back(tmp_path):
    draft = Draft(tmp_path)
    draft.edit({"lora_name": "cat"})
    Image.new("RGB", (8, 8)).save(draft.dataset / "one.png")
    app = AppTest.from_function(_told_and_contradicted, args=(str(tmp_path), draft.id), default_timeout=30).run()
    assert not app.exception
    assert [one.value for one in app.text] == ["a cat p3t", "a dog c4t"]


def _said_of_another(outputs: str, draft_id: str, own: dict | None) -> None:
    from pathlib import Path

    from studio import form
    from studio.drafts import Draft
    from studio.typing_saver import save_while_typing, take_own

    draft = Draft(Path(outputs), draft_id)
    form.say_overwritten("lora_name", "cat")
    form.say_overwritten("lora_name", "cat")
    form.say_changed(draft, ["lora_name", "seed", "use_dora"])
    if own is not None:
        take_own(own)
    save_while_typing(draft.id)


def test_what_the_window_itself_wrote_through_a_connection_that_broke_is_no_other_tabs(tmp_path):
    draft = Draft(tmp_path)
    draft.edit({"lora_name": "cats", "seed": 3, "use_dora": True})
    app = AppTest.from_function(_said_of_another, args=(str(tmp_path), draft.id, None), default_timeout=30).run()
    assert not app.toast, "the browser is asked first what is its own"
    app = AppTest.from_function(_said_of_another, args=(str(tmp_path), draft.id, {}), default_timeout=30).run()
    changed = "Changed in another tab, and here now: "
    overwritten = "Another tab had set Name to “cat”; what you set here stands now"
    assert [one.value for one in app.toast] == [overwritten, f"{changed}Name, Seed, DoRA"], "said once each"
    own = {"form.lora_name": ["c", "ca", "cat", "cats"], "form.seed": ["3"]}
    app = AppTest.from_function(_said_of_another, args=(str(tmp_path), draft.id, own), default_timeout=30).run()
    assert [one.value for one in app.toast] == [f"{changed}DoRA"]
