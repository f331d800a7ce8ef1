"""A LoRA's file, FLUX.1's or klein's: read it, write it so that a crash leaves the old one or the new one, convert it.

Only safetensors: a pickle could run code. The layout is the one in safetensors' README: 8 bytes with the header's
length, a JSON header (with the metadata, strings only, under `__metadata__`), the tensors' bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fluxcore.atomic import write_atomic
from fluxcore.training import adapter_metadata
from fluxcore.training.lora_keys import TO_FORMAT, LoraFormat, LoraFormatError, detect_format, to_peft_file
from fluxcore.training.lora_names import KLEIN, Names, names_of


def implementation(form: LoraFormat, klein: bool) -> str:
    """What modelspec calls the program whose module names a file has (`modelspec.implementation`)."""
    if form in ("diffusers", "peft"):
        return "diffusers"
    return f"https://github.com/black-forest-labs/flux{'2' if klein else ''}"


_PEFT_MODEL = "base_model.model."
"""In front of peft's names where a PeftModel saved them; its configuration is in _BESIDE."""
_BESIDE = "adapter_config.json"


def read_lora(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A LoRA's tensors (on the CPU, in the file's dtypes) and its metadata, `{}` where it has none.

    Alphas that are in the metadata, in the ups (`adapter_metadata.py`) or, of what a PeftModel saved, in the
    adapter_config.json beside it come back as `.alpha` tensors, and those entries are left out: the tensors alone say
    what the LoRA adds. Raises LoraFormatError where the file is cut short, no safetensors file or no FLUX LoRA (before
    any tensor is read), or its alphas can't be told; OSError where it can't be opened.
    """
    with open(path, "rb"):  # a missing file or a folder: Python's own error names it
        pass
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            kind = detect_format(file.keys())
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no dict: it has only keys())
            metadata = dict(file.metadata() or {})
    except SafetensorError as error:
        raise LoraFormatError(f"{path} is cut short or no safetensors file ({error}). Copy it here again.") from error
    except LoraFormatError as error:
        raise LoraFormatError(f"{path}: {error}") from error
    config, in_ups = metadata.pop(adapter_metadata.CONFIG, None), metadata.pop(adapter_metadata.IN_UPS, None)
    if kind not in ("diffusers", "peft"):  # the others have an `.alpha` each, which all readers take
        return tensors, metadata
    where = adapter_metadata.CONFIG
    if all(key.startswith(_PEFT_MODEL) for key in tensors):
        tensors = {key.removeprefix(_PEFT_MODEL): tensor for key, tensor in tensors.items()}
        if not any(key.endswith(".alpha") for key in tensors):
            config, where = _beside(Path(path)), _BESIDE
    try:
        return adapter_metadata.with_alphas(tensors, config, in_ups, where), metadata
    except LoraFormatError as error:
        raise LoraFormatError(f"{path}: {error}") from error


def _beside(path: Path) -> str:
    try:
        return (path.parent / _BESIDE).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise LoraFormatError(
            f"{path} is a PeftModel's, whose alphas are in {_BESIDE}, which can't be read. Put it beside it."
        ) from None


def save_lora(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a LoRA: to `PATH.tmp` beside it, fsynced, renamed over `path`, the folder fsynced.

    `tensors` may be on any device and share memory; the file's bytes depend on nothing but the arguments. Of the
    metadata, the hashes of the tensors' bytes are made here, so they can't be stale: `sshs_model_hash` beside `ss_`
    keys, `modelspec.hash_sha256` beside modelspec's (`sshs_legacy_hash` is left out). Raises TypeError for metadata
    that are not strings, LoraFormatError for tensors that are no LoRA, OSError (disk full, …) with `path` untouched.
    """
    detect_format(tensors)
    save_network(path, tensors, metadata)


def save_network(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """The same for tensors of any name: a DoRA, LoKr or LoHa."""
    if not all(isinstance(item, str) for pair in metadata.items() for item in pair):
        raise TypeError("a safetensors file's metadata are strings, names and values")
    own = {k: t.detach().to("cpu", copy=True, memory_format=torch.contiguous_format) for k, t in tensors.items()}
    blob = memoryview(save(own))
    start = 8 + int.from_bytes(blob[:8], "little")
    header = json.loads(bytes(blob[8:start]))
    header["__metadata__"] = _with_hashes(metadata, hashlib.sha256(blob[start:]).hexdigest())
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # the tensors' bytes start at a multiple of 8
    write_atomic(Path(path), (len(text).to_bytes(8, "little"), text, blob[start:]))


def convert_lora(in_path: str | os.PathLike[str], out_path: str | os.PathLike[str], to: LoraFormat) -> LoraFormat:
    """Write the LoRA of `in_path` to `out_path` with another family of names, exactly; gives the format it found.

    A file that already has the names of `to` is copied byte for byte (not under peft's, which say alpha in several
    ways). Metadata is kept; what would be untrue afterwards (hashes, `modelspec.implementation`,
    `lora_adapter_metadata`) is made anew or left out. An `out_path` that exists is replaced, and only once the new file
    is whole. For readers that take no `.alpha` (of peft's names, of klein under diffusers'), the scale is in the ups;
    `adapter_metadata.scale_in_ups` says what is exact there. Raises LoraFormatError for what can't be converted (see
    TO_FORMAT's functions), ValueError for another `to` or where both paths are one file, OSError.
    """
    if to not in get_args(LoraFormat):
        raise ValueError(f"a LoRA converts to {' or '.join(get_args(LoraFormat))}, not to {to!r}")
    if os.path.realpath(in_path) == os.path.realpath(out_path) or (
        os.path.exists(out_path) and os.path.samefile(in_path, out_path)
    ):
        raise ValueError(f"{in_path} and {out_path} are one file: convert into another one")
    tensors, metadata = read_lora(in_path)
    found = detect_format(tensors)
    if found == to != "peft":
        write_atomic(Path(out_path), Path(in_path).read_bytes())
        return found
    try:
        names = _names(tensors, metadata)
        if to == "peft" or (to == "diffusers" and names is KLEIN):
            converted, noted = adapter_metadata.scale_in_ups(to_peft_file(tensors, None, names))
            metadata |= noted
            if to == "peft":
                metadata[adapter_metadata.CONFIG] = adapter_metadata.config_of(converted)
            else:
                converted = {f"transformer.{key}": tensor for key, tensor in converted.items()}
        else:
            converted = TO_FORMAT[to](tensors, None, names)
    except LoraFormatError as error:
        raise LoraFormatError(f"{in_path}: {error}") from error
    if "modelspec.implementation" in metadata:
        metadata["modelspec.implementation"] = implementation(to, names is KLEIN)
    save_lora(out_path, converted, {"format": "pt", **metadata})
    return found


def _names(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Names:
    """Whose LoRA it is: by its tensors, or where these fit both models by what the file says."""
    said = (metadata.get("modelspec.architecture", ""), metadata.get("ss_base_model_version", ""))
    return KLEIN if said[0].startswith("flux-2") or said[1].startswith("flux2") else names_of(tensors)


def _with_hashes(metadata: Mapping[str, str], sha256: str) -> dict[str, str]:
    result = {k: v for k, v in metadata.items() if not k.startswith("sshs_") and k != "modelspec.hash_sha256"}
    if any(key.startswith("ss_") for key in result):
        result["sshs_model_hash"] = sha256
    if any(key.startswith("modelspec.") for key in result):
        result["modelspec.hash_sha256"] = f"0x{sha256}"
    return result
