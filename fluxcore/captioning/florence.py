"""Captions by Florence-2: `python -m fluxcore.captioning.florence --job FILE [--trigger WORD] [--all] FOLDER`.

FluxGym's way: the task `<DETAILED_CAPTION>`, the trigger word in front. Each caption is kept as it is made, so that a
job that is stopped has done what it has done; a picture that got a caption meanwhile, from a person, keeps that one.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from fluxcore.dataset import PictureError, list_pictures, read_caption, write_caption
from fluxcore.dataset.pictures import decoded
from fluxcore.errors import UserError
from fluxcore.jobs import working

TASK = "<DETAILED_CAPTION>"
MOST_TOKENS, BEAMS = 256, 3
LEFT_OVER = ("<s>", "</s>", "<pad>")
PREFIXES = ("The image shows ", "The image is ", "In this image we can see ", "In this image, we can see ")
"""What Florence-2 begins nearly every caption with: it says nothing of the picture."""

Describe = Callable[[Image.Image], str]
Say = Callable[[float, float], None]


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--trigger", default="")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    os.nice(5)
    with working(arguments.job) as say:
        say.unit = "bytes"
        place = find(arguments.model, say)
        say.unit = "pictures"
        say(0, 0)
        caption_folder(arguments.folder, load(place), say, arguments.trigger, every=arguments.all)


def find(model: str, say: Say) -> Path:
    """The model's folder on this machine, fetched where it is a repository of the Hub. Raises UserError."""
    folder = Path(model).expanduser()
    if folder.is_absolute() or model.startswith((".", "~")):
        if not (folder / "config.json").is_file():
            raise UserError(f"there is no Florence-2 in {folder}: it has no config.json")
        return folder
    from fluxcore.models.download import fetch_repository

    return fetch_repository(model, say, patterns=["*.json", "*.txt", "*.safetensors"], index="config.json")


def load(folder: Path) -> Describe:
    """Florence-2 as a function from a picture to a caption. Raises UserError where the folder holds another model."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoProcessor, Florence2ForConditionalGeneration

    device = "cuda" if torch.cuda.is_available() else "cpu"
    precision = torch.bfloat16 if device == "cuda" else torch.float32
    try:
        processor: Any = AutoProcessor.from_pretrained(folder, local_files_only=True)
        model: Any = Florence2ForConditionalGeneration.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=precision
        )
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{folder} holds no Florence-2 in transformers' own layout ({first})") from None
    model.to(device).eval()

    def describe(image: Image.Image) -> str:
        inputs = processor(text=TASK, images=image, return_tensors="pt").to(device, precision)
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=MOST_TOKENS, num_beams=BEAMS, do_sample=False)
        # The task's answer is plain text: there is nothing in it for the processor's parser of boxes and regions.
        return tidy(str(processor.batch_decode(tokens, skip_special_tokens=False)[0]))

    return describe


def tidy(text: str) -> str:
    """The caption without the model's marks and its empty opening, its white space folded."""
    for mark in LEFT_OVER:
        text = text.replace(mark, " ")
    text = " ".join(text.split())
    opening = next((prefix for prefix in PREFIXES if text.startswith(prefix)), "")
    return text.removeprefix(opening)


def caption_folder(folder: Path, describe: Describe, say: Say, trigger: str = "", *, every: bool = False) -> int:
    """Caption the pictures of a folder that have none (or `every` one); how many were. What can't be read is left."""
    wanted = [picture for picture in list_pictures(folder) if every or picture.caption is None]
    done = 0
    say(0, len(wanted))
    for number, picture in enumerate(wanted):
        try:
            with decoded(picture.path) as image:
                text = describe(ImageOps.exif_transpose(image).convert("RGB"))
        except PictureError:
            text = ""
        if text and read_caption(picture.path) == picture.caption and picture.path.exists():
            write_caption(picture.path, f"{trigger}, {text}" if trigger else text)
            done += 1
        say(number + 1, len(wanted))
    return done


if __name__ == "__main__":
    main()
