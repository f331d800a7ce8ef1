"""A LoRA's tensors under the families of names that programs read, converted exactly: FLUX.1's and FLUX.2 klein's.

- `sd-scripts` (kohya's `networks/lora_flux.py`; ComfyUI, Forge and most shops of LoRAs read it): names of Black Forest
  Labs' own model, one LoRA for a block's fused `attn_qkv` and one for a single block's fused `linear1`:
  `lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight`, `….lora_up.weight`, `….alpha`.
- `diffusers` (what `FluxPipeline.save_lora_weights` writes) and `peft` (the same without the `transformer.` in front,
  what `peft.get_peft_model_state_dict` gives): one LoRA a projection,
  `transformer.transformer_blocks.0.attn.to_q.lora_A.weight`, `….lora_B.weight`, and here `….alpha`.

- `comfyui` (what ComfyUI's own nodes save): the modules and matrices of sd-scripts' form under the names of the model
  itself, `diffusion_model.double_blocks.0.img_attn.qkv.lora_down.weight`.

In all of them a module of rank r adds `alpha / r * up @ down` to its weight; `down` (lora_A) is (r, in), `up` (lora_B)
is (out, r). How fused modules convert, and what is exact: `lora_fuse.py`. Where the names are from: `lora_names.py`.

Klein's have the same forms, with two differences. sd-scripts train no FLUX.2; its form is that of kohya's musubi-tuner,
which ComfyUI and diffusers read as well. And diffusers' reader of FLUX.2 takes no `.alpha`: under its names the scale
is in the ups, rounded once to the matrices' dtype where that does not hold it. A file in peft's names has it there too
(`adapter_metadata.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fluxcore.training.lora_fuse import LoraFormatError, LoraModule, alpha_tensor, fuse, split_fused, times
from fluxcore.training.lora_names import FLUX_1, KLEIN, Names, names_of

__all__ = [
    "KEY_NAMES",
    "TO_FORMAT",
    "LoraFormat",
    "LoraFormatError",
    "detect_format",
    "to_comfyui",
    "to_diffusers",
    "to_peft",
    "to_peft_file",
    "to_sd_scripts",
]

LoraFormat = Literal["sd-scripts", "diffusers", "peft", "comfyui"]

# Black Forest Labs' last modulation gives (shift, scale), diffusers' (scale, shift): the halves of `up` change places.
_SWAPPED_HALVES = "transformer.norm_out.linear"

_SD_PARTS = {".lora_down.weight": "down", ".lora_up.weight": "up", ".alpha": "alpha"}
_PEFT_PARTS = {".lora_A.weight": "down", ".lora_B.weight": "up", ".alpha": "alpha"}
_BLOCK_NUMBER = re.compile(r"(?<=(?:blocks|layers)[._])\d+(?=[._])")
_FLOATS = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def detect_format(keys: Iterable[str]) -> LoraFormat:
    """The family of names that a LoRA's tensors have, judged by the names alone.

    `keys` are tensor names (a dict of tensors will do). "sd-scripts", "comfyui", "diffusers", or "peft" (diffusers'
    module names without `transformer.`). Raises LoraFormatError where the names are no FLUX LoRA's, or of two
    families.
    """
    found: set[LoraFormat] = set()
    names = list(keys)
    for key in names:
        if key.startswith(("lora_unet_", "lora_te")):
            found.add("sd-scripts")
        elif key.startswith(("diffusion_model.", "text_encoders.")):
            found.add("comfyui")
        elif key.endswith((".lora_A.weight", ".lora_B.weight")):
            found.add("diffusers" if key.startswith(("transformer.", "text_encoder.")) else "peft")
    if len(found) != 1:
        why = "has names of several LoRA formats" if found else "is not a FLUX LoRA"
        raise LoraFormatError(
            f"this {why}: names such as {_first(names)}. Expected are sd-scripts' "
            "'lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight' or diffusers' "
            "'transformer.transformer_blocks.0.attn.to_q.lora_A.weight'."
        )
    return found.pop()


def to_sd_scripts(
    state: Mapping[str, Tensor], alpha: float | Mapping[str, float] | None = None, names: Names | None = None
) -> dict[str, Tensor]:
    """The LoRA under sd-scripts' names, with an `.alpha` (a 0-d tensor) for every module.

    `state` holds tensors under any of the families of names; its tensors are not changed, and those that need
    no change are passed on, not copied. `alpha` is for modules without an `.alpha` of their own: one number for all
    (the trainer's `network_alpha`), or a number per diffusers module (`transformer_blocks.0.attn.to_q`); None means
    alpha = rank, a scale of 1, as diffusers and ComfyUI take it. It is held as float32. `names`: whose LoRA it is;
    None = what its tensors say.

    An `.alpha` has the dtype of its module's matrices where that holds its value exactly (as sd-scripts saves it),
    else float32 or float64.

    Raises LoraFormatError for unknown names, a half of a pair, shapes that fit no FLUX width, and projections of one
    fused module whose scales (alpha / rank) differ by anything but a power of two (a power of two goes into the down,
    exactly).
    """
    names = names or names_of(state)
    groups: dict[str, dict[int, LoraModule]] = {}
    for path, module in _parse(state, alpha, names).items():
        number, pattern = _take_number(path)
        name, index = names.to_sd_scripts[pattern]
        groups.setdefault(name.replace("#", number), {})[index] = module
    out: dict[str, Tensor] = {}
    for name, parts in groups.items():
        paths = names.from_sd_scripts[_take_number(name)[1]]
        if len(paths) > 1:
            module = fuse(name, [parts.get(i) for i in range(len(paths))])
        else:
            module = _swapped(paths[0], parts[0])
        out[f"{name}.lora_down.weight"] = module.down
        out[f"{name}.lora_up.weight"] = module.up
        out[f"{name}.alpha"] = alpha_tensor(module.alpha, (module.down.dtype, torch.float32, torch.float64))
    return out


def to_diffusers(
    state: Mapping[str, Tensor], alpha: float | Mapping[str, float] | None = None, names: Names | None = None
) -> dict[str, Tensor]:
    """The LoRA under diffusers' names, for its pipelines' `load_lora_weights`; arguments as in to_sd_scripts.

    Alpha is a float32 `.alpha` tensor a module (float64 where float32 does not hold it): diffusers hands it to peft
    as it is, so the scale is alpha / rank with no detour, and readers that know no `lora_adapter_metadata` (ComfyUI,
    older diffusers) find it too. float32, not the matrices' dtype: peft divides in the tensor's dtype, and 1 / 3 in
    bfloat16 is off by 0.2%.

    Of klein it is in the ups instead.

    Raises LoraFormatError as to_sd_scripts does, and for the two cases in which diffusers would read a wrong scale:
    it takes the final layer's alpha for every single block's `proj_out`, and one alpha for the whole text encoder.
    """
    names = names or names_of(state)
    modules = _parse(state, alpha, names)
    if names is KLEIN:
        return {key: t for key, t in _with_peft_names(_scaled(modules)).items() if not key.endswith(".alpha")}
    _refuse_what_diffusers_misreads(modules)
    return _with_peft_names(modules)


def to_peft(state: Mapping[str, Tensor], names: Names | None = None) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The transformer's part of a LoRA as peft wants it: `(state, alphas)`.

    `state` may have any of the families of names. The first result goes to `peft.set_peft_model_state_dict`
    (`transformer_blocks.0.attn.to_q.lora_A.weight`, no alphas in it); the second has an alpha per module for a
    `LoraConfig`'s `alpha_pattern` (with `^` in front: peft matches at a name's end, and `proj_out` ends several). The
    ranks are the first dimension of each `lora_A.weight`. Modules of a text encoder are left out.

    Raises LoraFormatError as to_sd_scripts does, or where no transformer module is there.
    """
    prefix = "transformer."
    parsed = _parse(state, None, names or names_of(state))
    modules = {p.removeprefix(prefix): m for p, m in parsed.items() if p.startswith(prefix)}
    if not modules:
        raise LoraFormatError("this LoRA has no module of the transformer: it can't be continued here.")
    tensors = {key: t for key, t in _with_peft_names(modules).items() if not key.endswith(".alpha")}
    return tensors, {path: module.alpha for path, module in modules.items()}


def to_comfyui(
    state: Mapping[str, Tensor], alpha: float | Mapping[str, float] | None = None, names: Names | None = None
) -> dict[str, Tensor]:
    """The LoRA under ComfyUI's names: to_sd_scripts' tensors, called as the model calls its modules."""
    names = names or names_of(state)
    return {_renamed(key, names.to_comfyui): tensor for key, tensor in to_sd_scripts(state, alpha, names).items()}


def to_peft_file(
    state: Mapping[str, Tensor], alpha: float | Mapping[str, float] | None = None, names: Names | None = None
) -> dict[str, Tensor]:
    """The LoRA under peft's names, with an `.alpha` a module as in to_diffusers. Raises where CLIP-L has a part.

    peft's own files have none, and their readers take none: for a file there is `adapter_metadata.scale_in_ups`.
    """
    modules = _parse(state, alpha, names or names_of(state))
    if any(path.startswith("text_encoder.") for path in modules):
        raise LoraFormatError("peft's names are the transformer's alone, and this LoRA has a part of CLIP-L.")
    return _with_peft_names({path.removeprefix("transformer."): module for path, module in modules.items()})


TO_FORMAT: dict[LoraFormat, Callable[..., dict[str, Tensor]]] = {
    "sd-scripts": to_sd_scripts,
    "diffusers": to_diffusers,
    "peft": to_peft_file,
    "comfyui": to_comfyui,
}
"""What gives a LoRA the names of each format: (tensors, alpha, whose names) → tensors."""


def _renamed(key: str, names: Mapping[str, str]) -> str:
    """`key` with its module's name as `names` has it; unchanged where that has none."""
    module, dot, part = key, "", ""
    for end in (*_SD_PARTS, *_PEFT_PARTS):
        if key.endswith(end):
            module, dot, part = key.removesuffix(end), end[0], end[1:]
    number, pattern = _take_number(module)
    return key if pattern not in names else f"{names[pattern].replace('#', number)}{dot}{part}"


class KeyNames(NamedTuple):
    """A family's names in a LoRA's file. `to_file`: peft's tensors, the alpha and the format → the file's; `from_file`:
    a file's tensors → peft's, and the alpha of each module."""

    to_file: Callable[[Mapping[str, Tensor], float, LoraFormat], dict[str, Tensor]]
    from_file: Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], dict[str, float]]]

    @classmethod
    def of(cls, names: Names) -> KeyNames:
        return cls(lambda state, alpha, form: TO_FORMAT[form](state, alpha, names), lambda state: to_peft(state, names))


KEY_NAMES = {"flux1": KeyNames.of(FLUX_1), "flux2": KeyNames.of(KLEIN)}
"""By `Family.key_names`."""


def place_in_sd_scripts(path: str) -> tuple[str, str, str, int, int] | None:
    """Where sd-scripts have a module of FLUX.1's transformer (`transformer_blocks.7.attn.to_q`); None where nowhere.

    Their module, the same with `#` for the block's number, that number, which of its projections, and of how many.
    """
    number, pattern = _take_number(f"transformer.{path}")
    if pattern not in FLUX_1.to_sd_scripts:
        return None
    name, index = FLUX_1.to_sd_scripts[pattern]
    return name.replace("#", number), name, number, index, len(FLUX_1.from_sd_scripts[name])


def _scaled(modules: Mapping[str, LoraModule]) -> dict[str, LoraModule]:
    """The same modules with alpha = rank: their scales are in the ups."""
    return {
        path: module
        if module.scale == 1
        else LoraModule(module.down, times(module.up, module.scale), float(module.rank))
        for path, module in modules.items()
    }


def _with_peft_names(modules: Mapping[str, LoraModule]) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    for path, module in modules.items():
        out[f"{path}.lora_A.weight"] = module.down
        out[f"{path}.lora_B.weight"] = module.up
        out[f"{path}.alpha"] = alpha_tensor(module.alpha, (torch.float32, torch.float64))
    return out


def _parse(
    state: Mapping[str, Tensor], alpha: float | Mapping[str, float] | None, names: Names
) -> dict[str, LoraModule]:
    """Any family of names -> modules by their diffusers path, with `transformer.` or `text_encoder.` in front."""
    kind = detect_format(state)
    if kind == "comfyui":
        parts = {peft: sd for sd, part in _SD_PARTS.items() for peft, same in _PEFT_PARTS.items() if part == same}
        state = {_sd_part(_renamed(key, names.from_comfyui), parts): tensor for key, tensor in state.items()}
        kind = "sd-scripts"
    from_sd = kind == "sd-scripts"
    known: Container[str] = names.from_sd_scripts if from_sd else names.to_sd_scripts
    parts_of = _SD_PARTS if from_sd else _PEFT_PARTS
    unknown: list[str] = []
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        suffix = next((s for s in parts_of if key.endswith(s)), "")
        name = ("transformer." if kind == "peft" else "") + key.removesuffix(suffix)
        if name.startswith("text_encoder.encoder."):  # transformers 5 has no `text_model` inside CLIPTextModel
            name = name.replace("text_encoder.", "text_encoder.text_model.", 1)
        if suffix and _take_number(name)[1] in known:
            found.setdefault(name, {})[parts_of[suffix]] = tensor
        else:
            unknown.append(key)
    if unknown:
        raise LoraFormatError(
            f"{len(unknown)} of {len(state)} tensors belong to no {names.title} LoRA: {_first(unknown)}. Only plain "
            "LoRA (down, up, alpha) of FLUX.1's or klein's transformer and of CLIP-L has both forms; use a DoRA, LoKr "
            "or LoHa, a LoRA of T5 or of another model, as it is in the program that wrote it."
        )
    modules: dict[str, LoraModule] = {}
    for name, parts in found.items():
        module = _checked(name, parts, alpha)
        if from_sd:
            number, pattern = _take_number(name)
            paths = [path.replace("#", number) for path in names.from_sd_scripts[pattern]]
            split = split_fused(name, module, len(paths)) if len(paths) > 1 else [_swapped(paths[0], module)]
            modules.update({path: part for path, part in zip(paths, split, strict=True) if part is not None})
        else:
            modules[name] = module
    return modules


def _sd_part(key: str, parts: Mapping[str, str]) -> str:
    """A key with sd-scripts' `.lora_down.weight` for peft's `.lora_A.weight`, which some write below these names."""
    end = next((end for end in parts if key.endswith(end)), "")
    return key.removesuffix(end) + parts[end] if end else key


def _checked(name: str, parts: Mapping[str, Tensor], alpha: float | Mapping[str, float] | None) -> LoraModule:
    if not {"down", "up"} <= set(parts):
        raise LoraFormatError(f"{name} has only {sorted(parts)} of down, up and alpha: the LoRA is not whole.")
    down, up = parts["down"], parts["up"]
    if down.ndim != 2 or up.ndim != 2 or down.shape[0] != up.shape[1] or down.shape[0] == 0:
        raise LoraFormatError(
            f"{name}: down {tuple(down.shape)} and up {tuple(up.shape)} are not (rank, in) and (out, rank)."
        )
    if down.dtype not in _FLOATS or up.dtype not in _FLOATS:
        raise LoraFormatError(f"{name} is {down.dtype} / {up.dtype}; bfloat16, float16, float32 or float64 is needed.")
    if "alpha" in parts:
        if parts["alpha"].numel() != 1:
            raise LoraFormatError(f"{name}: alpha has {parts['alpha'].numel()} values, not one.")
        value = float(parts["alpha"].item())
    elif alpha is None:
        value = float(down.shape[0])
    else:
        given = alpha.get(name, alpha.get(name.removeprefix("transformer."))) if isinstance(alpha, Mapping) else alpha
        if given is None:
            raise LoraFormatError(f"no alpha was given for {name}.")
        # float32 first: then a sum of three or four of them is exact in float64 and divides back to the same number.
        value = torch.tensor(float(given), dtype=torch.float32).item()
    if not math.isfinite(value):
        raise LoraFormatError(f"{name}: alpha is {value}.")
    return LoraModule(down, up, value)


def _swapped(path: str, module: LoraModule) -> LoraModule:
    """The module itself, or where diffusers has its output's halves the other way round, with them changed over."""
    if path != _SWAPPED_HALVES:
        return module
    if module.up.shape[0] % 2:
        raise LoraFormatError(f"{path}: it should write a shift and a scale, and writes {module.up.shape[0]} features.")
    return LoraModule(module.down, torch.cat(module.up.chunk(2)[::-1]), module.alpha)


def _refuse_what_diffusers_misreads(modules: Mapping[str, LoraModule]) -> None:
    # diffusers makes peft patterns of the alphas' names, and peft matches a pattern at the end of a module's name.
    final = modules.get("transformer.proj_out")
    blocks = [m for path, m in modules.items() if path.startswith("transformer.single_") and path.endswith(".proj_out")]
    if final is not None and any(module.alpha != final.alpha for module in blocks):
        raise LoraFormatError(
            "the final layer and the single blocks have different alphas, which diffusers mixes up (both are called "
            "proj_out there). Leave the final layer out, or keep the file in sd-scripts' form."
        )
    if len({m.alpha for path, m in modules.items() if path.startswith("text_encoder.")}) > 1:
        raise LoraFormatError(
            "the text encoder's modules have different alphas, of which diffusers reads one only. Keep the file in "
            "sd-scripts' form."
        )


def _take_number(name: str) -> tuple[str, str]:
    """`transformer.transformer_blocks.7.attn.to_q` -> ("7", `transformer.transformer_blocks.#.attn.to_q`)."""
    match = _BLOCK_NUMBER.search(name)
    return (match[0], name[: match.start()] + "#" + name[match.end() :]) if match else ("", name)


def _first(keys: Sequence[str]) -> str:
    return ", ".join(repr(key) for key in keys[:3]) + (", …" if len(keys) > 3 else "") if keys else "none at all"
