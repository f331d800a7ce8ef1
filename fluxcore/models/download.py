"""Fetching base models from the Hugging Face Hub into its cache on this machine. No torch."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import DownloadError

DOWNLOAD_PATTERNS = ["model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"]
Progress = Callable[[float, float], None]


def fetch_repository(repo: str, on_progress: Progress | None = None) -> Path:
    """The snapshot of a repository in diffusers' layout; `on_progress(done, total)` counts files.

    With HF_TOKEN where it is set. Raises DownloadError; OSError where the disk is full.
    """
    import huggingface_hub
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if on_progress and self.total:
                on_progress(float(self.n), float(self.total))
            return shown

    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo, allow_patterns=DOWNLOAD_PATTERNS, token=os.environ.get("HF_TOKEN"), tqdm_class=Bar
            )
        )
    except OSError as error:  # as all of theirs
        raise explained(repo, error) from None


def fetch_file(repo: str, file: str, on_progress: Progress | None = None) -> Path:
    """One file of a repository; `on_progress(done, total)` counts bytes. Raises as fetch_repository does."""
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(repo, file, token=os.environ.get("HF_TOKEN")))
    except OSError as error:
        raise explained(repo, error) from None


def explained(repo: str, error: OSError) -> Exception:
    """A DownloadError that says what to do; the error itself where it is the disk's, which says so."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        page = f"https://huggingface.co/{repo}"
        if get_token():
            return DownloadError(f"accept the licence of {repo} at {page}, with HF_TOKEN's account")
        return DownloadError(
            f"{repo} is gated: accept its licence at {page}, and set HF_TOKEN to a token of that account"
        )
    if isinstance(error, RepositoryNotFoundError):
        return DownloadError(f"there is no model {repo} on the Hub, or HF_TOKEN may not see it")
    if isinstance(error, LocalEntryNotFoundError):
        return DownloadError(
            f"{repo} could not be fetched: check the machine's connection to the internet (and its proxy)"
        )
    response: Any = getattr(error, "response", None)
    if getattr(response, "status_code", None) == 401:
        return DownloadError(
            "the Hub does not accept HF_TOKEN: make a new one at https://huggingface.co/settings/tokens and set it"
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return error
    first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DownloadError(f"{repo} could not be downloaded ({first_line}); check the network and retry")
