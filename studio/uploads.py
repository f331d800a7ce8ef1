"""Taking pictures and captions in: each file is checked by itself, what is wrong is said, the rest is kept."""

from __future__ import annotations

import os
import secrets
import shutil
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from fluxcore.atomic import write_atomic
from fluxcore.dataset import EXTENSIONS, PictureError, check_picture, list_pictures

MAX_CAPTION_BYTES = 64 * 1024
REMOVED = ".removed"


@dataclass
class Taken:
    """What became of an upload: how many pictures and captions came in, and a sentence for each file that did not."""

    pictures: int = 0
    captions: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def take_files(dataset: Path, files: Iterable[tuple[str, BinaryIO]]) -> Taken:
    """Put uploaded files into a dataset folder. Pictures first, so that a caption finds the picture it came with."""
    taken = Taken()
    named = [(plain_name(name), stream) for name, stream in files]
    captions = [item for item in named if item[0].lower().endswith(".txt")]
    for name, stream in (item for item in named if item not in captions):
        try:
            _take_picture(dataset, name, stream, taken)
        except OSError as error:
            taken.problems.append(f"{name} can't be kept ({error.strerror or error}): make room and add it again")
    stems = {picture.path.stem: picture.path for picture in list_pictures(dataset)}
    for name, stream in captions:
        try:
            _take_caption(dataset, name, stream, stems, taken)
        except OSError as error:
            taken.problems.append(f"{name} can't be kept ({error.strerror or error}): make room and add it again")
    return taken


def _take_picture(dataset: Path, name: str, stream: BinaryIO, taken: Taken) -> None:
    suffix = Path(name).suffix.lower()
    if suffix not in EXTENSIONS:
        taken.problems.append(f"{name} was left out: it is neither a picture (PNG, JPEG, WebP, BMP) nor a .txt caption")
        return
    aside = dataset / f".incoming-{secrets.token_hex(4)}"
    aside.mkdir()
    try:
        arrived = aside / name
        with arrived.open("xb") as target:
            shutil.copyfileobj(stream, target)
        same = [old.path for old in list_pictures(dataset) if old.path.stem.lower() == Path(name).stem.lower()]
        if same:
            if same[0].name == name and same[0].read_bytes() == arrived.read_bytes():
                taken.notes.append(f"{name} is there already")
            else:
                taken.problems.append(f"{name} was left out: {same[0].name} has that name; rename one of them")
            return
        check_picture(arrived)
        os.replace(arrived, dataset / name)
        taken.pictures += 1
    except PictureError as error:
        taken.problems.append(str(error))
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _take_caption(dataset: Path, name: str, stream: BinaryIO, stems: dict[str, Path], taken: Taken) -> None:
    picture = stems.get(Path(name).stem)
    if picture is None:
        taken.problems.append(f"{name} was left out: it is a caption without its picture; add both together")
        return
    data = stream.read(MAX_CAPTION_BYTES + 1)
    if len(data) > MAX_CAPTION_BYTES:
        taken.problems.append(f"{name} was left out: a caption has at most {MAX_CAPTION_BYTES // 1024} KiB")
        return
    write_caption(picture, data.decode("utf-8-sig", "replace"))
    taken.captions += 1


def write_caption(picture: Path, text: str) -> None:
    """Keep a picture's caption; an empty one is none. Raises OSError."""
    file = picture.with_suffix(".txt")
    text = text.replace("\0", "").strip()
    if text:
        write_atomic(file, (text + "\n").encode())
    else:
        file.unlink(missing_ok=True)


def remove_picture(picture: Path) -> None:
    """Take a picture and its caption out of the dataset; `restore_picture` brings them back."""
    bin_folder = picture.parent / REMOVED
    bin_folder.mkdir(exist_ok=True)
    for file in (picture, picture.with_suffix(".txt")):
        if file.exists():
            os.replace(file, bin_folder / file.name)


def restore_picture(dataset: Path, name: str) -> None:
    """Undo `remove_picture`, unless another picture of that name came in meanwhile."""
    for file in (dataset / REMOVED / name, (dataset / REMOVED / name).with_suffix(".txt")):
        if file.exists() and not (dataset / file.name).exists():
            os.replace(file, dataset / file.name)


def plain_name(name: str) -> str:
    """An uploaded file's own name without folders, control characters or leading dots; never empty, never too long."""
    base = unicodedata.normalize("NFC", name.replace("\\", "/").rpartition("/")[2])
    base = "".join(char for char in base if char.isprintable()).strip().lstrip(".")
    stem, dot, suffix = base.rpartition(".")
    if not dot:
        stem, suffix = base, ""
    while len(stem.encode()) > 150:
        stem = stem[:-1]
    return f"{stem or 'picture'}{dot}{suffix[:10]}"
