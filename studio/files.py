"""The app's files: pictures (also small ones), LoRA downloads and logs, out of runs and drafts and nowhere else.

`files/runs/NAME/PATH` and `files/drafts/ID/PATH`; the gate stands before them as before every page.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from pathlib import Path
from urllib.parse import quote

import anyio.to_thread
from PIL import Image, ImageOps
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from fluxcore.dataset import EXTENSIONS, MAX_PIXELS
from fluxcore.runs import RunError, RunFolder

from .drafts import draft_folder

PICTURE_FOLDERS = frozenset({"dataset", "sample"})
LOGS = frozenset({"train.log", "monitor.log"})
THUMBNAIL_WIDTHS = (192, 384, 768)
CACHE_BYTES = 48 * 1024 * 1024
_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".bmp": "image/bmp"}


def routes(outputs: Path, base: str = "") -> list[Route]:
    """The file routes over one outputs folder, below the server's base path."""
    thumbnails = ThumbnailCache(CACHE_BYTES)

    async def serve(request: Request) -> Response:
        parts = request.path_params
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

    prefix = f"/{base.strip('/')}" if base.strip("/") else ""
    return [Route(f"{prefix}/files/{{kind}}/{{name}}/{{path:path}}", serve, methods=["GET", "HEAD"])]


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
