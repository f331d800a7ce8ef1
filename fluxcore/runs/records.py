"""What a run's state is made of: its states' names, requests, attempts and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass, field

LIVE_STATES = frozenset({"queued", "starting", "running", "stopping"})
"""States in which a new start or resume is refused."""

ENDED_STATES = frozenset({"stalled", "stopped", "failed", "completed"})


@dataclass
class Request:
    """A `run.requested` that no attempt has served and no event has refused."""

    id: str
    config: str
    resume_from: str | None
    reason: str
    ts: str

    @property
    def is_automatic(self) -> bool:
        """Whether the runner asked, not a person."""
        return self.id.startswith("runner-")


@dataclass
class Attempt:
    """One trainer process, from `run.started` to its end. `outcome` is the type of the event that ended it."""

    number: int
    request: str
    started: str
    pid: int = 0
    create_time: float = 0.0
    boot_id: str = ""
    start_ticks: int = 0
    shim_pid: int = 0
    gpus: list[str] = field(default_factory=list)
    resume_from: str | None = None
    resume_step: int | None = None
    config: str = ""
    first_step: int | None = None
    last_step: int = 0
    ended: str | None = None
    outcome: str | None = None
    seconds: float | None = None
    """How long it took by a clock that does not jump, where its end tells."""
    killed: str | None = None
    asked: str = ""
    """When it was asked for, by its request."""

    @property
    def is_automatic(self) -> bool:
        """Whether the runner asked for it, not a person."""
        return self.request.startswith("runner-")


@dataclass
class Checkpoint:
    """A checkpoint as the log knows it; whether it is still there and whole is for `checkpoints.py` to say."""

    path: str
    kind: str
    step: int
    epoch: int
    bytes: int
    attempt: int
    ts: str
    validation_loss: float | None = None
    """Of weights, where pictures are held out: the best LoRA has the lowest."""


@dataclass(frozen=True)
class Measured:
    """The loss on held-out pictures at a step."""

    step: int
    loss: float
    ts: str
