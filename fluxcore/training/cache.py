"""Latents and text embeddings, made once and kept on disk: every attempt of a run shares them.

A file's name is a hash of all that its content depends on (the picture's bytes or the caption, size, flip, model), so
an edited picture or caption is never trained stale. Files are written aside and renamed; each says the hash of its
tensors, and one that is torn is made anew.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from fluxcore.atomic import write_atomic
from fluxcore.dataset import check_picture
from fluxcore.dataset.buckets import Size
from fluxcore.models.family import TextEncoder
from fluxcore.models.loading import PromptEmbedding

Progress = Callable[[int, int], None]
FORM = 1
"""Raised whenever the same key would mean other tensors."""
KEPT_BYTES = 4 << 30
"""How much of it stays in memory; what is beyond is read from the disk at each use."""
READ_AHEAD = 2
"""Pictures for each thread that are read before they are needed."""


def model_key(files: Iterable[Path]) -> str:
    """What a model's files are: their names, sizes and times, so that a replaced file is another model."""
    found = [(file.name, about.st_size, about.st_mtime_ns) for file in files for about in (file.stat(),)]
    return _hash(found)


def text_key(model: str, dtype: torch.dtype, tokens: int, prompt: str) -> str:
    """The cache's name for a prompt's embedding."""
    return "text-" + _hash([FORM, model, str(dtype), tokens, prompt])


def picture_key(model: str, content: str, size: Size, flipped: bool) -> str:
    """The cache's name for a picture's latents; `content`: the hash of its file."""
    return "latents-" + _hash([FORM, model, content, size, flipped])


def _hash(what: object) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:40]


class Cache:
    """Tensors by key in a folder, the ones used lately in memory as well (up to `kept_bytes`)."""

    def __init__(self, folder: Path, kept_bytes: int = KEPT_BYTES) -> None:
        self._folder, self._left = folder, kept_bytes
        self._kept: dict[str, dict[str, torch.Tensor]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def __getitem__(self, key: str) -> dict[str, torch.Tensor]:
        """The tensors of `key`. Raises KeyError where there are none, or their file is torn."""
        if key in self._kept:
            return self._kept[key]
        try:
            with safe_open(self._file(key), "pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                whole = (file.metadata() or {}).get("sha256") == _tensor_hash(tensors)
        except (OSError, SafetensorError):
            whole = False
        if not whole:
            raise KeyError(key)
        self._keep(key, tensors)
        return tensors

    def __contains__(self, key: str) -> bool:
        try:
            self[key]
        except KeyError:
            return False
        return True

    def __setitem__(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        own = {name: tensor.contiguous() for name, tensor in tensors.items()}
        # Not synced: a file that a crash tears is found by its hash and made anew.
        write_atomic(self._file(key), save(own, {"sha256": _tensor_hash(own)}), durable=False)
        self._keep(key, own)

    def forget_others(self, keys: Iterable[str]) -> None:
        """Delete what no key of `keys` names: captions and pictures of before they were edited."""
        wanted = {self._file(key).name for key in keys}
        for file in self._folder.iterdir():
            if file.name not in wanted:
                file.unlink(missing_ok=True)

    def _file(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"

    def _keep(self, key: str, tensors: dict[str, torch.Tensor]) -> None:
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size <= self._left:
            self._left -= size
            self._kept[key] = tensors


def _tensor_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)} ".encode())
        digest.update(memoryview(tensors[name].contiguous().view(-1).view(torch.uint8).numpy()))
    return digest.hexdigest()


def encode_prompts(cache: Cache, text: TextEncoder, wanted: Mapping[str, str], on_progress: Progress) -> None:
    """Put the embedding of each prompt into the cache; `wanted` are prompts by key."""
    for done, (key, prompt) in enumerate(wanted.items(), 1):
        found = text.encode(prompt)
        cache[key] = {"pooled": found.pooled, "sequence": found.sequence}
        on_progress(done, len(wanted))


def prompt_embedding(cache: Cache, key: str) -> PromptEmbedding:
    """A prompt's embedding out of the cache. Raises KeyError."""
    found = cache[key]
    return PromptEmbedding(found["pooled"], found["sequence"])


def encode_pictures_into(
    cache: Cache,
    encode: Callable[[torch.Tensor], torch.Tensor],
    wanted: Mapping[str, tuple[Path, Size, bool]],
    workers: int,
    on_progress: Progress,
) -> None:
    """Put the normalised latents (C, h, w) of each picture into the cache; `wanted`: path, size, flipped, by key.

    `encode` as a family's `encode_pictures` on its pipeline.
    Raises PictureError for one that can't be read, and what `on_progress` raises; then no further ones are read.
    """

    def load(one: tuple[Path, Size, bool]) -> torch.Tensor:
        path, size, flipped = one
        pixels = load_pixels(path, size)
        return pixels.flip(-1) if flipped else pixels

    count = max(1, workers)
    pool = ThreadPoolExecutor(max_workers=count)
    try:
        left = iter(wanted.values())
        # So many are read ahead, and no more: pixels take much memory, and what is begun is waited for at the end.
        ahead = deque(pool.submit(load, one) for one in islice(left, READ_AHEAD * count))
        for done, key in enumerate(wanted, 1):
            pixels = ahead.popleft().result()
            ahead.extend(pool.submit(load, one) for one in islice(left, 1))
            cache[key] = {"latents": encode(pixels[None])[0]}
            on_progress(done, len(wanted))
    finally:  # after a stop or an error too: the pictures that no thread has begun are left
        pool.shutdown(cancel_futures=True)


def load_pixels(path: Path, size: Size) -> torch.Tensor:
    """A picture as float32 (3, height, width) in -1..1: turned as its EXIF says, on white, scaled, cut at the centre.

    `size` is (width, height) in pixels. Raises PictureError.
    """
    check_picture(path)
    with Image.open(path) as file:
        image = ImageOps.exif_transpose(file)
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        fitted = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.asarray(fitted, dtype=np.float32).copy())
    return pixels.permute(2, 0, 1) / 127.5 - 1
