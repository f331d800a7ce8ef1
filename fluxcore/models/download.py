"""Fetching base models from the Hugging Face Hub into its cache on this machine. No torch.

The Hub's library knows its addresses, its cache and its errors. What it lacks is here: a download that was broken off
(by a kill, a full disk, a lost connection) goes on where it stopped, in the next attempt too; what was fetched is held
against the Hub's hash of it; and progress is told in bytes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fluxcore.atomic import sync_folder
from fluxcore.runs.exits import END_RUNNER
from fluxcore.units import size

from .errors import DownloadError

DOWNLOAD_PATTERNS = ["model_index.json", "*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"]
INDEX = "model_index.json"
"""Fetched last: a snapshot that has it is whole."""
ROUNDS = 3
"""How often a file is begun again or gone on with before giving up; each of them tries several times itself."""
LOCK_SECONDS = 0.5
Progress = Callable[[float, float], None]


def fetch_repository(
    repo: str,
    on_progress: Progress | None = None,
    *,
    patterns: Sequence[str] = DOWNLOAD_PATTERNS,
    index: str = INDEX,
) -> Path:
    """The snapshot of a repository, in diffusers' layout unless `patterns` and `index` (fetched last) say otherwise.

    `on_progress(done, total)` counts bytes.

    With HF_TOKEN where it is set. What is in the cache already is not fetched again; without a connection the cache has
    to do. Raises DownloadError; OSError where the disk fails.
    """
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils import filter_repo_objects

    with _explaining(repo):
        try:
            info = huggingface_hub.HfApi(endpoint=constants.ENDPOINT).model_info(repo, token=_token())
        except Exception as error:
            if not _is_offline(error) or (cached := _cached(repo, index)) is None:
                raise
            return cached
    names = [sibling.rfilename for sibling in info.siblings or []]
    wanted = sorted(filter_repo_objects(names, allow_patterns=list(patterns)), key=lambda name: name == index)
    if index not in wanted:
        layout = "diffusers'" if index == INDEX else "transformers'"
        raise DownloadError(f"{repo} is no model in {layout} layout: it has no {index}")
    return fetch_files([(repo, name) for name in wanted], on_progress)[-1].parent


def fetch_files(wanted: Iterable[tuple[str, str]], on_progress: Progress | None = None) -> list[Path]:
    """Files as (repository, name), their paths in the order asked for; as fetch_repository otherwise."""
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    found = [_look(repo, name) for repo, name in wanted]
    remotes = [one for one in found if isinstance(one, _Remote)]
    _check_room([remote for remote in remotes if not remote.blob.exists()])
    total, done = sum(remote.bytes for remote in remotes), 0
    for remote in remotes:

        def report(got: int, begin: int = done) -> None:
            if on_progress:
                on_progress(begin + got, total)

        with _explaining(remote.repo):
            _fetch_blob(remote, report)
        done += remote.bytes
        report(0, done)
    return [one if isinstance(one, Path) else _entered(one) for one in found]


@dataclass(frozen=True)
class _Remote:
    """One file on the Hub: where its bytes lie there, and where they go here."""

    repo: str
    name: str
    url: str
    etag: str
    bytes: int
    blob: Path


def _look(repo: str, name: str) -> _Remote | Path:
    """Ask the Hub about one file; its path in the cache where it is there, or where there is no answer."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    url = huggingface_hub.hf_hub_url(repo, name, endpoint=constants.ENDPOINT)
    with _explaining(repo):
        try:
            about = huggingface_hub.get_hf_file_metadata(url, token=_token(), endpoint=constants.ENDPOINT)
        except Exception as error:
            cached = huggingface_hub.try_to_load_from_cache(repo, name)
            if not _is_offline(error) or not isinstance(cached, str):
                raise
            return Path(cached)
    if about.commit_hash:
        cached = huggingface_hub.try_to_load_from_cache(repo, name, revision=about.commit_hash)
        if isinstance(cached, str):
            return Path(cached)
    if about.etag is None or about.size is None:
        raise DownloadError(f"the Hub does not say what {name} of {repo} is: wait some minutes")
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    return _Remote(repo, name, url, about.etag, about.size, folder / "blobs" / about.etag)


def _entered(remote: _Remote) -> Path:
    """The file's path in the cache's snapshot: the library enters what lies among its blobs, and fetches nothing."""
    import huggingface_hub
    from huggingface_hub import constants

    with _explaining(remote.repo):
        return Path(
            huggingface_hub.hf_hub_download(remote.repo, remote.name, token=_token(), endpoint=constants.ENDPOINT)
        )


def _check_room(missing: list[_Remote]) -> None:
    """Raise DownloadError where the disk can't hold what is to be fetched."""
    if not missing:
        return
    folder = missing[0].blob.parent
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(remote.bytes - _partial_bytes(remote) for remote in missing)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DownloadError(
            f"the base model needs {size(needed)} more in {folder.parent.parent}, and {size(free)} are free: make "
            "room, or set HF_HOME to a folder on a larger disk"
        )


def _partial(remote: _Remote) -> Path:
    return remote.blob.with_name(f"{remote.etag}.fluxgym.part")


def _partial_bytes(remote: _Remote) -> int:
    try:
        return _partial(remote).stat().st_size
    except FileNotFoundError:
        return 0


def _fetch_blob(remote: _Remote, on_bytes: Callable[[int], object]) -> None:
    """Put one file's bytes among the cache's blobs, going on with what is there of it. One process at a time."""
    remote.blob.parent.mkdir(parents=True, exist_ok=True)
    for left in reversed(range(ROUNDS)):
        if remote.blob.exists():
            return
        with open(_partial(remote), "ab") as file, _alone(file, remote, on_bytes):
            if remote.blob.exists():  # by whom we waited for
                _partial(remote).unlink(missing_ok=True)
                return
            try:
                _stream(remote, _Counted(file, on_bytes))
            except Exception as error:
                # What came stays for the next round, or the next attempt; a size that is wrong is no beginning.
                if isinstance(error, OSError) and "Consistency check" in str(error):
                    file.truncate(0)
                if left == 0 or not _is_network(error) or getattr(error, "errno", None):
                    raise
                continue
            file.flush()
            if not _is_whole(Path(file.name), remote):
                file.truncate(0)
                continue
            os.fsync(file.fileno())
            os.replace(file.name, remote.blob)
            sync_folder(remote.blob.parent)
            return
    raise DownloadError(
        f"{remote.name} of {remote.repo} came damaged {ROUNDS} times (its hash is another than the Hub's): wait some "
        "minutes, or do without the proxy"
    )


def _stream(remote: _Remote, file: _Counted) -> None:
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    if file.tell() > remote.bytes:
        file.seek(0)
        file.truncate()
    headers = build_hf_headers(token=_token())
    headers["Accept-Encoding"] = "identity"  # else its length, and a part of it, would be of the packed bytes
    http_get(remote.url, file, resume_size=file.tell(), headers=headers, expected_size=remote.bytes)  # type: ignore[arg-type]


class _Counted:
    """A file that tells how many bytes it has; what `on_bytes` raises ends the download."""

    def __init__(self, file: IO[bytes], on_bytes: Callable[[int], object]) -> None:
        self._file, self._on_bytes = file, on_bytes
        self.tell, self.seek, self.truncate, self.flush = file.tell, file.seek, file.truncate, file.flush

    def write(self, data: bytes) -> int:
        written = self._file.write(data)
        self._on_bytes(self._file.tell())
        return written


@contextmanager
def _alone(file: IO[bytes], remote: _Remote, on_bytes: Callable[[int], object]) -> Iterator[None]:
    """Wait until no other process fetches the same file, telling its progress as ours."""
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            on_bytes(_partial_bytes(remote))
            time.sleep(LOCK_SECONDS)
        except OSError:
            break  # a file system without locks: a file that two wrote into is found by its hash
    file.seek(0, os.SEEK_END)
    yield


def _is_whole(path: Path, remote: _Remote) -> bool:
    """Whether a file is the Hub's: its etag is a sha256 (of large files), or git's hash of the content."""
    if path.stat().st_size != remote.bytes:
        return False
    with open(path, "rb") as file:
        if len(remote.etag) == 64:
            return hashlib.file_digest(file, "sha256").hexdigest() == remote.etag
        if len(remote.etag) == 40:
            digest = hashlib.sha1(f"blob {remote.bytes}\0".encode(), usedforsecurity=False)
            while piece := file.read(1 << 20):
                digest.update(piece)
            return digest.hexdigest() == remote.etag
    return True  # a mirror of the Hub whose etags are no hashes


def is_cached(repo: str, name: str) -> bool:
    """Whether the Hub's cache on this machine has that file; of a repository in diffusers' layout, INDEX for all."""
    import huggingface_hub

    return isinstance(huggingface_hub.try_to_load_from_cache(repo, name), str)


def _cached(repo: str, index: str) -> Path | None:
    """The whole snapshot in the cache, where there is one."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(repo, index)
    return Path(found).parent if isinstance(found, str) else None


def _token() -> str | None:
    return os.environ.get("HF_TOKEN")


@contextmanager
def _explaining(repo: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(error, DownloadError) or not _is_network(error):
            raise
        raise explained(repo, error) from None


def _is_network(error: Exception) -> bool:
    """Whether the Hub's library raised it over the network (httpx, of whichever version) or the system did."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0].startswith("httpx")


def _is_offline(error: Exception) -> bool:
    """Whether the Hub gave no answer, or none of its own: then the cache may do."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        return getattr(error.response, "status_code", 0) >= 500
    return _is_network(error)


def explained(repo: str, error: Exception) -> Exception:
    """A DownloadError that says what to do; the error itself where it is the disk's, which says so."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    if isinstance(error, GatedRepoError):
        page = f"https://huggingface.co/{repo}"
        if get_token():
            return DownloadError(f"accept the licence of {repo} at {page}, with HF_TOKEN's account")
        return DownloadError(
            f"{repo} is gated: accept its licence at {page} and keep a token of that account under Settings in the "
            f"app, or set HF_TOKEN and {END_RUNNER}"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, RepositoryNotFoundError):
        if status == 401 and get_token():
            return _bad_token()
        return DownloadError(f"there is no model {repo} on the Hub, or HF_TOKEN may not see it")
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return DownloadError(f"{repo} has no such file on the Hub: {_first_line(error)}")
    if status == 401:
        return _bad_token()
    if isinstance(error, OfflineModeIsEnabled):
        return DownloadError(f"{repo} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it: unset it")
    if isinstance(error, LocalEntryNotFoundError | ConnectionError) or (
        not isinstance(error, OSError) and not isinstance(error, HfHubHTTPError)
    ):
        return DownloadError(
            f"{repo} could not be fetched: check the machine's connection to the internet (and its proxy); what came "
            "is kept, and the next try goes on with it"
        )
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return error  # the disk's fault, which says what to do
    return DownloadError(
        f"{repo} could not be downloaded ({_first_line(error)}): check the machine's connection to the internet"
    )


def _bad_token() -> DownloadError:
    return DownloadError(
        "the Hub does not accept HF_TOKEN: make a new one at https://huggingface.co/settings/tokens, set it, and "
        f"{END_RUNNER}"
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
