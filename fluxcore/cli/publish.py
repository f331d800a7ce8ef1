"""`publish`: a run's LoRA on the Hugging Face Hub."""

from __future__ import annotations

from typing import Annotated

import typer

from .options import Name, Outputs, outputs_folder
from .out import note, say


def publish(
    name: Name,
    repo: Annotated[
        str | None,
        typer.Option(
            metavar="REPO",
            help="A name, then in the token's account, or OWNER/NAME (default: the run's).",
            show_default=False,
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Which of its LoRA files (default: the best, else the last).", show_default=False
        ),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Everybody sees it; else only the account.")] = False,
    no_samples: Annotated[
        bool, typer.Option("--no-samples", help="Without the newest picture of each prompt.")
    ] = False,
    outputs: Outputs = None,
) -> None:
    """Put a LoRA on the Hugging Face Hub, with a model card. The token comes from HF_TOKEN or the page Settings."""
    from fluxcore.models.registry import use_outputs
    from fluxcore.publishing import PublishError, Wish, publishable
    from fluxcore.publishing.hub import send

    root = use_outputs(outputs_folder(outputs))
    files = publishable(root, name)
    if not files:
        raise PublishError(f"{name} has no LoRA file yet")
    wish = Wish(repo or name, file or files[0], public=public, samples=not no_samples)

    def tell(done: float, total: float) -> None:
        if done < total:
            note(f"file {done + 1:.0f} of {total:.0f}")

    note(f"sending {wish.file}")
    say(send(root, name, wish, "cli", tell))
