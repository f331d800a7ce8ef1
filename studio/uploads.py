"""Taking pictures and captions in: each file is checked by itself, what is wrong is said, the rest is kept."""

from __future__ import annotations

import filecmp
import os
import secrets
import shutil
import unicodedata
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, BinaryIO, cast

from fluxcore.dataset import EXTENSIONS, PictureError, check_picture, list_pictures, write_caption
from fluxcore.units import size

MAX_CAPTION_BYTES = 64 * 1024
MAX_ZIP_FILES = 2000
MAX_ZIP_BYTES = 4 << 30
MAX_MEMBER_BYTES = 256 << 20
MOST_PACKED = 200
"""A file that claims to unpack to more than so many times its bytes is a bomb, not a picture."""
REMOVED = ".removed"


@dataclass
class Taken:
    """What became of an upload: how many pictures and captions came in, and a sentence for each file that did not."""

    pictures: int = 0
    captions: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def after(self, before: Taken) -> Taken:
        """Both together."""
        problems = list(dict.fromkeys([*before.problems, *self.problems]))
        notes = list(dict.fromkeys([*before.notes, *self.notes]))
        return Taken(before.pictures + self.pictures, before.captions + self.captions, problems, notes)


class _Damaged(Exception):
    """A file in a zip can't be unpacked."""


class _Member:
    """A file in a zip, to be read. Each way of packing has errors of its own: zlib's, lzma's, bz2's OSErrors."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream

    def read(self, size: int = -1) -> bytes:
        """As a file's. Raises _Damaged alone, so that a full disk, where it is written to, is told from it."""
        try:
            return self._stream.read(size)
        except Exception as error:
            raise _Damaged from error


def take_files(dataset: Path, files: Iterable[tuple[str, BinaryIO]]) -> Taken:
    """Put uploaded files, or what is in uploaded zips, into a dataset folder.

    Pictures first, so that a caption finds the picture it came with.
    """
    taken = Taken()
    there = {picture.path.stem.lower(): picture.path for picture in list_pictures(dataset)}
    captions: list[tuple[str, bytes]] = []
    for name, stream in _unpacked(files, taken):
        try:
            if name.lower().endswith(".txt"):
                captions.append((name, stream.read(MAX_CAPTION_BYTES + 1)))
            else:
                _take_picture(dataset, name, stream, there, taken)
        except _Damaged:
            taken.problems.append(f"{name} was left out: it is damaged inside of its zip, or locked with a password")
        except OSError as error:
            taken.problems.append(f"{name} can't be kept ({error.strerror or error}): make room and add it again")
    stems = {picture.path.stem: picture.path for picture in list_pictures(dataset)}
    for name, data in captions:
        try:
            _take_caption(name, data, stems, taken)
        except OSError as error:
            taken.problems.append(f"{name} can't be kept ({error.strerror or error}): make room and add it again")
    return taken


def _unpacked(files: Iterable[tuple[str, BinaryIO]], taken: Taken) -> Iterator[tuple[str, BinaryIO]]:
    """Every file by its own name; of a zip each file in it, in as many bytes as its table of contents says at most."""
    for given, stream in files:
        name = plain_name(given)
        if not name.lower().endswith(".zip"):
            yield name, stream
            continue
        try:
            with zipfile.ZipFile(stream) as archive:
                members = [one for one in archive.infolist() if not one.is_dir() and not _is_litter(one.filename)]
                if problem := _bomb(members):
                    taken.problems.append(f"{name} was left out: {problem}")
                    continue
                for one in members:
                    try:
                        with archive.open(one) as member:  # it reads no more than one.file_size
                            yield plain_name(one.filename), cast(BinaryIO, _Member(member))
                    except (zipfile.BadZipFile, RuntimeError):  # locked, or packed in a way unknown here
                        taken.problems.append(f"{plain_name(one.filename)} can't be read out of {name}; add it alone")
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            taken.problems.append(f"{name} is no zip that can be read ({error}); pack it anew, or add the pictures")


def _is_litter(member: str) -> bool:
    """What systems put into zips and folders for themselves."""
    return any(part.startswith((".", "__MACOSX")) or part == "Thumbs.db" for part in member.split("/"))


def _bomb(members: list[zipfile.ZipInfo]) -> str:
    """Why a zip is not unpacked, or ""."""
    if len(members) > MAX_ZIP_FILES:
        return f"it has {len(members):,} files; {MAX_ZIP_FILES:,} is the limit"
    if sum(one.file_size for one in members) > MAX_ZIP_BYTES:
        return f"unpacked it has more than {size(MAX_ZIP_BYTES)}, which is the limit"
    for one in members:
        # Pictures are packed already, so a zip of them gains nothing; text may shrink to a twentieth.
        if one.file_size > MAX_MEMBER_BYTES or one.file_size > 1_000_000 + MOST_PACKED * one.compress_size:
            return f"{plain_name(one.filename)} in it would be {size(one.file_size)} unpacked"
    return ""


def _take_picture(dataset: Path, name: str, stream: BinaryIO, there: dict[str, Path], taken: Taken) -> None:
    suffix = Path(name).suffix.lower()
    if suffix not in EXTENSIONS:
        taken.problems.append(
            f"{name} was left out: it is neither a picture (PNG, JPEG, WebP, BMP) nor a .txt caption nor a .zip"
        )
        return
    aside = dataset / f".incoming-{secrets.token_hex(4)}"
    aside.mkdir()
    try:
        arrived = aside / name
        with arrived.open("xb") as target:
            shutil.copyfileobj(stream, target, 1 << 20)
        same = there.get(Path(name).stem.lower())
        if same is not None:
            if same.name == name and filecmp.cmp(same, arrived, shallow=False):
                taken.notes.append(f"{name} is there already")
            else:
                taken.problems.append(f"{name} was left out: {same.name} has that name; rename one of them")
            return
        check_picture(arrived)
        os.replace(arrived, dataset / name)
        there[Path(name).stem.lower()] = dataset / name
        taken.pictures += 1
    except PictureError as error:
        taken.problems.append(str(error))
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _take_caption(name: str, data: bytes, stems: dict[str, Path], taken: Taken) -> None:
    picture = stems.get(Path(name).stem)
    if picture is None:
        taken.problems.append(f"{name} was left out: it is a caption without its picture; add both together")
        return
    if len(data) > MAX_CAPTION_BYTES:
        taken.problems.append(f"{name} was left out: a caption has at most {MAX_CAPTION_BYTES // 1024} KiB")
        return
    write_caption(picture, data.decode("utf-8-sig", "replace"))
    taken.captions += 1


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
