"""What a step is trained on: pictures, captions and noise, all of them functions of (seed, step, sample)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fluxcore.config import RunConfig
from fluxcore.dataset.layout import Example, Layout
from fluxcore.models.family import Family, TextEncoder
from fluxcore.models.loading import PromptEmbedding
from fluxcore.models.locating import Base, files_behind
from fluxcore.runs.state_files import file_hash

from . import randomness
from .cache import (
    Cache,
    encode_pictures_into,
    encode_prompts,
    model_key,
    picture_key,
    prompt_embedding,
    text_key,
)
from .captions import caption_forms
from .failures import Exit, TrainingError

DATASET_FILE = "dataset.json"
Phase = Callable[[int, str], Callable[[float, float], None]]
"""Announces that so many captions or pictures are encoded; returns what is told of each."""


@dataclass
class Batch:
    """Samples of one size: `clean` latents and `noise` (B, C, h, w), `normal` (B,) for the noise levels, `prompts`.

    `weights` (B,) of their losses. `first` is the first sample's number within its step.
    """

    clean: torch.Tensor
    noise: torch.Tensor
    normal: torch.Tensor
    prompts: list[PromptEmbedding]
    weights: torch.Tensor
    first: int = 0

    def __len__(self) -> int:
        return len(self.clean)

    def halves(self) -> list[Batch]:
        """The same samples as two batches, or as one where there is but one."""
        middle = len(self) // 2
        return [self._part(0, middle), self._part(middle, len(self))] if middle else [self]

    def _part(self, start: int, end: int) -> Batch:
        tensors = (self.clean[start:end], self.noise[start:end], self.normal[start:end])
        return Batch(*tensors, self.prompts[start:end], self.weights[start:end], self.first + start)


class TrainingData:
    """The encoded pictures and captions of a run, and its batches by step."""

    def __init__(
        self, config: RunConfig, layout: Layout, cache: Cache, base: Base, tokens: int, dtype: torch.dtype
    ) -> None:
        """`base`: where the model lies; `dtype`: of the text encoders. Nothing is encoded yet."""
        self._config, self._layout, self._cache = config, layout, cache
        self._tokens, self._dtype = tokens, dtype
        self._text_model = model_key(files_behind(base, ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")))
        vae = model_key(files_behind(base, ("vae",)))
        forms = config.shuffle_caption_forms
        everything = (*layout.examples, *layout.held_out)
        self._forms = [caption_forms(one, config.seed, forms) for one in layout.examples]
        hashes = {path: file_hash(path) for path in dict.fromkeys(one.picture.path for one in everything)}
        self._chosen: tuple[int, list[list[int]]] = 0, []
        self._texts: dict[str, str] = {}
        self._pictures: dict[str, tuple[Path, tuple[int, int], bool]] = {}

        def keys(one: Example, flips: tuple[bool, ...]) -> list[str]:
            found = {picture_key(vae, hashes[one.picture.path], one.size, flip): flip for flip in flips}
            self._pictures |= {key: (one.picture.path, one.size, flip) for key, flip in found.items()}
            return list(found)

        self._latents = [keys(one, (False, True) if one.subset.flip_aug else (False,)) for one in layout.examples]
        self._held_latents = [keys(one, (False,))[0] for one in layout.held_out]

    @property
    def fingerprint(self) -> str:
        """What an epoch consists of, in hex: pictures, sizes, captions, repeats and batches."""
        layout = self._layout
        captions = [[hashlib.sha256(form.encode()).hexdigest() for form in forms] for forms in self._forms]
        what = [self._latents, captions, layout.items, layout.groups, layout.batch_sizes]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Write the fingerprint into a state's folder, and how many batches a step has."""
        about = {"sha256": self.fingerprint, "batches_per_step": self._config.batches_per_step}
        (folder / DATASET_FILE).write_text(json.dumps(about))

    def changed_since(self, folder: Path) -> bool:
        """Whether a state's folder tells of another dataset; one that tells of none is taken to be the same."""
        return self._told(folder).get("sha256", self.fingerprint) != self.fingerprint

    def batches_before(self, folder: Path) -> int:
        """How many batches a step had when the state was saved; where it doesn't tell, as many as now."""
        found = self._told(folder).get("batches_per_step")
        return found if isinstance(found, int) else self._config.batches_per_step

    @staticmethod
    def _told(folder: Path) -> dict[str, Any]:
        try:
            found = json.loads((folder / DATASET_FILE).read_text())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def encode_text(self, prompts: list[str], load: Callable[[], TextEncoder], phase: Phase) -> None:
        """Encode what is not in the cache: captions, the empty one, and `prompts`. `load` is called only where needed.

        What the cache has of before a caption or picture was edited goes.
        """
        captions = [form for forms in self._forms for form in forms]
        captions += [one.caption for one in self._layout.held_out]
        every = dict.fromkeys(("", *captions, *prompts))
        self._texts = {prompt: text_key(self._text_model, self._dtype, self._tokens, prompt) for prompt in every}
        self._cache.forget_others((*self._texts.values(), *self._pictures))
        missing = {key: prompt for prompt, key in self._texts.items() if key not in self._cache}
        if missing:
            text = load()
            encode_prompts(self._cache, text, missing, phase(len(missing), "captions"))

    def encode_pictures(self, family: Family, pipeline: Any, phase: Phase) -> None:
        """Encode the pictures that are not in the cache."""
        missing = {key: one for key, one in self._pictures.items() if key not in self._cache}
        if missing:
            report = phase(len(missing), "pictures")
            encode = partial(family.encode_pictures, pipeline)
            encode_pictures_into(self._cache, encode, missing, self._config.workers, report)

    def prompt(self, text: str) -> PromptEmbedding:
        """The embedding of a prompt that was encoded."""
        try:
            return prompt_embedding(self._cache, self._texts[text])
        except KeyError:
            raise _lost() from None

    def step(self, step: int, rank: int = 0, ranks: int = 1, even: bool = False) -> list[Batch]:
        """The batches of optimizer step `step` (from 1) that process `rank` of so many trains: every so-manieth.

        A step has `batches_per_step` of them or, at the end of an epoch, fewer. With `even` a process that has one
        less than others trains one more that counts nothing.
        """
        batches, first = [], 0
        chosen = self._items(step)
        for number, items in enumerate(chosen):
            if number % ranks == rank:
                batches.append(self._batch(step, items, first))
            first += len(items)
        if even and len(batches) * ranks < len(chosen):
            idle = self._batch(step, chosen[0], 0)
            batches.append(replace(idle, weights=torch.zeros_like(idle.weights)))
        return batches

    def samples(self, step: int) -> int:
        """How many samples an optimizer step has, in all processes together."""
        return sum(map(len, self._items(step)))

    def _items(self, step: int) -> list[list[int]]:
        """The examples of a step, by batch."""
        if self._chosen[0] != step:  # asked for twice a step
            layout, config = self._layout, self._config
            every = randomness.step_items(config.seed, step, layout.groups, layout.batch_sizes, config.batches_per_step)
            self._chosen = step, [[layout.items[item] for item in items] for items in every]
        return self._chosen[1]

    def _batch(self, step: int, chosen: list[int], first: int) -> Batch:
        seed = self._config.seed
        numbered = list(enumerate(chosen, first))
        clean = torch.stack([self._clean(step, number, index) for number, index in numbered])
        return Batch(
            clean,
            randomness.step_noise(seed, step, len(chosen), tuple(clean.shape[1:]), first),
            randomness.step_normal(seed, step, len(chosen), first),
            [self._prompt(step, number, index) for number, index in numbered],
            torch.tensor([self._weight(index) for index in chosen]),
            first,
        )

    def _clean(self, step: int, number: int, index: int) -> torch.Tensor:
        keys = self._latents[index]
        flipped = len(keys) > 1 and randomness.step_uniform(self._config.seed, step, "flip", number) < 0.5
        return self._read(keys[flipped])

    def _prompt(self, step: int, number: int, index: int) -> PromptEmbedding:
        seed, forms = self._config.seed, self._forms[index]
        rate = self._layout.examples[index].subset.caption_dropout_rate
        if rate and randomness.step_uniform(seed, step, "drop", number) < rate:
            return self.prompt("")
        if len(forms) == 1:
            return self.prompt(forms[0])
        return self.prompt(forms[int(randomness.step_uniform(seed, step, "form", number) * len(forms))])

    def _weight(self, index: int) -> float:
        return self._config.prior_loss_weight if self._layout.examples[index].subset.is_reg else 1.0

    def held_out(self) -> list[tuple[torch.Tensor, PromptEmbedding]]:
        """Latents (C, h, w) and caption of each picture that is kept for validation."""
        return [
            (self._read(key), self.prompt(one.caption))
            for key, one in zip(self._held_latents, self._layout.held_out, strict=True)
        ]

    def _read(self, key: str) -> torch.Tensor:
        try:
            return self._cache[key]["latents"]
        except KeyError:
            raise _lost() from None


def _lost() -> TrainingError:
    return TrainingError(
        Exit.CRASH, "a file of the run's .cache folder went away or was damaged during the training: resume the run"
    )
