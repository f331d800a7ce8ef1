"""The forms of a caption: tags in another order, the first ones kept. Which form a step sees, `data.py` draws."""

from __future__ import annotations

from fluxcore.dataset.layout import Example

from .randomness import seed_for


def caption_forms(example: Example, seed: int, count: int) -> list[str]:
    """The forms in which an example's caption is trained: itself, or `count` orders of its tags (commas part them).

    A fixed number, because each is encoded beforehand and the text encoders are freed. The subset's `keep_tokens`
    first tags stay where they are. A function of (seed, caption) alone.
    """
    tags = [tag.strip() for tag in example.caption.split(",")]
    kept, moved = tags[: example.subset.keep_tokens], tags[example.subset.keep_tokens :]
    if not example.subset.shuffle_caption or len(moved) < 2:
        return [example.caption]

    def shuffled(form: int) -> list[str]:
        order = sorted(range(len(moved)), key=lambda tag: seed_for(seed, "tags", example.caption, form, tag))
        return [moved[tag] for tag in order]

    return [", ".join(kept + shuffled(form)) for form in range(count)]
