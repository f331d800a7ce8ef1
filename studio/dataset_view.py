"""The pictures of a draft: dropping them in, seeing each with its caption, taking one out and back."""

from __future__ import annotations

import math

import streamlit as st

from fluxcore.dataset import Picture, list_pictures

from . import look, words
from .drafts import Draft
from .files import run_url
from .uploads import Taken, remove_picture, restore_picture, take_files, write_caption

PER_PAGE = 24
FEW = 5


def show(draft: Draft) -> None:
    """Draw the uploader and the grid."""
    turn = st.session_state.setdefault("upload.turn", 0)
    st.file_uploader(
        "Pictures, and their captions as .txt files of the same name",
        accept_multiple_files=True,
        key=f"upload-{turn}",
        on_change=_arrived,
        args=(draft, f"upload-{turn}"),
        help="PNG, JPEG, WebP or BMP; 5 to 150 pictures are usual. photo.txt is the caption of photo.png.",
    )
    _say_what_came()
    pictures = list_pictures(draft.folder.dataset)
    _offer_undo(draft)
    if not pictures:
        st.caption("No pictures yet. What you drop here is kept at once, also if you close this page.")
        return
    st.markdown(_summary(pictures, bool(str(draft.values["concept_sentence"]).strip())))
    pages = math.ceil(len(pictures) / PER_PAGE)
    page = st.pagination(pages, key="pictures-page") if pages > 1 else 1
    shown = pictures[(page - 1) * PER_PAGE : page * PER_PAGE]
    with st.grid("auto", min_column_width=150, gap="small", key="pictures"):
        for picture in shown:
            _card(draft, picture)


def _summary(pictures: list[Picture], trigger: bool) -> str:
    bare = sum(picture.caption is None for picture in pictures)
    text = f"**{words.plural(len(pictures), 'picture')}**"
    if bare:
        told = "they are trained with the trigger word" if trigger else "caption them, or give a trigger word"
        text += f" · {bare} without a caption ({told})"
    else:
        text += " · all captioned"
    if len(pictures) < FEW:
        text += " · more pictures make a better LoRA"
    return text


def _card(draft: Draft, picture: Picture) -> None:
    name = picture.path.name
    widget = f"caption.{draft.id}.{name}"
    if widget not in st.session_state:
        st.session_state[widget] = picture.caption or ""
    with st.container(gap="xsmall"):
        relative = f"dataset/{name}"
        small = run_url(draft.folder, relative, 384, kind="drafts")
        full = run_url(draft.folder, relative, kind="drafts")
        st.html(look.picture(small, full, picture.caption or name))
        st.text_area(
            f"Caption of {name}",
            key=widget,
            height=80,
            label_visibility="collapsed",
            placeholder="Caption",
            on_change=_captioned,
            args=(picture, widget),
        )
        st.button(
            name,
            key=f"remove.{draft.id}.{name}",
            icon=":material/delete:",
            type="tertiary",
            width="stretch",
            help=f"Take {words.escape(name)} out",
            on_click=_removed,
            args=(picture, widget),
            wrap=False,
        )


def _arrived(draft: Draft, widget: str) -> None:
    files = st.session_state.get(widget) or []
    if not files:
        return
    try:
        taken = take_files(draft.dataset, [(file.name, file) for file in files])
    except OSError as error:
        taken = Taken(problems=[f"The pictures can't be kept ({error.strerror}): make room in {draft.outputs}"])
    for name in [key for key in st.session_state if str(key).startswith(f"caption.{draft.id}.")]:
        del st.session_state[name]  # captions may have come with the files
    st.session_state["upload.taken"] = taken
    st.session_state["upload.turn"] += (
        1  # a new uploader: the grid shows what came, the list below it would only repeat
    )


def _say_what_came() -> None:
    taken: Taken | None = st.session_state.get("upload.taken")
    if taken is None:
        return
    if taken.problems:
        kept = f"{words.plural(taken.pictures, 'picture')} and {words.plural(taken.captions, 'caption')} came in. "
        lines = "\n".join(f"- {words.escape(problem)}" for problem in taken.problems[:12])
        more = f"\n- … and {len(taken.problems) - 12} more" if len(taken.problems) > 12 else ""
        st.warning(f"{kept}Not all did:\n\n{lines}{more}", icon=":material/image_not_supported:")
        st.button("Understood", key="upload-understood", on_click=_forget_message)
    for note in taken.notes[:5]:
        st.caption(words.escape(note))


def _forget_message() -> None:
    st.session_state.pop("upload.taken", None)


def _captioned(picture: Picture, widget: str) -> None:
    try:
        write_caption(picture.path, st.session_state[widget])
    except OSError as error:
        st.toast(f"The caption can't be kept ({error.strerror}): make room", icon=":material/error:", duration="long")


def _removed(picture: Picture, widget: str) -> None:
    remove_picture(picture.path)
    st.session_state.pop(widget, None)
    st.session_state["picture.removed"] = picture.path.name


def _offer_undo(draft: Draft) -> None:
    name = st.session_state.get("picture.removed")
    if name:
        with st.container(horizontal=True, vertical_alignment="center"):
            st.caption(f"{words.escape(name)} was taken out.", width="content")
            st.button(
                "Undo",
                key="picture-undo",
                icon=":material/undo:",
                type="tertiary",
                on_click=_restored,
                args=(draft, name),
            )


def _restored(draft: Draft, name: str) -> None:
    restore_picture(draft.folder.dataset, name)
    st.session_state.pop("picture.removed", None)
