"""What a browser typed while the server was away, as it is told to the new one."""

from __future__ import annotations

from PIL import Image
from streamlit.testing.v1 import AppTest

from fluxcore.dataset import read_caption
from studio.drafts import Draft


def _told(outputs: str, draft_id: str, typed: dict) -> None:
    from pathlib import Path

    import streamlit as st

    from studio.drafts import Draft
    from studio.put_back import put_back, remember_found

    draft = Draft(Path(outputs), draft_id)
    remember_found(draft)
    put_back(draft, typed)
    for text in st.session_state.get("typed.said", {}):
        st.text(text)
    st.caption(", ".join(sorted(st.session_state["typed.kept"])))


def test_what_was_typed_is_kept_and_another_tabs_word_is_told(tmp_path):
    draft = Draft(tmp_path)
    draft.edit({"concept_sentence": "c4t", "lora_name": "cat", "seed": 1})
    Image.new("RGB", (8, 8)).save(draft.dataset / "one.png")
    (draft.dataset / "one.txt").write_text("a cat")
    typed = {
        "form.concept_sentence": {"base": "p", "past": ["p3"], "text": "p3t"},
        "form.lora_name": {"base": "", "past": ["cat"], "text": "cats"},  # its own word was kept, and nobody said so
        "form.seed": {"base": "1", "text": "7"},
        "form.resolution": {"base": "1", "text": str(draft.values["resolution"])},  # it is on the disk already
        "form.network_dropout": {"base": "0", "text": "0,"},  # half typed
        "form.base_model": {"base": "flux-dev", "text": "nonsense"},  # it is chosen, not typed
        "form.nothing": {"base": "", "text": "x"},
        "Caption of one.png": {"base": "a cat", "text": "a cat on a sofa"},
        "Caption of two.png": {"base": "", "text": "x"},
        "form.workers": "no entry",
    }
    before = Draft(tmp_path, draft.id).values
    app = AppTest.from_function(_told, args=(str(tmp_path), draft.id, typed)).run()
    assert not app.exception
    after = Draft(tmp_path, draft.id).values
    changed = {name: value for name, value in after.items() if value != before[name]}
    assert changed == {"concept_sentence": "p3t", "lora_name": "cats", "seed": 7}
    assert read_caption(draft.dataset / "one.png") == "a cat on a sofa"
    acknowledged = "Caption of one.png, form.concept_sentence, form.lora_name, form.resolution, form.seed"
    assert app.caption[0].value == acknowledged
    assert [one.value for one in app.text] == [
        "Another tab had set Trigger word to “c4t”; what you set here stands now"
    ]


def _told_and_contradicted(outputs: str, draft_id: str) -> None:
    from pathlib import Path

    import streamlit as st

    from fluxcore.dataset import list_pictures
    from studio import dataset_view, form
    from studio.drafts import Draft
    from studio.put_back import put_back, remember_found

    draft = Draft(Path(outputs), draft_id)
    remember_found(draft)
    typed = {"Caption of one.png": {"base": "", "text": "a cat"}, "form.concept_sentence": {"base": "", "text": "p3t"}}
    put_back(draft, typed)
    [picture] = list_pictures(draft.dataset)
    caption, trigger = dataset_view._caption_key(draft, picture), form.key("concept_sentence")
    for said_caption, said_trigger in (("", ""), ("a dog", "c4t")):
        st.session_state[caption], st.session_state[trigger] = said_caption, said_trigger
        dataset_view._captioned(picture, caption)
        form.edited(draft, "concept_sentence")
        st.text(f"{picture.path.with_suffix('.txt').read_text().strip()} {draft.values['concept_sentence']}")


def test_a_message_of_before_takes_nothing_back(tmp_path):
    draft = Draft(tmp_path)
    draft.edit({"lora_name": "cat"})
    Image.new("RGB", (8, 8)).save(draft.dataset / "one.png")
    app = AppTest.from_function(_told_and_contradicted, args=(str(tmp_path), draft.id)).run()
    assert not app.exception
    assert [one.value for one in app.text] == ["a cat p3t", "a dog c4t"]
