"""The app's files: pictures (also small ones), LoRA downloads and logs, out of runs and drafts and nowhere else.

`files/runs/NAME/PATH` and `files/drafts/ID/PATH`; the gate stands before them as before every page. A run's folder of
samples, and each of its states, is to be had as one file: `files/runs/NAME/FOLDER?zip`; its samples also as one
picture: `files/runs/NAME/sample?grid`.
"""

from __future__ import annotations

import io
import stat
import threading
import time
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio.to_thread
from PIL import Image, ImageOps
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from fluxcore.dataset import EXTENSIONS, MAX_PIXELS
from fluxcore.errors import UserError
from fluxcore.runs import RunError, RunFolder, load_run
from fluxcore.runs.files import SAMPLE_FOLDER, parse_checkpoint_name
from fluxcore.runs.sample_grid import sample_grid

from .base import prefix
from .drafts import draft_folder

PICTURE_FOLDERS = frozenset({"dataset", "sample"})
LOGS = frozenset({"train.log", "monitor.log"})
ZIP_CHUNK = 1024 * 1024
THUMBNAIL_WIDTHS = (192, 384, 768)
CACHE_BYTES = 48 * 1024 * 1024
_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".bmp": "image/bmp"}


def routes(outputs: Path, base: str = "") -> list[Route]:
    """The file routes over one outputs folder, below the server's base path."""
    thumbnails = ThumbnailCache(CACHE_BYTES)
    one_at_a_time = anyio.CapacityLimiter(1)  # a grid takes a hundred MiB and more while it is made

    async def serve(request: Request) -> Response:
        """One file, its thumbnail, or a folder as a zip or a grid; what is none is a 404."""
        parts = request.path_params
        if "zip" in request.query_params:
            folder = await anyio.to_thread.run_sync(find_folder, outputs, parts["kind"], parts["name"], parts["path"])
            if folder is None:
                return Response("There is no such folder.", 404, media_type="text/plain")
            name = folder.name if folder.name.startswith(parts["name"]) else f"{parts['name']}-{folder.name}"
            headers = _download(f"{name}.zip")
            if request.method == "HEAD":
                return Response(media_type="application/zip", headers=headers)
            return StreamingResponse(zipped(folder), media_type="application/zip", headers=headers)
        if "grid" in request.query_params:
            names = (outputs, parts["kind"], parts["name"], parts["path"])
            try:
                made = await anyio.to_thread.run_sync(grid, *names, limiter=one_at_a_time)
            except UserError:
                return Response("There is no such picture.", 404, media_type="text/plain")
            return Response(made, media_type="image/png", headers=_download(f"{parts['name']}-samples.png"))
        path = await anyio.to_thread.run_sync(find_file, outputs, parts["kind"], parts["name"], parts["path"])
        if path is None:
            return Response("There is no such file.", 404, media_type="text/plain")
        # A link made here carries the file's time: what it names never changes.
        lasting = "v" in request.query_params
        headers = {
            "cache-control": "private, max-age=31536000, immutable" if lasting else "private, no-cache",
            "x-content-type-options": "nosniff",
            "content-security-policy": "default-src 'none'; sandbox",
        }
        width = request.query_params.get("w", "")
        if path.suffix.lower() in EXTENSIONS and width.isdigit() and int(width) in THUMBNAIL_WIDTHS:
            made = await anyio.to_thread.run_sync(thumbnails.get, path, int(width))
            if made is not None:
                return Response(made, media_type="image/webp", headers=headers)
        media_type = _TYPES.get(path.suffix.lower(), "application/octet-stream")
        if path.suffix == ".log" and "download" not in request.query_params:
            return FileResponse(path, media_type="text/plain; charset=utf-8", headers=headers)
        name = path.name if media_type == "application/octet-stream" else None
        return FileResponse(path, media_type=media_type, filename=name, headers=headers)

    return [Route(f"{prefix(base)}/files/{{kind}}/{{name}}/{{path:path}}", serve, methods=["GET", "HEAD"])]


def find_file(outputs: Path, kind: str, name: str, relative: str) -> Path | None:
    """The file that an address names, or None: not there, not a kind that is served, or not inside the run."""
    try:
        folder = RunFolder.of(outputs, name) if kind == "runs" else draft_folder(outputs, name)
    except RunError:
        return None
    if kind not in ("runs", "drafts"):
        return None
    parts = relative.split("/")
    if "\0" in relative or any(part in ("", "..") or part.startswith(".") for part in parts):
        return None
    suffix = Path(relative).suffix.lower()
    picture = len(parts) == 2 and parts[0] in PICTURE_FOLDERS and suffix in EXTENSIONS
    download = kind == "runs" and len(parts) == 1 and (suffix == ".safetensors" or relative in LOGS)
    if not picture and not download:
        return None
    try:
        path = folder.inside(relative)
        # A run that is itself a link to elsewhere would make all of its files "inside".
        if path is None or not path.is_relative_to(outputs.resolve()) or not path.is_file():
            return None
    except OSError:
        return None
    # Links inside a run may not turn a picture's address into another file's.
    return path if path.suffix.lower() == suffix and not _has_dot(path, folder.path.resolve()) else None


def find_folder(outputs: Path, kind: str, name: str, relative: str) -> Path | None:
    """The folder that an address asks for as one file: a run's samples or one of its states; None for any other."""
    if kind != "runs":
        return None
    try:
        folder = RunFolder.of(outputs, name)
        state = (parse_checkpoint_name(folder.name, relative) or ("",))[0] == "state"
        if not state and relative != folder.samples.name:
            return None
        path = folder.inside(relative)
        # As with files: neither the run nor what is in it may be a link to elsewhere.
        if path is None or path != folder.path.resolve() / relative or not path.is_relative_to(outputs.resolve()):
            return None
        return path if path.is_dir() else None
    except (RunError, OSError):
        return None


def grid(outputs: Path, kind: str, name: str, relative: str) -> bytes:
    """PNG of a run's samples, of those that are served one by one. Raises UserError where there are none."""
    if relative != SAMPLE_FOLDER or find_folder(outputs, kind, name, relative) is None:
        raise UserError("only a run's samples come as one")
    folder, state = load_run(outputs, name)
    return sample_grid(folder, state, lambda _, sample: find_file(outputs, kind, name, str(sample.get("path") or "")))


def _download(name: str) -> dict[str, str]:
    return {
        "cache-control": "no-store",
        "x-content-type-options": "nosniff",
        "content-disposition": f'attachment; filename="{name}"',
    }


class _Sink(io.RawIOBase):
    """What a zip is written into and taken out of again, piece by piece."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        taken, self._pieces = b"".join(self._pieces), []
        return taken


def zipped(folder: Path) -> Iterator[bytes]:
    """The plain files of a folder as a zip, made while it is sent: nothing of it is kept in memory or on the disk.

    Nothing is compressed: pictures are already, and the numbers of a LoRA do not get smaller. A link is left out, and
    so is what is gone by the time its turn comes.
    """
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as file:
        for path in sorted(folder.rglob("*")):
            try:
                about = path.lstat()
                if not stat.S_ISREG(about.st_mode) or _has_dot(path.resolve(), folder):
                    continue
                source = path.open("rb")
            except OSError:
                continue
            when = time.localtime(max(about.st_mtime, 315_619_200))[:6]  # a zip knows no time before 1980
            entry = zipfile.ZipInfo(path.relative_to(folder.parent).as_posix(), when)
            entry.external_attr = 0o644 << 16
            with source, file.open(entry, "w", force_zip64=True) as target:
                while piece := source.read(ZIP_CHUNK):
                    target.write(piece)
                    yield sink.take()
    yield sink.take()


def _has_dot(path: Path, root: Path) -> bool:
    return not path.is_relative_to(root) or any(part.startswith(".") for part in path.relative_to(root).parts)


def run_url(folder: RunFolder, relative: str, width: int | None = None, *, kind: str = "runs") -> str:
    """The address of a run's file, relative to any page; with its time in it, so that browsers may keep it."""
    try:
        version = (folder.path / relative).stat().st_mtime_ns
    except OSError:
        version = 0
    size = f"&w={width}" if width else ""
    return f"files/{kind}/{quote(folder.name)}/{quote(relative)}?v={version:x}{size}"


def zip_url(folder: RunFolder, relative: str) -> str:
    """The address of a run's state or samples as one file."""
    return f"files/runs/{quote(folder.name)}/{quote(relative)}?zip"


def grid_url(folder: RunFolder) -> str:
    """The address of a run's samples as one picture."""
    return f"files/runs/{quote(folder.name)}/{SAMPLE_FOLDER}?grid"


class ThumbnailCache:
    """Small WebP copies of pictures, the newest `limit` bytes of them in memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._made: OrderedDict[tuple[str, int, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path, width: int) -> bytes | None:
        """The picture at most `width` pixels wide and high; None where the file itself serves better."""
        try:
            key = (str(path), path.stat().st_mtime_ns, width)
        except OSError:
            return None
        with self._lock:
            if key in self._made:
                self._made.move_to_end(key)
                return self._made[key]
        made = _shrink(path, width)
        if made is not None:
            with self._lock:
                if key not in self._made:
                    self._made[key] = made
                    self._size += len(made)
                while self._size > self._limit and self._made:
                    self._size -= len(self._made.popitem(last=False)[1])
        return made


def _shrink(path: Path, width: int) -> bytes | None:
    try:
        with Image.open(path, formats=["PNG", "JPEG", "WEBP", "BMP"]) as image:
            if max(image.size) <= width or image.width * image.height > MAX_PIXELS:
                return None
            image.draft("RGB", (width, width))
            small = ImageOps.exif_transpose(image)
            small.thumbnail((width, width))
            buffer = io.BytesIO()
            small.convert("RGBA" if "A" in small.getbands() else "RGB").save(buffer, "WEBP", quality=82)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return buffer.getvalue()
