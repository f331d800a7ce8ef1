"""One attempt with sd-scripts, top to bottom: lay out its folder, start it, follow it to its end."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fluxcore.config import RunConfig
from fluxcore.dataset import Picture, list_pictures
from fluxcore.models.locating import is_remote, locate_files
from fluxcore.models.registry import find_model
from fluxcore.runs.checkpoints import safetensors_keys
from fluxcore.runs.retention import prune_states
from fluxcore.tail import last_lines
from fluxcore.training.failures import Exit, TrainingError
from fluxcore.training.order import Order

from .collect import Collector
from .command import Files, Plan, dataset_toml, options, prompt_lines
from .failures import exit_of, explanation
from .place import Scripts, check, find_scripts
from .progress import Reader
from .report import Report
from .scalars import StepFile

POLL_SECONDS = 0.1
COLLECT_SECONDS = 1.0
"""How often to look for checkpoints and samples while no step comes: looking must not pass for a sign of life."""
DOWNLOAD_SECONDS = 0.5
"""At most so often the progress of a download is told."""
END_SECONDS = 5.0
"""How long sd-scripts get to end by themselves once a training is given up."""
WORK_FOLDER = "sd-scripts"
KEY_PREFIX = "lora_"
LAST_LINES = 60


def run(order: Order, stopping: Callable[[], bool]) -> int:
    """Train to the end, or until a TERM came. Returns the exit code, below 0 for a signal that ended sd-scripts.

    Raises UserError or OSError.
    """
    config, folder = order.config, order.folder
    check(config)
    scripts = find_scripts()
    pictures = list_pictures(folder.dataset)
    if not pictures:
        raise TrainingError(Exit.BAD_DATA, f"there are no pictures in {folder.dataset}")
    order = replace(order, config=_with_files(order, stopping))
    plan = Plan(order.step, config.total_steps(len(pictures)), config.steps_per_epoch(len(pictures)))
    if order.resume_from is not None:
        _check_state(order.resume_from, plan)
    work = folder.attempt(order.attempt) / WORK_FOLDER
    try:
        for left_over in folder.path.glob(f".attempts/*/{WORK_FOLDER}"):
            shutil.rmtree(left_over)
        files = _lay_out(work, config, pictures)
        return Attempt(order, scripts, files, plan).follow(stopping)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _with_files(order: Order, stopping: Callable[[], bool]) -> RunConfig:
    """The config with the paths of its base model's files, fetched first where they are on the Hub."""
    told = 0.0
    model = find_model(order.config.base_model)
    if is_remote(model, order.config):
        order.log.append("phase.started", {"phase": "download", "total": None, "unit": "bytes"})

    def report(done: float, total: float) -> None:
        nonlocal told
        if stopping():
            raise TrainingError(Exit.STOPPED, "stopped while the base model was fetched")
        if done < total and time.monotonic() - told < DOWNLOAD_SECONDS:
            return
        told = time.monotonic()
        order.log.append("phase.progress", {"phase": "download", "done": done, "total": total})

    files = locate_files(model, report, order.config)
    return order.config.model_copy(update={part: str(path) for part, path in files.items()})


class Attempt:
    """sd-scripts at work, and what was read of it so far."""

    def __init__(
        self, order: Order, scripts: Scripts, files: Files, plan: Plan, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._order, self._folder, self._config = order, order.folder, order.config
        self._report = Report(order.log, order.folder, order.config, plan)
        self._collector = Collector(files.output, order.folder, plan)
        self._steps = StepFile(files.logs)
        self._reader = Reader()
        self._clock = clock
        self._collected = 0, float("-inf")
        """The last step of which checkpoints were looked for, and when."""
        self._report.phase("load")
        argv = [scripts.python, str(scripts.script), *options(order.config, files, plan, order.resume_from)]
        print(shlex.join(argv), flush=True)
        # Its output goes into the log itself and is read back from there: an undrained pipe would stop it.
        with open(self._folder.train_log, "ab") as log:
            self._begins = self._read = os.fstat(log.fileno()).st_size
            self._child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=scripts.folder,
                # Its log lines are folded at the terminal's width, which there is none of here.
                env={**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"},
            )

    def follow(self, stopping: Callable[[], bool]) -> int:
        """Report until sd-scripts end. Raises TrainingError where they failed."""
        told = False
        try:
            while self._child.poll() is None:
                if stopping() and not told:
                    told = True
                    print(
                        "stopping; sd-scripts save nothing then: what came after the last checkpoint is lost",
                        flush=True,
                    )
                    self._child.terminate()
                self.look()
                self._order.log.flush()
                time.sleep(POLL_SECONDS)  # waiting for the child wakes up eight times as often
            self.look()
            self._collect(None)
        except TrainingError:
            self._collect(self._report.done)
            raise
        finally:
            self._end()
        return self._meaning(self._child.returncode, told)

    def look(self) -> None:
        """Report what came since: the log first, so that a step knows what it was held up by."""
        with open(self._folder.train_log, "rb") as log:
            log.seek(self._read)
            data = log.read()
        self._read += len(data)
        self._report.heard(self._reader.feed(data), steps_too=not self._steps.exists)
        for step in self._steps.read_new():
            self._report.step(step)
        done, now = self._report.done, self._clock()
        if done != self._collected[0] or now - self._collected[1] >= COLLECT_SECONDS:
            self._collected = done, now
            self._collect(done)

    def _collect(self, up_to: int | None) -> None:
        """Take what is whole. Not what came after the last step that was seen: its loss might be no number."""
        for saved in self._collector.checkpoints(up_to):
            self._report.checkpoint(saved)
            if saved.kind == "state":
                keep_epochs, keep_steps = self._config.save_last_n_epochs_state, self._config.save_last_n_steps_state
                prune_states(self._folder, keep_epochs, keep_steps, saved.step)
        for drawn in self._collector.samples(up_to):
            self._report.sample(drawn)

    def _end(self) -> None:
        """Leave no sd-scripts behind, where following them broke off."""
        if self._child.poll() is None:
            self._child.terminate()
            try:
                self._child.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()

    def _meaning(self, code: int, told: bool) -> int:
        if told and code != 0:
            return Exit.STOPPED
        if code < 0:
            return code
        lines = last_lines(self._folder.train_log, LAST_LINES, offset=self._begins)
        if code == 0:
            if not self._folder.final_weights.is_file() and exit_of(1, lines) is Exit.BAD_DATA:
                raise TrainingError(Exit.BAD_DATA, explanation(code, lines))
            return Exit.DONE
        raise TrainingError(exit_of(code, lines), explanation(code, lines))


def _lay_out(work: Path, config: RunConfig, pictures: list[Picture]) -> Files:
    """The attempt's own folder: pictures (linked) with their captions, the dataset's file, the prompts.

    Each attempt has a fresh one, because sd-scripts keep what they encoded beside the pictures and don't look whether a
    caption has changed since; and so that every picture has its caption in the form that FluxGym trains on.
    """
    images = work / "images"
    images.mkdir(parents=True)
    taken: set[str] = set()
    for picture in pictures:
        stem, count = picture.path.stem, 1
        while stem in taken:  # a.png and a.jpg would share what is encoded of them
            count += 1
            stem = f"{picture.path.stem}-{count}"
        taken.add(stem)
        target = images / f"{stem}{picture.path.suffix.lower()}"
        try:
            os.link(picture.path, target)
        except OSError:  # a disk without hard links, a link to another disk
            shutil.copyfile(picture.path, target)
        target.with_suffix(".txt").write_text(picture.prompt(config.concept_sentence) + "\n", encoding="utf-8")
    dataset, prompts = work / "dataset.toml", work / "prompts.txt"
    dataset.write_text(dataset_toml(config, images), encoding="utf-8")
    try:
        lines = prompt_lines(config)
    except ValueError as error:
        raise TrainingError(Exit.BAD_CONFIG, str(error)) from None
    prompts.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return Files(dataset, prompts if lines else None, work / "output", work / "logs")


def _check_state(state: Path, plan: Plan) -> None:
    if plan.first >= plan.total:
        raise TrainingError(Exit.BAD_CONFIG, f"no steps are left: {state.name} is at {plan.first} of {plan.total}")
    keys = [key for file in sorted(state.glob("*.safetensors")) for key in safetensors_keys(file)]
    if not any(key.startswith(KEY_PREFIX) for key in keys):
        raise TrainingError(
            Exit.BAD_CONFIG,
            f"{state.name} was not saved by sd-scripts: set trainer as it was, or begin afresh with --restart",
        )
