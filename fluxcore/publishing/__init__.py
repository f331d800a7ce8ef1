"""A run's LoRA on the Hugging Face Hub: with a model card, its samples and its base model's licence.

What is asked for is checked here; the sending is a process of its own (`hub.py`), which outlives page and browser.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fluxcore.errors import UserError
from fluxcore.jobs import Job, forget_job, read_job, start_job, stop_job
from fluxcore.models.hub_token import token_source
from fluxcore.runs import best_weights, list_checkpoints, load_run

TOKENS = "huggingface.co/settings/tokens"
NO_TOKEN = (
    f"publishing needs a token of the Hugging Face Hub that may write: make one at {TOKENS} and "
    "give it on the page Settings, or set HF_TOKEN"
)


class PublishError(UserError):
    """It can't be published; says what to do."""


@dataclass(frozen=True)
class Wish:
    """What goes where.

    `repo`: a name, then of the token's account, or `owner/name`; `file`: a LoRA file of the run; `samples`: with them.
    """

    repo: str
    file: str
    public: bool = False
    samples: bool = True


def publishable(outputs: Path, name: str) -> list[str]:
    """The run's LoRA files that are whole, the one to take first: the best, else the finished one, else the newest."""
    folder, state = load_run(outputs, name)
    files = [item for item in list_checkpoints(folder, state) if item.kind == "weights" and item.complete]
    best = best_weights(folder, state)
    first = [best.path if best else "", state.weights or ""]

    def order(file: str) -> int:
        return first.index(file) if file in first else len(first)

    return sorted((item.name for item in reversed(files)), key=order)


def check_wish(outputs: Path, name: str, wish: Wish) -> None:
    """Raise PublishError where it can be seen at once that it can't be."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not token_source():
        raise PublishError(NO_TOKEN)
    try:
        validate_repo_id(wish.repo)
    except HFValidationError:
        raise PublishError(
            f"{wish.repo!r} can't be a repository: use letters, digits, - _ and ., with or without the owner before a "
            "slash, as in me/my-cat-lora"
        ) from None
    if wish.file not in (there := publishable(outputs, name)):
        raise PublishError(f"{name} has no whole LoRA file {wish.file}; it has {', '.join(there) or 'none'}")


def publish(outputs: Path, name: str, wish: Wish, source: str) -> None:
    """Begin to send it, unless that is under way. `source` is who asks: app, cli or api. Raises UserError."""
    check_wish(outputs, name, wish)
    more = [flag for flag, wanted in (("--public", wish.public), ("--samples", wish.samples)) if wanted]
    given = ["--outputs", str(outputs.absolute()), "--repo", wish.repo, "--file", wish.file, "--source", source]
    start_job(outputs, _job(name), "fluxcore.publishing.hub", [*given, *more, name])


def publishing(outputs: Path, name: str) -> Job | None:
    """How that stands; None where nothing was asked for."""
    return read_job(outputs, _job(name))


def stop_publishing(outputs: Path, name: str) -> None:
    """End it; the repository then has all of it or nothing new."""
    stop_job(outputs, _job(name))


def forget_publishing(outputs: Path, name: str) -> None:
    """Forget how it ended."""
    forget_job(outputs, _job(name))


def _job(name: str) -> str:
    return f"publish-{name}"
