"""The model card: what the Hub reads (YAML) and what a person does (Markdown)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fluxcore.models.registry import BaseModel
from fluxcore.runs import RunFolder, RunState
from fluxcore.runs.samples import by_prompt, drawn, sample_file
from fluxcore.training.prompts import parse_prompt

MARK = (
    "<!-- Written by FluxGym, which writes it anew when the LoRA is published again. Take this line out to keep it. -->"
)
PICTURES = "images"
TAGS = ["text-to-image", "flux", "lora", "diffusers", "template:sd-lora", "fluxgym"]
"""As other trainers of FLUX LoRAs tag theirs; the template shows the samples as a gallery."""
TOLD = {
    "steps": "Steps",
    "max_train_epochs": "Epochs",
    "resolution": "Resolution",
    "network_dim": "Rank",
    "network_alpha": "Alpha",
    "learning_rate": "Learning rate",
    "optimizer_type": "Optimizer",
    "train_batch_size": "Batch size",
    "seed": "Seed",
}


def newest_samples(folder: RunFolder, state: RunState) -> list[tuple[str, Path]]:
    """The newest sample of each prompt, in the prompts' order: the prompt without its flags, and its file."""
    newest = [line[-1] for line in by_prompt(drawn(folder, state)).values()]
    return [(_text(str(one.get("prompt") or "")), file) for one in newest if (file := sample_file(folder, one))]


def model_card(
    repo: str, file: str, state: RunState, model: BaseModel | None, pictures: Sequence[tuple[str, str]]
) -> str:
    """README.md of a LoRA file in `repo`.

    `pictures`: prompts, and the path in the repository of the sample of each. `model`: None where it is not known.
    """
    from huggingface_hub import ModelCardData

    config = state.config
    trigger = " ".join(str(config.get("concept_sentence") or "").replace("`", "").split())
    about: dict[str, Any] = {"tags": TAGS}
    if pictures:
        about["widget"] = [{"text": text or "-", "output": {"url": path}} for text, path in pictures]
    if trigger:
        about["instance_prompt"] = trigger
    if model is not None:
        about |= _licence(model)
        if model.hub_name:
            about["base_model"] = model.hub_name
    header = ModelCardData(**about).to_yaml().strip()
    title = _plain(state.title or state.name)
    base = _plain(model.title if model else str(config.get("base_model") or "FLUX"))
    parts = [f"---\n{header}\n---", MARK, f"# {title}", f"A LoRA of {base}, trained with FluxGym."]
    if pictures:
        parts.append("<Gallery />")
    parts.append(f"## Trigger word\n\nUse `{trigger}` in the prompt." if trigger else "## Trigger word\n\nIt has none.")
    parts.append(f"## Use\n\nComfyUI, Forge, InvokeAI and others take the file [{file}]({file}) as a LoRA.")
    if model is not None and model.hub_name:
        parts.append(f"With diffusers:\n\n{_snippet(repo, file, trigger, model.hub_name)}")
    parts.append("## Training\n\n| | |\n| --- | --- |\n" + "\n".join(f"| {a} | {b} |" for a, b in _told(file, state)))
    return "\n\n".join(parts) + "\n"


def _snippet(repo: str, file: str, trigger: str, base: str) -> str:
    return (
        "```python\nimport torch\nfrom diffusers import DiffusionPipeline\n\n"
        f"pipe = DiffusionPipeline.from_pretrained({base!r}, torch_dtype=torch.bfloat16).to('cuda')\n"
        f"pipe.load_lora_weights({repo!r}, weight_name={file!r})\n"
        f"pipe({trigger or 'a prompt'!r}).images[0].save('picture.png')\n```"
    )


def _told(file: str, state: RunState) -> list[tuple[str, str]]:
    values = {**state.config, "steps": step_of(file, state)}
    return [(label, _plain(str(values[key]))) for key, label in TOLD.items() if values.get(key) not in (None, "")]


def step_of(file: str, state: RunState) -> int | None:
    """The step after which a LoRA file was saved; None where the log has no word of it."""
    if file == state.weights:
        return state.step
    return state.checkpoints[file].step if file in state.checkpoints else None


def _licence(model: BaseModel) -> dict[str, str]:
    """A LoRA is under its base model's licence: the Hub's own names for it."""
    if model.licence == "unknown":
        return {}
    if model.licence == "Apache-2.0":
        return {"license": "apache-2.0"}
    name = re.sub(r"[^a-z0-9]+", "-", model.licence.lower()).strip("-")
    link = {"license_link": f"https://huggingface.co/{model.hub_name}/blob/main/LICENSE.md"} if model.hub_name else {}
    return {"license": "other", "license_name": f"{name}-license", **link}


def _text(line: str) -> str:
    try:
        return parse_prompt(line).text
    except ValueError:
        return line


def _plain(text: str) -> str:
    """On one line, and no Markdown or HTML."""
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", " ".join(text.split()))
