"""The loop: requests → children → samples → verdicts → actions, one verb a method.

Every turn looks at what the logs, the attempts' records and the process table say and does the next step towards what
they ask for. Nothing that matters lives in memory alone, so that a runner killed at any point is continued by the next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from fluxcore.log import number
from fluxcore.runs import RunError, RunFolder, is_valid_name, list_run_folders
from fluxcore.runs.auto_resume import auto_resume_follows

from . import attempts, spawning
from .alerts import Alerts
from .clock import Clock
from .executor import Executor
from .gpus import Gpus
from .host import Host
from .kill import TreeKill
from .run import Run
from .samples import take_sample
from .stalls import judge
from .waiting import line_up

POLL_SECONDS = 2.0
"""How often every run's log is looked at without a hint; `SLOW_POLL_SECONDS` where changes are seen as they happen."""
SLOW_POLL_SECONDS = 5.0
BUSY_SECONDS = 0.02
LIVE_SECONDS = 1.0
TROUBLE_SECONDS = 2.0
"""How long a run is left alone after a step failed in a way that nobody foresaw."""

log = logging.getLogger(__name__)


class Runner:
    """Supervises all runs of one outputs folder. Machine, GPUs and time are given, so that tests need none of them."""

    def __init__(
        self,
        outputs: Path,
        *,
        executor: Executor,
        gpus: Gpus,
        host: Host,
        clock: Clock,
        cpu_slots: int = 1,
        alerts: Alerts | None = None,
    ) -> None:
        self.outputs = outputs
        self.executor = executor
        self.gpus = gpus
        self.host = host
        self.clock = clock
        self.cpu_slots = cpu_slots
        self.alerts = alerts
        self.poll_seconds = POLL_SECONDS
        self.runs: dict[str, Run] = {}
        self._polled_at = float("-inf")

    def may_wait(self, hints: set[str]) -> bool:
        """Whether these hints are of live runs alone: a trainer's steps need no turn each, requests do."""
        return all(name in self.runs and self.runs[name].state.live_attempt is not None for name in hints)

    def turn(self, hints: Iterable[str] = ()) -> float:
        """One turn; returns in how many seconds the next one is due. `hints`: runs whose log changed."""
        self.read_logs(hints)
        live = [run for run in self.runs.values() if run.is_active or not run.settled]
        for run in live:
            run.settled = True  # until something comes into its log, from this turn too
        self._each(live, self.answer)
        self.start_waiting(live)
        self._each(live, self.watch_children)
        self._each(live, self.sample)
        self._each(live, self.judge)
        self._each(live, self.act)
        self._each(live, Run.show)
        if self.alerts is not None:
            self.alerts.turn(live, self.runs)
        self.executor.reap()
        return self._due(live)

    def leave(self) -> None:
        """Let go of everything; trainers go on."""
        for run in self.runs.values():
            run.close(leaving=True)

    # -- requests ---------------------------------------------------------------------------------------------------

    def read_logs(self, hints: Iterable[str]) -> None:
        """Fold in what came: of hinted and live runs always, of all runs at each poll."""
        now = self.clock.monotonic()
        for run in self.runs.values():
            if run.watch is not None:
                run.watch.look(now)
        if now - self._polled_at >= self.poll_seconds:
            self._polled_at = now
            try:
                names = {folder.name for folder in list_run_folders(self.outputs)}
                self._drop_missing(names)
            except (RunError, OSError) as error:  # a network disk may come back
                log.warning("%s", error)
                names = set(self.runs)
        else:
            names = {name for name in hints if name in self.runs or self._is_run(name)}
            # A live run is read now and then without a hint too: hints may fail, stops should not wait for a poll.
            names |= {run.name for run in self.runs.values() if run.is_active and run.is_due(now)}
        for name in names - set(self.runs):
            self.runs[name] = Run(RunFolder(self.outputs / name), self.clock)
        self._each([self.runs[name] for name in sorted(names)], self._read)

    def _read(self, run: Run) -> None:
        run.refresh()
        if not run.known:
            run.known = True
            run.remove_monitor_pid()
            if not run.is_active:
                run.seen()

    def answer(self, run: Run) -> None:
        """Refuse requests that came too late, end queued runs that are to stop, ask for an automatic resume."""
        state = run.state
        keep = state.spawning["request"] if state.spawning else None
        if keep is None and state.state == "queued" and state.requests:
            keep = state.requests[0].id
        for request in list(state.requests):
            if request.id != keep:
                what = "is already waiting to start" if state.state == "queued" else f"is already {state.state}"
                run.append("request.refused", {"request": request.id, "reason": f"{run.name} {what}"})
                run.note(f"request {request.id} refused: {run.name} {what}", "WARNING")
        if state.state == "queued" and state.stop_requested and not state.spawning:
            choice = attempts.resume_point(run)
            if run.append("run.stopped", {"reason": "user", "step": state.step, **choice}):
                run.note("stopped while it waited")
        if not run.holds_machine and auto_resume_follows(state, self.clock.now()):
            attempt = state.attempt
            assert attempt is not None
            data = {"config": attempt.config, "resume_from": state.resume_checkpoint, "reason": "auto_resume"}
            if run.append("run.requested", data):
                run.note(f"resuming by itself from {state.resume_checkpoint}")

    def start_waiting(self, live: list[Run]) -> None:
        """Give free GPUs or slots to queued runs, oldest request first; tell the others their place."""
        if not any(run.state.state == "queued" for run in live):
            return
        everyone = list(self.runs.values())
        visible = self.gpus.uuids()
        for place in line_up(everyone, visible, self.cpu_slots, self.clock.now().timestamp()):
            run = place.run
            if place.gpus is not None:
                self._each([run], lambda run, gpus=place.gpus: spawning.begin(self, run, gpus, visible))  # type: ignore[misc]
            elif (run.state.queue_position, run.state.waiting_for) != (place.position, place.waiting_for):
                data = {"request": run.state.requests[0].id, "position": place.position}
                data |= {"waiting_for": place.waiting_for}
                self._each([run], lambda run, data=data: run.append("run.queued", data))  # type: ignore[misc]

    # -- children ---------------------------------------------------------------------------------------------------

    def watch_children(self, run: Run) -> None:
        """See intents through to a started trainer, adopt live ones, notice those that ended."""
        if run.state.spawning is not None and run.state.live_attempt is None:
            spawning.see_through(self, run)
        attempt = run.state.live_attempt
        if attempt is None:
            return
        record = attempts.record(self.executor, run)
        gone = attempts.is_gone(self.executor, record)
        if run.known_attempt != attempt.number:
            run.known_attempt = attempt.number
            if run.watch is not None:
                run.watch.forgive()
            if not gone:
                attempts.adopt(run, attempt)
        if gone and run.kill is None:
            run.kill = TreeKill("leftovers", 0.0, self.clock.monotonic())

    # -- samples ----------------------------------------------------------------------------------------------------

    def sample(self, run: Run) -> None:
        """Read GPUs and processes of a live attempt, each period."""
        if run.state.live_attempt is not None and (run.kill is None or run.kill.why != "leftovers"):
            take_sample(self, run)

    # -- verdicts ---------------------------------------------------------------------------------------------------

    def judge(self, run: Run) -> None:
        """Say what looks stuck, take it back when it moves, and end it when its limit is reached."""
        state, watch, attempt = run.state, run.watch, run.state.live_attempt
        if watch is None or attempt is None or run.kill is not None or state.stop_requested or not state.monitoring:
            return
        found = judge(watch.window(float(run.option("stall_seconds")), float(run.option("sample_gpu_seconds"))))
        data = {"verdict": found.verdict, "evidence": found.evidence}
        if found.certain:
            if attempts.declare_stalled(run, attempt, data):
                run.kill = TreeKill("stall", float(run.option("stop_grace_seconds")), self.clock.monotonic())
        elif found.verdict is not None and state.suspected is None:
            if run.append("stall.suspected", data, attempt=attempt.number):
                seconds = found.evidence["seconds_without_progress"]
                run.note(
                    f"{found.verdict} suspected: {seconds} s without progress (limit {found.limit:g} s)", "WARNING"
                )
        elif found.verdict is None and state.suspected is not None:
            cleared = {"verdict": state.suspected.get("verdict"), "evidence": state.suspected.get("evidence") or {}}
            if run.append("stall.cleared", cleared, attempt=attempt.number):
                run.note("moving again")

    # -- actions ----------------------------------------------------------------------------------------------------

    def act(self, run: Run) -> None:
        """Carry out what was asked for or judged: end the tree, then write down how the attempt ended."""
        now = self.clock.monotonic()
        grace = float(run.option("stop_grace_seconds")) if run.state.attempt else 0.0
        if run.kill is None and run.state.must_be_killed:
            run.kill = TreeKill("stall", grace, now)
        if run.kill is None and run.state.live_attempt and run.state.stop_requested:
            run.kill = TreeKill("stop", grace, now)
            run.note("stopping: TERM to the trainer")
        if run.kill is None or run.state.attempt is None:
            return
        record = attempts.record(self.executor, run)
        if run.kill.turn(now, run.folder, record, self.executor):
            run.refresh()  # the trainer's last words
            if attempts.finish(run, attempts.record(self.executor, run), run.kill, now):
                run.kill = None

    # -- turning ----------------------------------------------------------------------------------------------------

    def _each(self, runs: list[Run], verb: Callable[[Run], object]) -> None:
        """One run's trouble must not reach the others."""
        now = self.clock.monotonic()
        for run in runs:
            if now < run.paused_until:
                continue
            try:
                verb(run)
            except Exception as error:
                run.paused_until, run.settled = now + TROUBLE_SECONDS, False
                trouble = f"{getattr(verb, '__name__', 'a step')} failed: {error!r}"
                if trouble != run.trouble:
                    log.error("%s: %s", run.name, trouble, exc_info=not isinstance(error, OSError))
                run.trouble = trouble

    def _due(self, live: list[Run]) -> float:
        due, now = self.poll_seconds, self.clock.monotonic()
        if self.alerts is not None:
            due = min(due, self.alerts.due())
        for run in live:
            if run.paused_until > now or run.retry_at > now:
                due = min(due, LIVE_SECONDS)
            elif run.kill is not None or run.state.spawning is not None:
                return BUSY_SECONDS
            elif run.state.live_attempt is not None:
                period = number(run.option("sample_gpu_seconds"))
                due = min(due, LIVE_SECONDS, max(BUSY_SECONDS, period if period is not None else LIVE_SECONDS))
            elif not run.settled:
                return BUSY_SECONDS
            elif run.state.requests:
                due = min(due, LIVE_SECONDS)
        return due

    def _is_run(self, name: str) -> bool:
        return is_valid_name(name) and any((self.outputs / name).glob("events*.jsonl"))

    def _drop_missing(self, there: set[str]) -> None:
        for name in [name for name in self.runs if name not in there]:
            if self.runs[name].state.live_attempt is None:  # a live one is kept: a network disk may come back
                self.runs.pop(name).close()
