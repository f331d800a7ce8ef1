"""A run's pictures and captions: finding, checking and copying them. No torch here: app and CLI use it too."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from fluxcore.atomic import write_atomic
from fluxcore.errors import UserError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
MAX_PIXELS = 100_000_000
"""Larger pictures are refused before they are decoded: a small file can hold one that fills the memory."""


class PictureError(UserError):
    """A picture that can't be trained on; the message is a sentence for a person."""


@dataclass(frozen=True)
class Picture:
    """An image and its caption (None where there is no caption file)."""

    path: Path
    caption: str | None

    def prompt(self, trigger: str) -> str:
        """What the picture is trained with: its caption, or the trigger word where it has none."""
        return self.caption if self.caption else trigger


@dataclass
class DatasetReport:
    """What a look at a folder found: `problems` make the folder unusable, `warnings` don't."""

    pictures: list[Picture] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def list_pictures(folder: Path, caption_extension: str = ".txt") -> list[Picture]:
    """The pictures of a folder by name, with the captions of the files beside them; nothing is decoded."""
    try:
        entries = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
    paths = [folder / name for name in entries if not name.startswith(".")]
    return [
        Picture(path, read_caption(path, caption_extension))
        for path in paths
        if path.suffix.lower() in EXTENSIONS and path.is_file()
    ]


def read_caption(image: Path, extension: str = ".txt") -> str | None:
    """The caption beside `image`, its white space folded; None where there is no file or nothing in it."""
    try:
        text = image.with_suffix(extension).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return " ".join(text.split()) or None


def check_picture(path: Path) -> tuple[int, int]:
    """Decode a picture wholly and return (width, height) as stored. Raises PictureError with what is wrong."""
    with decoded(path) as image:
        return image.size


@contextmanager
def decoded(path: Path, draft: int = 0) -> Iterator[Image.Image]:
    """A picture, wholly decoded; of a JPEG an eighth, a quarter or a half of its sides where that is `draft` at least.

    Raises PictureError with what is wrong.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG", "JPEG", "WEBP", "BMP"]) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise PictureError(
                        f"{path.name} has {width} x {height} pixels; {MAX_PIXELS // 1_000_000} million is the limit"
                    )
                if draft:
                    image.draft("RGB", (draft, draft))
                image.load()
                yield image
    except PictureError:
        raise
    except UnidentifiedImageError:
        raise PictureError(f"{path.name} is not a picture (PNG, JPEG, WebP and BMP are)") from None
    except Image.DecompressionBombError:
        raise PictureError(
            f"{path.name} has more than {MAX_PIXELS // 1_000_000} million pixels, which is the limit; scale it down"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        raise PictureError(f"{path.name} can't be read ({error}); it may be cut short: save it anew") from None


def write_caption(picture: Path, text: str) -> None:
    """Keep a picture's caption; an empty one is none. Raises OSError."""
    file = picture.with_suffix(".txt")
    text = text.replace("\0", "").strip()
    if text:
        write_atomic(file, (text + "\n").encode())
    else:
        file.unlink(missing_ok=True)


def check_dataset(folder: Path) -> DatasetReport:
    """Look at every file of a folder; see DatasetReport."""
    report = DatasetReport()
    if not folder.is_dir():
        report.problems.append(f"{folder} is not a folder" if folder.exists() else f"there is no folder {folder}")
        return report
    for picture in list_pictures(folder):
        try:
            check_picture(picture.path)
        except PictureError as error:
            report.problems.append(str(error))
        else:
            report.pictures.append(picture)
            if picture.caption is None:
                report.warnings.append(f"{picture.path.name} has no caption; it is trained with the trigger word")
    stems = {picture.path.stem for picture in list_pictures(folder)}
    for file in sorted(folder.glob("*.txt")):
        if file.stem not in stems:
            report.warnings.append(f"{file.name} is a caption without its picture; it is left out")
    if not report.pictures and not report.problems:
        report.problems.append(f"{folder} holds no pictures (PNG, JPEG, WebP or BMP)")
    return report


def copy_dataset(source: Path, target: Path) -> list[str]:
    """Copy pictures and captions into `target`; returns warnings. Raises PictureError where one can't be used."""
    report = check_dataset(source)
    if report.problems:
        raise PictureError("; ".join(report.problems[:5]) + (" …" if len(report.problems) > 5 else ""))
    target.mkdir(parents=True, exist_ok=True)
    for picture in report.pictures:
        shutil.copyfile(picture.path, target / picture.path.name)
        caption = picture.path.with_suffix(".txt")
        if caption.is_file():
            shutil.copyfile(caption, target / caption.name)
    return report.warnings
