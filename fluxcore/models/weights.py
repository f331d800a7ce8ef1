"""One safetensors file as the tensors of one part of a FLUX: strictly, and in the precision that is asked for.

Files as ComfyUI and Forge have them: BFL's names, or a checkpoint with everything in it whose names have a prefix for
each part; 16 or 32 bit, plain fp8, or ComfyUI's scaled fp8 (its QUANTIZATION.md), whose scales are multiplied in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fluxcore.runs.checkpoints import safetensors_problem

from .errors import ModelError

Shapes = Mapping[str, tuple[int, ...]]

TITLES = {
    "pretrained_model_name_or_path": "FLUX.1 transformer",
    "ae": "FLUX.1 autoencoder",
    "clip_l": "CLIP-L text encoder",
    "t5xxl": "T5-XXL text encoder",
    "klein pretrained_model_name_or_path": "FLUX.2 klein transformer",
    "klein ae": "FLUX.2 autoencoder",
    "qwen3": "Qwen3 text encoder",
}
"""By part; klein's have the same names in a config."""
_PREFIXES = {
    "pretrained_model_name_or_path": ("model.diffusion_model.",),
    "ae": ("vae.", "first_stage_model."),
    "clip_l": ("text_encoders.clip_l.transformer.", "clip_l.transformer."),
    "t5xxl": ("text_encoders.t5xxl.transformer.", "t5xxl.transformer."),
    "qwen3": ("text_encoders.qwen3_4b.transformer.", "text_encoders.qwen3_8b.transformer."),
}
_OTHER_SECTIONS = ("model.", "vae.", "first_stage_model.", "text_encoders.", "clip_l.", "t5xxl.")
_KINDS = (
    ("lora_", "", "a LoRA"),
    ("bitsandbytes__", "", "a model in bitsandbytes' 4 bits, which can't be trained on"),
    ("double_stream_modulation_img.", "klein pretrained_model_name_or_path", "a FLUX.2 transformer"),
    ("distilled_guidance_layer.", "", "a Chroma transformer"),
    ("double_blocks.0.img_mod.lin.", "pretrained_model_name_or_path", "a FLUX.1 transformer"),
    ("transformer_blocks.0.attn.", "", "a transformer with diffusers' names (give its diffusers folder as base_model)"),
    ("joint_blocks.", "", "a Stable Diffusion 3 model"),
    ("input_blocks.", "", "a Stable Diffusion model"),
    ("bn.running_", "klein ae", "a FLUX.2 autoencoder"),
    ("encoder.down.0.block.0.", "ae", "an autoencoder of FLUX.1's kind"),
    ("encoder.down_blocks.0.", "", "an autoencoder with diffusers' names"),
    ("text_model.encoder.layers.0.", "clip_l", "a CLIP text encoder"),
    ("SelfAttention.", "t5xxl", "a T5 text encoder"),
    ("self_attn.q_norm.", "qwen3", "a Qwen3 text encoder"),
)
"""A piece of a tensor's name, the part that has such names, and what such a file is."""
_WHOLE = (torch.float32, torch.float16, torch.bfloat16)
_FP8 = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}
# ComfyUI's names now and before. Scales of inputs serve products in fp8, which there are none of here.
_WEIGHT_SCALES = (".weight_scale", ".scale_weight")
_UNUSED = (".input_scale", ".scale_input", ".comfy_quant", ".num_batches_tracked")


class PartFile:
    """One part of a FLUX in a safetensors file. Raises ModelError where it is torn or no such part.

    `klein`: of FLUX.2 klein, where FLUX.1 has a part of the same name.
    """

    def __init__(self, path: Path, part: str, *, klein: bool = False) -> None:
        self.path, self.part, self._what = path, part, f"klein {part}" if klein else part
        try:
            problem = safetensors_problem(path)
        except FileNotFoundError:
            raise ModelError(f"{part}: there is no file {path}") from None
        if problem and path.suffix.lower() not in (".safetensors", ".sft"):
            raise ModelError(f"{part}: {path} is no safetensors file; only those are opened")
        if problem:
            raise ModelError(f"{part}: {path} is damaged ({problem.partition(' is ')[2]}): copy or download it again")
        try:
            with safe_open(path, framework="pt") as file:
                self._shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
                self._formats = _formats(file.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{part}: {path} can't be read ({error})") from None
        self._prefix = next((p for p in _PREFIXES[part] if any(key.startswith(p) for key in self._shapes)), "")
        self._scales = {key: name for key in self._shapes if (name := _scaled_name(key))}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of the part's tensors, without the prefix; scales and their marks are none of them."""
        return {key.removeprefix(self._prefix): self._shapes[key] for key in self._keys()}

    def read(self, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """The part's tensors on the CPU in `dtype`, scales multiplied in. Raises ModelError."""
        scale_of = {f"{name}.weight": key for key, name in self._scales.items()}
        tensors = {}
        try:
            with safe_open(self.path, framework="pt", device="cpu") as file:
                for key in self._keys():
                    self._check_format(file, key.removesuffix(".weight"))
                    scale = file.get_tensor(scale_of[key]) if key in scale_of else None
                    tensors[key.removeprefix(self._prefix)] = self._plain(key, file.get_tensor(key), scale, dtype)
        except SafetensorError as error:
            raise ModelError(f"{self.part}: {self.path} can't be read ({error})") from None
        return tensors

    def check(self, missing: Iterable[str] = (), left_over: Iterable[str] = (), shaped: str = "") -> None:
        """Raise ModelError where tensors are missing, left over, or shaped as in no such part."""
        missing, left_over = sorted(missing), sorted(left_over)
        what = []
        if missing:
            what.append(f"it lacks {_some(missing)}")
        if left_over:
            what.append(f"it has {_some(left_over)} that it should not have")
        if shaped:
            what.append(shaped)
        if not what:
            return
        part, kind = next((row[1:] for row in _KINDS if any(row[0] in key for key in self._shapes)), ("", ""))
        if kind and part != self._what:
            raise ModelError(f"{self.part}: {self.path} is {kind}; it must be the {TITLES[self._what]}")
        raise ModelError(f"{self.part}: {self.path} is not the {TITLES[self._what]}: {', and '.join(what)}")

    def compare(self, wanted: Shapes, given: Shapes, left_over: Iterable[str] = ()) -> None:
        """Raise ModelError where `given` (name → shape) is not exactly `wanted`."""
        wrong = next((name for name in wanted if name in given and wanted[name] != given[name]), None)
        shaped = f"its {wrong} is {_times(given[wrong])}, not {_times(wanted[wrong])}" if wrong else ""
        self.check(set(wanted) - set(given), [*(set(given) - set(wanted)), *left_over], shaped)

    def _keys(self) -> list[str]:
        """The part's own keys. Those of a checkpoint's other sections are left out; what is in none stays."""
        own = [key for key in self._shapes if key not in self._scales and not key.endswith(_UNUSED)]
        own = [key for key in own if key.removeprefix(self._prefix) != "scaled_fp8"]
        if not self._prefix:
            return own
        return [key for key in own if key.startswith(self._prefix) or not key.startswith(_OTHER_SECTIONS)]

    def _check_format(self, file: Any, layer: str) -> None:
        """Raise ModelError for weights that ComfyUI has quantised in another way than to scaled fp8."""
        stated = self._formats.get(layer)
        if f"{layer}.comfy_quant" in self._shapes:
            try:
                stated = json.loads(bytes(file.get_tensor(f"{layer}.comfy_quant").tolist())).get("format")
            except (ValueError, AttributeError):
                stated = "an unknown format"
        if stated is not None and stated not in _FP8:
            raise self._quantised(str(stated))

    def _quantised(self, how: str) -> ModelError:
        return ModelError(
            f"{self.part}: {self.path} is quantised ({how}), which can't be turned back: take the file in 16 bit or fp8"
        )

    def _plain(self, key: str, value: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
        if value.dtype in _WHOLE:
            if scale is not None:
                raise self._quantised(f"{key} has a scale and {str(value.dtype).removeprefix('torch.')}")
            return value.to(dtype)
        if value.dtype not in _FP8.values():
            raise self._quantised(f"{key} in {str(value.dtype).removeprefix('torch.')}")
        if scale is None:  # in a scaled file too: ComfyUI leaves single weights as they are
            return value.to(dtype)
        if scale.numel() != 1 and scale.shape not in ((len(value),), (len(value), 1)):
            raise self._quantised(f"{key} with a scale of {_times(scale.shape)}")
        scale = scale.float().reshape(-1, *[1] * (value.dim() - 1)) if scale.numel() != 1 else scale.float().reshape(())
        return (value.float() * scale).to(dtype)


def _scaled_name(key: str) -> str | None:
    suffix = next((suffix for suffix in _WEIGHT_SCALES if key.endswith(suffix)), None)
    return key.removesuffix(suffix) if suffix else None


def _formats(metadata: Mapping[str, str]) -> dict[str, str]:
    """Layer → format, out of ComfyUI's `_quantization_metadata`."""
    try:
        layers = json.loads(metadata.get("_quantization_metadata", "{}")).get("layers", {})
        return {name: layer["format"] if isinstance(layer, dict) else str(layer) for name, layer in layers.items()}
    except (ValueError, AttributeError, KeyError):
        return {}


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _times(shape: Iterable[int]) -> str:
    return " × ".join(map(str, shape)) or "one number"
