"""What a person is told when a base model can't be fetched. Needs no network: the Hub's client fails as it would."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from fluxcore.models.download import explained
from fluxcore.models.errors import DownloadError

REPO = "black-forest-labs/FLUX.1-dev"


def answered(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    response: Any = SimpleNamespace(headers={}, request=None, status_code=status)
    return kind(f"{status} Client Error.", response=response)


@pytest.mark.parametrize(
    ("error", "token", "says"),
    [
        (
            answered(GatedRepoError, 401),
            None,
            ["black-forest-labs/FLUX.1-dev and keep a token", "under Settings", "set HF_TOKEN", "end the runner"],
        ),
        (answered(GatedRepoError, 403), "hf_x", ["accept the licence", "HF_TOKEN's account"]),
        (answered(RepositoryNotFoundError, 404), None, ["no model black-forest-labs/FLUX.1-dev"]),
        (answered(HfHubHTTPError, 401), "hf_x", ["not accept HF_TOKEN", "settings/tokens", "end the runner"]),
        (answered(HfHubHTTPError, 503), None, ["could not be downloaded (503"]),
        (OfflineModeIsEnabled("x"), None, ["HF_HUB_OFFLINE forbids to fetch it: unset it"]),
        (LocalEntryNotFoundError("An error happened"), None, ["connection to the internet"]),
        (
            OSError("Consistency check failed: file should be of size 4 but has size 2 (a.safetensors)."),
            None,
            ["size 2"],
        ),
    ],
)
def test_the_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception, token: str | None, says: list[str]) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    told = explained(REPO, error)
    assert isinstance(told, DownloadError)
    assert all(part in str(told) for part in says), told
    assert "hf_x" not in str(told)


def test_a_full_disk_is_not_the_networks_fault() -> None:
    error = OSError(errno.ENOSPC, "No space left on device")
    assert explained(REPO, error) is error
