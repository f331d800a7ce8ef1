"""One run as the runner holds it: its folder, its folded state, its log, and what is remembered of a live attempt."""

from __future__ import annotations

import logging
import os
from functools import cache
from typing import Any

from fluxcore.config import defaults
from fluxcore.log import Event, EventError, EventLog, FolderReader, format_ts, number
from fluxcore.runs import RunFolder, RunState, refresh_ui_state
from fluxcore.runs.disk import DiskNeeds
from fluxcore.runs.processes import Identity
from fluxcore.runs.records import Attempt

from .clock import Clock
from .executor import Record
from .kill import TreeKill
from .stacks import Dump
from .watch import Watch

READ_SECONDS = 0.95
LOCK_SECONDS = 0.25
"""How long an append waits for the log's lock: a trainer stopped inside its own append must not hold up all runs."""
RETRY_SECONDS = 2.0
"""How long a log that could not be written is left alone; kills under way go on meanwhile."""

log = logging.getLogger(__name__)


@cache
def _defaults() -> dict[str, Any]:
    return defaults()


class Run:
    """What the log says (`state`), and what only this process knows: the watch, a kill under way."""

    def __init__(self, folder: RunFolder, clock: Clock) -> None:
        self.folder = folder
        self._clock = clock
        now = lambda: format_ts(clock.now())
        self._log = EventLog(folder.path, "runner", now=now, lock_deadline=LOCK_SECONDS)
        self._shown: tuple[str, str] | None = None
        self._show_failed = False
        self._forget()

    def _forget(self) -> None:
        self.state = RunState(self.folder.name)
        self.watch: Watch | None = None
        self._watched: int | None = None
        """The attempt that `watch` is of."""
        self.kill: TreeKill | None = None
        self.dump: Dump | None = None
        """The stacks of a stuck trainer, while they are taken."""
        self.record: Record | None = None
        """What was recorded of the newest attempt when that was last looked at."""
        self.checked, self.is_copy = 0, False
        """An attempt, and whether its processes are those of another folder that this one was copied from."""
        self.left: tuple[Attempt, Record, float] | None = None
        """A live attempt that the log knew before another took its place: with its record and its grace in seconds."""
        self.missing = False
        """Whether its folder was not there when that was last looked at."""
        self.former_name = ""
        """What its folder was called when its trainer started, where it was renamed since."""
        self.known_attempt = 0
        """The attempt that this runner started or adopted."""
        self.spawned: dict[int, tuple[float, int]] = {}
        """Attempt → when this runner last spawned its shim, and how often."""
        self.needs: tuple[int, DiskNeeds] | None = None
        """Attempt → what it is expected to write."""
        self.sampled_at = float("-inf")
        self.read_at = float("-inf")
        self.paused_until = float("-inf")
        self.cpu_before: tuple[float, float] | None = None
        self.retry_at = float("-inf")
        self.settled = False
        self.known = False
        """Whether its log has been read once."""
        self.trouble = ""
        """What went wrong last, so that it is said once."""
        self._broken_off = False
        self._reader = FolderReader(self.folder.path)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def is_read(self) -> bool:
        """Whether `state` is what its log says, rather than what it said once, or nothing at all."""
        return self.known and not self._broken_off

    @property
    def holds_machine(self) -> bool:
        """Whether processes of the run live, or are about to."""
        return self.state.has_processes or self.kill is not None or self.left is not None

    @property
    def is_active(self) -> bool:
        """Whether something is asked of the run, or some of its processes live."""
        return bool(self.state.requests) or self.holds_machine

    def is_due(self, now: float) -> bool:
        """Whether the log should be looked at without a hint: about once a second, always while something changes."""
        return bool(self.kill or self.state.spawning) or now - self.read_at >= READ_SECONDS

    @property
    def gpus(self) -> list[str]:
        """The GPUs that the run holds."""
        if self.state.spawning:
            return list(self.state.spawning.get("gpus") or [])
        return list(self.state.attempt.gpus) if self.state.attempt and self.holds_machine else []

    def option(self, name: str, attempt: Attempt | None = None) -> Any:
        """A setting of the config that the attempt (default: the newest) was asked for with."""
        attempt = attempt or self.state.attempt
        config = self.state.served_config(attempt) if attempt else self.state.config
        return config.get(name, _defaults()[name])

    def live_record(self) -> tuple[Attempt, Record, float] | None:
        """The newest attempt, its record and its grace, where processes of it may live."""
        attempt = self.state.attempt
        if attempt is None or not self.holds_machine:
            return None
        identity = Identity(attempt.pid, attempt.create_time, attempt.boot_id, attempt.start_ticks)
        grace = number(self.option("stop_grace_seconds"))
        return attempt, self.record or Record(trainer=identity if attempt.pid else None), grace or 0.0

    def knows(self, attempt: Attempt) -> bool:
        """Whether its log has this very attempt, by its process."""
        same = (attempt.pid, attempt.start_ticks, attempt.boot_id)
        return any((one.pid, one.start_ticks, one.boot_id) == same for one in self.state.attempts)

    def refresh(self) -> bool:
        """Read what came into the log; True where something did."""
        self.read_at = self._clock.monotonic()
        reader = FolderReader(self.folder.path) if self._broken_off else self._reader
        restarts = reader.restarts
        try:
            events = reader.read_new()
            if reader.restarts != restarts:  # another run took this name: nothing of the old one holds
                reader = FolderReader(self.folder.path)
                events = reader.read_new()
                left = self.left or self.live_record()  # but what lives of it must not get lost
                self._forget()
                self.left, self._reader = left, reader
        except OSError:
            self._broken_off = True  # what it had read already is lost with it: the next one begins at the start
            raise
        if self._broken_off:
            self.state, self._reader, self._broken_off = RunState(self.folder.name), reader, False
        for event in events:
            self._apply(event)
        self.settled = self.settled and not events
        return bool(events)

    def _apply(self, event: Event) -> None:
        self.state.apply(event)
        intended = event.type == "run.spawning"
        attempt = self.state.last_attempt if intended else event.attempt
        if (intended or event.type == "run.started") and attempt != self._watched:
            # From the intent on: a trainer that is announced late has taken steps before that.
            self.watch, self._watched = Watch(resume_step=int(event.data.get("resume_step") or 0)), attempt
            self.watch.look(self._clock.monotonic())
        elif self.watch is not None and attempt is not None and attempt == self._watched:
            self.watch.event(event)
        elif self.watch is not None and event.type == "monitoring.changed":
            self.watch.forgive()

    def append(self, type: str, data: dict[str, Any], *, attempt: int | None = None) -> bool:
        """Append an event and fold it in. False where the log can't be written now: the next turn tries again."""
        now = self._clock.monotonic()
        if now < self.retry_at:
            self.settled = False
            return False
        try:
            self._log.append(type, data, attempt=attempt)
        except (OSError, EventError) as error:
            if self.retry_at == float("-inf"):
                self.note(f"{type} can't be written, trying again until it can: {error}", "ERROR")
            self.retry_at, self.settled = now + RETRY_SECONDS, False
            return False
        if self.retry_at != float("-inf"):
            self.retry_at = float("-inf")
            self.note("the log can be written again")
        self.refresh()
        return True

    def note(self, text: str, level: str = "INFO") -> None:
        """A line for monitor.log, and with the run's name in front for the runner's own log (a journal)."""
        text = " ".join(text.split("\n"))
        line = f"{self._clock.now().strftime('%Y-%m-%d %H:%M:%S')} - {level} - {text}\n"
        trouble = ""
        try:
            with open(self.folder.monitor_log, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            trouble = f" (monitor.log: {error})"
        log.log(getattr(logging, level), "%s: %s%s", self.name, text, trouble)

    def show(self) -> None:
        """Bring the derived files up to date: ui_state.json, monitor.pid."""
        watched = self.state.live_attempt is not None and self.state.monitoring
        try:
            if watched and not self.folder.monitor_pid.exists():
                self.folder.monitor_pid.write_text(f"{os.getpid()}\n")
            elif not watched:
                self.folder.monitor_pid.unlink(missing_ok=True)
        except OSError:
            pass
        shown = (self.state.state, self.state.config_id)
        if shown != self._shown:
            try:
                refresh_ui_state(self.folder, self.state)
                self._shown = shown
                self._show_failed = False
            except OSError as error:
                if not self._show_failed:
                    self.note(f"ui_state.json can't be written: {error}", "WARNING")
                self._show_failed = True

    def remove_monitor_pid(self) -> None:
        """A monitor.pid of a runner that is gone must not mislead."""
        try:
            self.folder.monitor_pid.unlink(missing_ok=True)
        except OSError:
            pass

    def seen(self) -> None:
        """The derived files need no look before the state changes (a run that had ended when the runner started)."""
        self._shown = (self.state.state, self.state.config_id)

    def drop_dump(self) -> None:
        """Have no more to do with a dump of stacks, done or not."""
        if self.dump is not None:
            self.dump.drop()
            self.dump = None

    def close(self, *, leaving: bool = False) -> None:
        """Let go of the log; `leaving`: this runner ends, nobody monitors the run for now."""
        self._log.close()
        self.drop_dump()
        if leaving:
            self.remove_monitor_pid()
