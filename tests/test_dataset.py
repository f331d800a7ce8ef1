"""Pictures and captions: what is taken, what is refused, and in which words."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from fluxcore.dataset import PictureError, check_dataset, check_picture, copy_dataset, list_pictures


def picture(path: Path, size: tuple[int, int] = (8, 8)) -> Path:
    Image.new("RGB", size, "red").save(path)
    return path


def bomb(path: Path) -> Path:
    """A PNG of a few bytes that says it has 60000 x 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def test_pictures_come_with_their_captions_by_stem(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "c.webp"):
        picture(tmp_path / name)
    (tmp_path / "a.txt").write_text("  a red\n square ")
    (tmp_path / "b.txt").write_text("")
    (tmp_path / ".hidden.png").write_bytes(b"")
    (tmp_path / "notes.md").write_text("no picture")
    found = list_pictures(tmp_path)
    assert [(one.path.name, one.caption) for one in found] == [
        ("a.jpg", "a red square"),
        ("b.png", None),
        ("c.webp", None),
    ]
    assert [one.prompt("r1so") for one in found] == ["a red square", "r1so", "r1so"]


def test_a_truncated_picture_a_bomb_and_no_picture_are_refused_in_plain_words(tmp_path: Path) -> None:
    whole = picture(tmp_path / "whole.png", (200, 200))
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole.read_bytes()[:-60])
    fake = tmp_path / "fake.jpg"
    fake.write_text("not a picture")
    assert check_picture(whole) == (200, 200)
    with pytest.raises(PictureError, match="cut.png can't be read"):
        check_picture(cut)
    with pytest.raises(PictureError, match="bomb.png has more than .* pixels, which is the limit"):
        check_picture(bomb(tmp_path / "bomb.png"))
    with pytest.raises(PictureError, match="fake.jpg is not a picture"):
        check_picture(fake)


def test_a_folder_of_no_pictures_says_so(tmp_path: Path) -> None:
    assert check_dataset(tmp_path).problems == [f"{tmp_path} holds no pictures (PNG, JPEG, WebP or BMP)"]
    assert "there is no folder" in check_dataset(tmp_path / "nowhere").problems[0]


def test_a_caption_without_its_picture_is_a_warning_and_stays_behind(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    picture(source / "a.png")
    (source / "a.txt").write_text("a")
    (source / "lost.txt").write_text("b")
    warnings = copy_dataset(source, tmp_path / "out")
    assert warnings == ["lost.txt is a caption without its picture; it is left out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "a.txt"]


def test_one_bad_picture_stops_the_copy_and_is_named(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    picture(source / "a.png")
    (source / "b.png").write_bytes(b"x")
    with pytest.raises(PictureError, match="b.png"):
        copy_dataset(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
