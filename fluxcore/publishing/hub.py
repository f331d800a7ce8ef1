"""Sending a LoRA to the Hub: `python -m fluxcore.publishing.hub --job FILE … NAME`, or in the CLI's own process.

All of it becomes one commit: the repository has the whole LoRA or nothing new.
"""

from __future__ import annotations

import argparse
import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fluxcore.jobs import working
from fluxcore.models.registry import BaseModel, ModelNotFound, find_model, use_outputs
from fluxcore.runs import RunError, load_run
from fluxcore.runs.requests import append_event

from . import PublishError, Wish, check_wish
from .card import MARK, PICTURES, model_card, newest_samples

CARD = "README.md"
Progress = Callable[[float, float], None]


def send(outputs: Path, name: str, wish: Wish, source: str, on_progress: Progress) -> str:
    """Send it; the address where it stands then. `on_progress(done, total)` counts files. Raises UserError."""
    check_wish(outputs, name, wish)
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    folder, state = load_run(outputs, name)
    model = _model(str(state.config.get("base_model") or ""))
    samples = newest_samples(folder, state) if wish.samples else []
    hub = huggingface_hub.HfApi(endpoint=constants.ENDPOINT)
    try:
        repo = hub.create_repo(wish.repo, private=not wish.public, exist_ok=True).repo_id
        found = hub.model_info(repo)
        private = bool(found.private)
        if private == wish.public:
            there, other = ("private", "make it public on the Hub") if private else ("public", "choose public")
            raise PublishError(f"{repo} is there already and {there}: {other}, or take another name")
        files: dict[str, Any] = {wish.file: folder.path / wish.file}
        files |= {f"{PICTURES}/{file.name}": file for _, file in samples}
        if _may_write_card(hub, repo, found.sha):
            pictures = [(text, f"{PICTURES}/{file.name}") for text, file in samples]
            files[CARD] = model_card(repo, wish.file, state, model, pictures).encode()
        adds = [huggingface_hub.CommitOperationAdd(path, content) for path, content in files.items()]
        for done, one in enumerate(adds):  # the first one, the LoRA, is nearly all of it
            on_progress(done, len(adds))
            hub.preupload_lfs_files(repo, [one], free_memory=False)
        # On top of what was looked at: else a card that somebody wrote meanwhile would go.
        commit = hub.create_commit(repo, adds, commit_message=f"{wish.file} by FluxGym", parent_commit=found.sha)
    except PublishError:
        raise
    except Exception as error:
        raise _explained(wish.repo, error) from error
    on_progress(len(adds), len(adds))
    url = f"{constants.ENDPOINT}/{repo}"
    told = {"repo": repo, "url": url, "file": wish.file, "private": private, "revision": commit.oid}
    try:
        append_event(folder, source, "run.published", told)
    except RunError as error:
        raise PublishError(f"it stands at {url}, but the run doesn't know of it: {error}") from None
    return url


def _may_write_card(hub: Any, repo: str, revision: str | None) -> bool:
    """Whether the repository has no card, or one that nobody has made their own."""
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return MARK in Path(hub.hf_hub_download(repo, CARD, revision=revision)).read_text(
            encoding="utf-8", errors="replace"
        )
    except EntryNotFoundError:
        return True


def _model(name: str) -> BaseModel | None:
    try:
        return find_model(name)
    except ModelNotFound:  # its entry or its folder is gone; what was trained on it is not
        return None


def _explained(repo: str, error: Exception) -> Exception:
    """The Hub's error as what to do; the error itself where it is none of the Hub's, the network's or the disk's."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, OfflineModeIsEnabled):
        return PublishError("HF_HUB_OFFLINE forbids to ask the Hub: unset it")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return PublishError("the Hub does not accept the token: make a new one at huggingface.co/settings/tokens")
    if status == 403:
        return PublishError(
            f"the token may not write {repo}: make one of the kind 'write' at huggingface.co/settings/tokens, or name "
            "a repository of its own account"
        )
    if status == 412:
        return PublishError(f"{repo} was changed by somebody meanwhile: publish again")
    if isinstance(error, FileNotFoundError) and not isinstance(error, HfHubHTTPError):
        return PublishError("one of its files went away meanwhile: publish again")
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return error  # the disk's own, of which everybody says what to do
    if isinstance(error, HfHubHTTPError):
        return PublishError(f"the Hub refused it ({str(error).splitlines()[0]}): try again in some minutes")
    cause = error.__cause__ if isinstance(error, RuntimeError) else None
    if isinstance(error, OSError) or cause is not None or type(error).__module__.startswith("httpx"):
        return PublishError(
            "the Hub could not be reached: check the machine's connection to the internet, and publish again; what was "
            "sent is not sent twice"
        )
    return error


def main() -> None:
    """The process."""
    parser = argparse.ArgumentParser()
    for name, kind in (("--job", Path), ("--outputs", Path), ("--repo", str), ("--file", str), ("--source", str)):
        parser.add_argument(name, type=kind, required=True)
    parser.add_argument("--public", action="store_true")
    parser.add_argument("--samples", action="store_true")
    parser.add_argument("name")
    given = parser.parse_args()
    use_outputs(given.outputs)
    with working(given.job) as say:
        say.unit = "files"
        wish = Wish(given.repo, given.file, given.public, given.samples)
        send(given.outputs, given.name, wish, given.source, say)


if __name__ == "__main__":
    main()
