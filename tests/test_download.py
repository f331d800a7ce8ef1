"""Fetching base models from a Hub on this machine: progress, going on where it stopped, hashes, gates, no connection."""

from __future__ import annotations

import fcntl
import random
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants

from fluxcore.models import download
from fluxcore.models.download import fetch_files, fetch_repository
from fluxcore.models.errors import DownloadError
from tests.fake_hub import Hub, etag, fake_hub

REPO = "someone/flux"
BIG = random.Random(1).randbytes(1_000_000)
WEIGHTS = "flux1-dev.sft"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the library waits a second before it tries again
    with fake_hub(monkeypatch, tmp_path / "hub") as hub:
        hub.files[REPO] = {WEIGHTS: BIG}
        yield hub


def fetch(on_progress: download.Progress | None = None) -> Path:
    return fetch_files([(REPO, WEIGHTS)], on_progress)[0]


def test_a_repository_comes_whole_with_its_progress_in_bytes_and_only_once(hub: Hub) -> None:
    repo = {"transformer/w.safetensors": BIG, "model_index.json": b"{}", "vae/config.json": b"{ }"}
    hub.files[REPO] = {**repo, WEIGHTS: b"not diffusers'", "README.md": b"#"}
    seen: list[tuple[float, float]] = []
    folder = fetch_repository(REPO, lambda done, total: seen.append((done, total)))
    assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == repo
    total = len(BIG) + 5
    assert seen[-1] == (total, total) and all(of == total for _, of in seen)
    done = [step for step, _ in seen]
    assert done == sorted(done) and len(done) > 5
    asked = len(hub.content())
    assert fetch_repository(REPO) == folder and len(hub.content()) == asked


def test_what_was_broken_off_goes_on_where_it_stopped_in_the_next_attempt(hub: Hub) -> None:
    class Killed(Exception):
        pass

    def kill(done: float, total: float) -> None:
        if done > 400_000:
            raise Killed

    with pytest.raises(Killed):
        fetch(kill)
    assert fetch().read_bytes() == BIG
    (first, second) = hub.content()
    assert first == (WEIGHTS, None)
    assert second[1] is not None and int(second[1].strip("bytes=-")) > 400_000


def test_a_lost_connection_is_gone_on_with_at_once(hub: Hub) -> None:
    hub.cut_after = [300_000, 200_000]
    assert fetch().read_bytes() == BIG
    ranges = [wanted for _, wanted in hub.content()]
    assert len(ranges) == 3 and ranges[0] is None and None not in ranges[1:]


def test_a_server_that_knows_no_ranges_sends_it_all_again(hub: Hub) -> None:
    hub.cut_after, hub.ranges = [300_000], False
    assert fetch().read_bytes() == BIG


@pytest.mark.parametrize("content", [BIG, b"small"])
def test_a_wrong_byte_is_found_by_the_hubs_hash_and_it_is_fetched_anew(hub: Hub, content: bytes) -> None:
    hub.files[REPO][WEIGHTS], hub.spoil = content, 1
    assert fetch().read_bytes() == content
    assert len(hub.content()) == 2


def test_what_stays_wrong_is_given_up_and_nothing_of_it_kept(hub: Hub, tmp_path: Path) -> None:
    hub.spoil = 99
    with pytest.raises(DownloadError, match="flux1-dev.sft of someone/flux came damaged 3 times"):
        fetch()
    assert [path.name for path in (tmp_path / "hub").rglob("*") if path.is_file() and path.stat().st_size > 0] == []


def test_two_that_fetch_the_same_fetch_it_once_and_both_tell_its_progress(hub: Hub, tmp_path: Path) -> None:
    blobs = tmp_path / "hub" / "models--someone--flux" / "blobs"
    blobs.mkdir(parents=True)
    part = blobs / f"{etag(BIG)}.fluxgym.part"
    part.write_bytes(BIG[:123])
    seen: list[float] = []
    with open(part, "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = threading.Event()

        def tell(done: float, total: float) -> None:
            seen.append(done)
            waiting.set()

        thread = threading.Thread(target=lambda: seen.append(len(fetch(tell).read_bytes())))
        thread.start()
        assert waiting.wait(20) and seen[0] == 123
        assert hub.content() == []
        (blobs / etag(BIG)).write_bytes(BIG)
    thread.join(20)
    assert seen[-1] == len(BIG) and hub.content() == [] and not part.exists()


def refused(**environment: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(DownloadError) as error:
            fetch()
    assert "\n" not in str(error.value) and "hf_" not in str(error.value)
    return str(error.value)


def test_a_gated_model_wants_its_licence_accepted_and_a_token(hub: Hub) -> None:
    hub.gated.add(REPO)
    assert "gated: accept its licence at https://huggingface.co/someone/flux and keep a token of that" in (
        said := refused()
    )
    assert "under Settings in the app, or set HF_TOKEN and end the runner" in said
    assert "does not accept HF_TOKEN" in refused(HF_TOKEN="hf_wrong")
    hub.token = "hf_right"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", "hf_right")
        assert fetch().read_bytes() == BIG


def test_what_is_not_there_is_said(hub: Hub) -> None:
    hub.files[REPO] = {"other": b"x"}
    assert "someone/flux has no such file" in refused()
    hub.files.clear()
    assert "there is no model someone/flux" in refused()
    hub.files[REPO] = {"a": b"x"}
    with pytest.raises(DownloadError, match="no model in diffusers' layout: it has no model_index.json"):
        fetch_repository(REPO)


def test_without_an_answer_the_cache_has_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.files[REPO] = {"model_index.json": b"{}", "vae/x.json": b"{ }", WEIGHTS: BIG}
    folder, file = fetch_repository(REPO), fetch()
    hub.status = 503
    assert fetch_repository(REPO) == folder and fetch() == file
    nobody = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", nobody)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nobody + "/{repo_id}/resolve/{revision}/{filename}")
    assert fetch_repository(REPO) == folder and fetch() == file
    shutil.rmtree(folder)
    assert "check the machine's connection" in refused()


def test_a_disk_that_is_too_small_is_told_before_anything_is_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=900_000))
    assert "needs 1 MB more in" in refused() and "900 kB are free: make room, or set HF_HOME" in refused()
    assert hub.content() == []
