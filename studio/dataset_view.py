"""The pictures of a draft: dropping them in, what is wrong with them, their captions, taking one out and back."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import streamlit as st
from streamlit.runtime.scriptrunner_utils.script_run_context import get_script_run_ctx
from streamlit.runtime.uploaded_file_manager import DeletedFile

from fluxcore.config import RunConfig
from fluxcore.dataset import Picture, list_pictures, read_caption, write_caption
from fluxcore.dataset.looks import Look, Looks, near_twins

from . import captioner, captions, look, typing_saver, words
from .drafts import Draft
from .files import run_url
from .picture_marks import Mark, marks_of, trained_size
from .uploads import Taken, remove_picture, restore_picture, take_files

PER_PAGE = 24
FEW = 5
LOOK_SECONDS = 0.4
"""For so long a run of the page looks at new pictures; the others come in the next ones."""
ORDERS = {"name": "By name", "marked": "Marked first", "bare": "Without caption first", "new": "Newest first"}


@st.cache_resource(show_spinner=False)
def _looks() -> Looks:
    return Looks()


def show(draft: Draft, config: RunConfig | None) -> None:
    """Draw the uploader, the tools and the grid. `config`: the draft as far as it is right."""
    _uploader(draft)
    _say_what_came()
    pictures = list_pictures(draft.folder.dataset)
    _offer_undo(draft)
    if not pictures:
        st.caption("No pictures yet. What you drop here is kept at once, also if you close this page.")
        return
    looks = _looks().of([picture.path for picture in pictures], LOOK_SECONDS)
    marks = marks_of(pictures, looks, near_twins(looks), config)
    st.markdown(_summary(pictures, marks, str(draft.values["concept_sentence"]).strip()))
    if len(looks) < len(pictures):
        _go_on_looking(len(looks), len(pictures))
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        order = st.selectbox(
            "Order", list(ORDERS), key="pictures-order", format_func=ORDERS.__getitem__, label_visibility="collapsed",
            width=200,
        )  # fmt: skip
        cut = st.toggle(
            "As trained", key="pictures-cut", help="Show what is left of each picture when it is cut to size."
        )
        with st.popover("Captions", icon=":material/edit_note:", key="captions-menu"):
            running = captioner.is_running(draft)
            captions.tools(draft, pictures, running)
            captioner.tools(draft, pictures, running)
    captioner.progress(draft)
    pages = math.ceil(len(pictures) / PER_PAGE)
    page = st.pagination(pages, key="pictures-page") if pages > 1 else 1
    shown = ordered(pictures, marks, order)[(page - 1) * PER_PAGE : page * PER_PAGE]
    with st.grid("auto", min_column_width=150, gap="small", key="pictures"):
        for picture in shown:
            seen = looks.get(picture.path)
            _card(draft, picture, marks[picture.path], seen, config if cut else None)


def ordered(pictures: list[Picture], marks: dict[Path, list[Mark]], order: str) -> list[Picture]:
    """The pictures as they are shown; what they are trained as is the same in every order."""
    if order == "marked":
        return sorted(pictures, key=lambda picture: not any(mark.kind != "no caption" for mark in marks[picture.path]))
    if order == "bare":
        return sorted(pictures, key=lambda picture: picture.caption is not None)
    if order == "new":
        return sorted(pictures, key=lambda picture: -picture.path.stat().st_ctime if picture.path.exists() else 0)
    return pictures


def _uploader(draft: Draft) -> None:
    turn = st.session_state.setdefault("upload.turn", 0)
    folder = st.session_state.get("upload-kind") == "A folder"
    st.file_uploader(
        "Pictures, with captions as .txt files of the same name" if not folder else "A folder of pictures and captions",
        accept_multiple_files="directory" if folder else True,
        key=f"upload-{'folder-' if folder else ''}{turn}",
        max_upload_size=1024,
        on_change=_arrived,
        args=(draft, f"upload-{'folder-' if folder else ''}{turn}"),
        help="PNG, JPEG, WebP or BMP, or a .zip of them; 5 to 150 pictures are usual. photo.txt is the caption of "
        "photo.png.",
    )
    st.segmented_control(
        "What to add",
        ["Files or a zip", "A folder"],
        default="Files or a zip",
        required=True,
        key="upload-kind",
        label_visibility="collapsed",
    )


@st.fragment(run_every=0.5)
def _go_on_looking(known: int, of: int) -> None:
    """Have the page run again, so that it looks at more pictures."""
    st.caption(f"Looking at the pictures: {known} of {of}")
    if st.session_state.pop("pictures.looked", None) is not None:
        st.rerun()
    st.session_state["pictures.looked"] = known


def _summary(pictures: list[Picture], marks: dict[Path, list[Mark]], trigger: str) -> str:
    bare = sum(picture.caption is None for picture in pictures)
    text = f"**{words.plural(len(pictures), 'picture')}**"
    kinds = Counter(mark.kind for found in marks.values() for mark in found if mark.kind != "no caption")
    for kind, count in kinds.items():
        badge = next(mark.badge for found in marks.values() for mark in found if mark.kind == kind)
        text += f" {badge.removesuffix(']')}: {count}]"
    if bare:
        told = "they are trained with the trigger word" if trigger else "caption them, or give a trigger word"
        text += f" · {bare} without a caption ({told})"
    else:
        text += " · all captioned"
        lacking = sum(not captions.has_trigger(picture.caption, trigger) for picture in pictures) if trigger else 0
        if lacking:
            text += f", {lacking} without the trigger word (*Captions* puts it in)"
    if len(pictures) < FEW:
        text += " · more pictures make a better LoRA"
    return text


def _card(draft: Draft, picture: Picture, marks: list[Mark], seen: Look | None, cut_for: RunConfig | None) -> None:
    name = picture.path.name
    widget = _caption_key(draft, picture)
    stored = picture.caption or ""
    # What stood in the file when it was last drawn here: another tab, or a tool, may have written since.
    if widget not in st.session_state or st.session_state.get(f"seen.{widget}") != stored:
        st.session_state[widget] = stored
    st.session_state[f"seen.{widget}"] = stored
    with st.container(gap="xsmall"):
        relative = f"dataset/{name}"
        small = run_url(draft.folder, relative, 384, kind="drafts")
        full = run_url(draft.folder, relative, kind="drafts")
        if cut_for and seen and not seen.problem:
            width, height = trained_size(seen.size, cut_for)
            st.html(look.cut_picture(small, full, picture.caption or name, width, height))
            st.caption(f"{width} × {height} of {seen.size[0]} × {seen.size[1]}")
        else:
            st.html(look.picture(small, full, picture.caption or name))
        if found := [mark for mark in marks if mark.kind != "no caption"]:
            st.markdown(" ".join(mark.badge for mark in found), help=words.escape(" ".join(mark.why for mark in found)))
        st.text_area(
            caption_label(picture),
            stored,  # what a browser says that has not heard of the caption: see `form.field`
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
    # A browser that hasn't drawn the new uploader yet names those again that were taken and forgotten.
    files = [file for file in st.session_state.get(widget) or [] if not isinstance(file, DeletedFile)]
    if not files:
        return
    try:
        taken = take_files(draft.dataset, [(file.name, file) for file in files])
    except OSError as error:
        taken = Taken(problems=[f"The pictures can't be kept ({error.strerror}): make room in {draft.outputs}"])
    before: Taken | None = st.session_state.get("upload.taken")
    if before and before.problems:  # files may come in two messages: what the first one told has not been read yet
        taken = taken.after(before)
    st.session_state["upload.taken"] = taken
    # A new uploader: the grid shows what came, the list below the old one would only repeat it.
    st.session_state["upload.turn"] += 1
    _give_back([file.file_id for file in files])


def _give_back(uploads: list[str]) -> None:
    """Have the server forget uploads that are on the disk now; by itself it holds them as long as the page is open."""
    context = get_script_run_ctx()
    if context is None:
        return
    for file_id in uploads:
        context.uploaded_file_mgr.remove_file(session_id=context.session_id, file_id=file_id)


def _say_what_came() -> None:
    taken: Taken | None = st.session_state.get("upload.taken")
    if taken is None:
        return
    if taken.problems:
        kept = "Nothing new came in"
        if taken.pictures or taken.captions:
            came = f"{words.plural(taken.pictures, 'picture')} and {words.plural(taken.captions, 'caption')}"
            kept = f"{came} came in. Not all did"
        lines = "\n".join(f"- {words.escape(problem)}" for problem in taken.problems[:12])
        more = f"\n- … and {len(taken.problems) - 12} more" if len(taken.problems) > 12 else ""
        st.warning(f"{kept}:\n\n{lines}{more}", icon=":material/image_not_supported:")
        st.button("Understood", key="upload-understood", on_click=_forget_message)
    for note in taken.notes[:5]:
        st.caption(words.escape(note))


def _forget_message() -> None:
    st.session_state.pop("upload.taken", None)


def caption_label(picture: Picture) -> str:
    """What a screen reader hears of a caption's field; the browser knows the field by it too."""
    return f"Caption of {picture.path.name}"


def _caption_key(draft: Draft, picture: Picture) -> str:
    return f"caption.{draft.id}.{picture.path.name}"


def put_back(draft: Draft, picture: Picture, text: str) -> None:
    """Keep a caption that was typed and has not come from its field, as if it came now."""
    widget = _caption_key(draft, picture)
    st.session_state[widget], st.session_state[f"seen.{widget}"] = text, picture.caption or ""
    _captioned(picture, widget)
    typing_saver.was_put_back(widget, picture.caption or "")


def say_overwritten(picture: Picture, stood: str) -> None:
    """What another tab had written meanwhile, and that it stands no more."""
    text = f"Another tab had written “{words.escape(stood)}” for {words.escape(picture.path.name)}; yours stands now"
    typing_saver.say_of_another({caption_label(picture): stood}, lambda _: text)


def _captioned(picture: Picture, widget: str) -> None:
    there, seen = read_caption(picture.path) or "", st.session_state.get(f"seen.{widget}", "")
    if typing_saver.is_stale(widget):
        st.session_state[widget] = there
        return
    if st.session_state[widget] == seen:  # a browser that leaves the page says it once more: it is no edit
        typing_saver.is_kept(caption_label(picture), seen)
        return
    try:
        write_caption(picture.path, st.session_state[widget])
    except OSError as error:
        st.toast(f"The caption can't be kept ({error.strerror}): make room", icon=":material/error:", duration="long")
        return
    typing_saver.is_kept(caption_label(picture), st.session_state[widget])
    kept = read_caption(picture.path) or ""
    st.session_state[f"seen.{widget}"] = kept
    if there not in (seen, kept):
        say_overwritten(picture, there)


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
