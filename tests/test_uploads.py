"""Uploads: what is wrong with a file is said by its name, the others come in."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import pytest
from PIL import Image

from fluxcore.dataset import list_pictures
from studio.uploads import plain_name, remove_picture, restore_picture, take_files


def png(color: str = "red", size: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), color).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of 60,000 × 60,000 pixels in a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def take(folder, **files: bytes):
    return take_files(folder, [(name.replace("__", "."), io.BytesIO(data)) for name, data in files.items()])


def test_pictures_and_captions_come_in_whatever_their_order(tmp_path):
    taken = take(tmp_path, a__txt=b"\xef\xbb\xbfa red square\n", a__png=png(), b__png=png("blue"))
    assert (taken.pictures, taken.captions, taken.problems) == (2, 1, [])
    assert [(picture.path.name, picture.caption) for picture in list_pictures(tmp_path)] == [
        ("a.png", "a red square"),
        ("b.png", None),
    ]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("cut.png", png(size=200)[:-60], "can't be read"),
        ("bomb.png", bomb(), "million pixels"),
        ("fake.png", b"hello", "not a picture"),
        ("notes.pdf", b"%PDF", "neither a picture"),
        ("alone.txt", b"a caption", "without its picture"),
        ("long.txt", b"x" * 100_000, "without its picture"),
        ("empty.png", b"", "not a picture"),
    ],
    ids=["cut", "bomb", "fake", "pdf", "alone", "long", "empty"],
)
def test_a_bad_file_is_named_and_the_rest_kept(tmp_path, name, data, says):
    taken = take_files(tmp_path, [("good.png", io.BytesIO(png())), (name, io.BytesIO(data))])
    assert taken.pictures == 1
    assert len(taken.problems) == 1 and name in taken.problems[0] and says in taken.problems[0]
    assert [path.name for path in tmp_path.iterdir()] == ["good.png"], "nothing half is left behind"


def test_the_same_name_twice_keeps_the_first(tmp_path):
    take(tmp_path, a__png=png("red"))
    again = take(tmp_path, a__png=png("red"))
    assert again.notes and not again.problems
    other = take(tmp_path, a__png=png("blue"))
    assert "a.png" in other.problems[0]
    twin = take_files(tmp_path, [("A.jpg", io.BytesIO(png("blue")))])
    assert "a.png has that name" in twin.problems[0], "they would share one caption file"
    assert (tmp_path / "a.png").read_bytes() == png("red")


def test_names_are_made_plain():
    assert plain_name("C:\\pictures\\cat.png") == "cat.png"
    assert plain_name("../../etc/cat.png") == "cat.png"
    assert plain_name("...hidden.png") == "hidden.png"
    assert plain_name("a\n\0b.png") == "ab.png"
    assert plain_name("猫.png") == "猫.png"
    assert len(plain_name("猫" * 300 + ".png").encode()) < 200
    assert plain_name("") == "picture"


def test_a_picture_taken_out_comes_back_with_its_caption(tmp_path):
    take(tmp_path, a__png=png(), a__txt=b"a square")
    remove_picture(tmp_path / "a.png")
    assert list_pictures(tmp_path) == []
    restore_picture(tmp_path, "a.png")
    assert list_pictures(tmp_path)[0].caption == "a square"


def zipped(method: int = zipfile.ZIP_DEFLATED) -> bytearray:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", method) as archive:
        archive.writestr("cat.png", png())
        archive.writestr("dog.png", png("blue"))
    return bytearray(packed.getvalue())


def with_flags(version: int = 20, flags: int = 0, method: int = 8) -> bytes:
    """The zip whose first file says that of itself, in the table of contents and in front of the file."""
    data, said = zipped(), struct.pack("<HHH", version, flags, method)
    for signature, at in ((b"PK\x01\x02", 6), (b"PK\x03\x04", 4)):
        start = data.find(signature) + at
        data[start : start + len(said)] = said
    return bytes(data)


def damaged(method: int) -> bytes:
    """The zip with the packed bytes of its first file overwritten."""
    data, start = zipped(method), 30 + len("cat.png")
    data[start : start + 20] = bytes(20)
    return bytes(data)


@pytest.mark.parametrize(
    ("archive", "says"),
    [
        (with_flags(flags=0x1), "cat.png can't be read out of my.zip"),
        (with_flags(method=99), "cat.png can't be read out of my.zip"),
        (damaged(zipfile.ZIP_STORED), "cat.png was left out: it is damaged inside of its zip"),
        (damaged(zipfile.ZIP_DEFLATED), "cat.png was left out: it is damaged inside of its zip"),
        (damaged(zipfile.ZIP_BZIP2), "cat.png was left out: it is damaged inside of its zip"),
        (damaged(zipfile.ZIP_LZMA), "cat.png was left out: it is damaged inside of its zip"),
        (with_flags(version=255), "my.zip is no zip that can be read"),
        (bytes(zipped())[:60], "my.zip is no zip that can be read"),
        (b"", "my.zip is no zip that can be read"),
    ],
    ids=["locked", "unknown packing", "stored", "deflated", "bzip2", "lzma", "of the future", "cut", "empty"],
)
def test_what_is_wrong_with_a_zip_is_one_sentence_and_the_rest_comes_in(tmp_path, archive, says):
    taken = take_files(tmp_path, [("my.zip", io.BytesIO(archive)), ("good.png", io.BytesIO(png("green")))])
    assert len(taken.problems) == 1 and taken.problems[0].startswith(says)
    others = [] if says.startswith("my.zip") else ["dog.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*others, "good.png"]


def test_a_full_disk_is_no_damaged_zip(tmp_path, monkeypatch):
    def full(stream, target, length):
        stream.read(length)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    taken = take_files(tmp_path, [("my.zip", io.BytesIO(bytes(zipped())))])
    assert [problem.partition(":")[2] for problem in taken.problems] == [" make room and add it again"] * 2
    assert list(tmp_path.iterdir()) == []


def test_files_that_came_in_two_messages_are_told_of_together(tmp_path):
    first = take_files(tmp_path, [("a.png", io.BytesIO(png())), ("cut.png", io.BytesIO(png()[:-30]))])
    second = take_files(tmp_path, [("b.png", io.BytesIO(png())), ("cut.png", io.BytesIO(png()[:-30]))])
    both = second.after(first)
    assert both.pictures == 2 and len(both.problems) == 1 and "cut.png can't be read" in both.problems[0]
