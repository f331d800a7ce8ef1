"""The one door to Apprise. Nothing that it or a library below it says is passed on: it may hold an address.

Import it in a short-lived process only: Apprise takes 0.4 s and 45 MB.
"""

from __future__ import annotations

import re
from typing import Any

import apprise

from .message import DeliveryError, Message
from .targets import Target

ANSWER_SECONDS = 30.0
"""How long a service may take for one message."""

NOT_USABLE = "its address can't be used; remove it and add it again (see docs/alerts.md)"
_STATUS = re.compile(r"error=(\d{3})\b")
_STATUS_WORDS = {
    400: "it did not understand the message",
    401: "it does not accept the password or token",
    403: "it does not accept the password or token",
    404: "it does not know that address",
    429: "it gets too many messages",
}
_RETRY_STATUS = frozenset({408, 425, 429})


class Door:
    """One target, ready to be told. Raises DeliveryError where its URL can't be used."""

    def __init__(self, target: Target) -> None:
        try:
            service = apprise.Apprise.instantiate(target.url, asset=_asset())
        except Exception:
            service = None
        if service is None:
            raise DeliveryError(NOT_USABLE, final=True)
        self._apprise = apprise.Apprise(asset=_asset())
        self._apprise.add(service)

    def send(self, message: Message) -> None:
        """Deliver, or raise DeliveryError; takes up to ANSWER_SECONDS."""
        try:
            result = self._apprise.notify(
                title=message.title,
                body=message.body,
                notify_type=apprise.NotifyType(message.look),
                body_format=apprise.NotifyFormat.TEXT,
                timeout=ANSWER_SECONDS,
            )
        except Exception as error:
            raise DeliveryError(f"Apprise broke off with {type(error).__name__}") from None
        services = list(result)
        # By the attempts: a URL with `optional=yes` calls its failure a success.
        if services and all(any(attempt for attempt in service) for service in services):
            return
        raise _explain(result)


def _asset() -> Any:
    return apprise.AppriseAsset(app_id="FluxGym")  # without a storage path nothing of it is kept on the disk


def _explain(result: Any) -> DeliveryError:
    """Why, in words of our own."""
    said = " ".join(entry.message for entry in result.logs())
    found = _STATUS.search(said)
    if found:
        status = int(found[1])
        words = f" ({_STATUS_WORDS[status]})" if status in _STATUS_WORDS else ""
        return DeliveryError(f"it answered {status}{words}", final=400 <= status < 500 and status not in _RETRY_STATUS)
    if result.status == apprise.AppriseResultStatus.TIMEOUT:
        return DeliveryError(f"no answer within {ANSWER_SECONDS:.0f} s")
    if "connection error" in said.lower():
        return DeliveryError("it can't be reached, or did not answer")
    return DeliveryError("it did not take the message")
