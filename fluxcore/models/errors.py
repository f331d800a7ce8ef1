"""What can be wrong with a base model."""

from __future__ import annotations

from fluxcore.errors import UserError


class ModelError(UserError):
    """A base model that can't be loaded."""


class DownloadError(UserError):
    """A base model that can't be downloaded."""
