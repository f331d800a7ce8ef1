"""Drafts: what a person types before a run has a name. Kept as an event log and a dataset folder of its own.

`outputs/.drafts/ID/events.jsonl` holds a `config.saved` for every edit: `config` as typed (it may be wrong still), and
`touched`, the fields a person set (the others follow the base model and the memory preset).
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fluxcore.config import VRAM_PRESETS, RunConfig, defaults
from fluxcore.dataset import list_pictures
from fluxcore.log import EventError, EventLog, LogReader
from fluxcore.models.registry import ModelNotFound, find_model
from fluxcore.runs import RunError, RunFolder, check_outputs, read_installation

DRAFTS = ".drafts"
MONITORING = (
    "enable_monitoring",
    "stall_seconds",
    "auto_resume",
    "sample_gpu_seconds",
    "stop_grace_seconds",
    "alerts",
)
"""The settings whose defaults the page Settings sets."""
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{6}")


def draft_folder(outputs: Path, draft_id: str) -> RunFolder:
    """The folder of a draft, existing or not. Raises RunError where `draft_id` is none."""
    if not _ID.fullmatch(draft_id):
        raise RunError(f"{draft_id!r} is not a draft")
    return RunFolder(outputs / DRAFTS / draft_id)


class Draft:
    """One draft. Nothing is written before the first edit; every edit is on the disk when `edit` returns.

    Several tabs may hold the same draft: an edit changes its own fields over what the log says last.
    """

    def __init__(self, outputs: Path, draft_id: str | None = None) -> None:
        # The time comes first, so that the newest draft has the highest name.
        self.id = draft_id or f"{int(time.time()):08x}-{secrets.token_hex(3)}"
        self.outputs = outputs
        self._is_new = draft_id is None
        self.folder = draft_folder(outputs, self.id)
        self._usual = usual_settings(outputs)
        self.values: dict[str, Any] = follow_presets(self._usual, set(), self._usual)
        self.touched: set[str] = set()
        self._log: EventLog | None = None
        self._saved = False
        self.overwritten: dict[str, Any] = {}
        """Of the last edit: what another tab had set these fields to meanwhile."""
        self._news: set[str] = set()
        """Fields that other tabs changed, which an edit here found and nobody was told of yet."""
        self.triggers: list[str] = []
        """The trigger words that it had, the newest last; not what they were while they were typed."""
        self._reader = LogReader(self.folder.events)
        self._apply()

    def _join(self) -> None:
        """Go on with the draft that another tab has begun, where nothing of this one is written: there is one form."""
        if not self._is_new or self.exists or self._saved:
            return
        self._is_new = False
        if there := newest_draft(self.outputs):
            self.id, self.folder = there.id, there.folder
            self._reader = LogReader(self.folder.events)

    @property
    def dataset(self) -> Path:
        """Where its pictures lie; made when asked for."""
        self._join()
        self.folder.dataset.mkdir(parents=True, exist_ok=True)
        return self.folder.dataset

    @property
    def exists(self) -> bool:
        """Whether anything of it was written."""
        return self.folder.path.is_dir()

    @property
    def gone(self) -> bool:
        """Whether it was there and is no more: another tab made it a run."""
        return self._saved and not self.exists

    def refresh(self) -> list[str] | None:
        """Read what other tabs wrote: the fields that they changed, or None where they wrote nothing."""
        before = dict(self.values)
        if not self._apply() and not self._news:
            return None
        news, self._news = self._news, set()
        return [name for name, value in self.values.items() if before.get(name) != value or name in news]

    def history(self) -> list[dict[str, Any]]:
        """All values as each edit left them, the newest last."""
        try:
            saved = [event.data.get("config") for event in LogReader(self.folder.events).read_new()]
        except OSError:
            return []
        return [config for config in saved if isinstance(config, dict)]

    def usual(self) -> dict[str, Any]:
        """Every field as the defaults, the memory preset and the base model have it."""
        return follow_presets(self.values, {"base_model", "vram"}, self._usual)

    def changed(self) -> dict[str, Any]:
        """The fields that are not as usual, each with what it usually is."""
        usual = self.usual()
        return {name: usual[name] for name, value in self.values.items() if value != usual[name]}

    def edit(self, changes: dict[str, Any], *, touched: Iterable[str] | None = None, forget: bool = False) -> None:
        """Keep `changes`; a new base model or memory preset sets the fields that nobody touched. Raises RunError.

        `forget`: `touched` are all that count as touched from now on.
        """
        self._join()
        before = dict(self.values)
        self._apply()
        found = {name for name, value in self.values.items() if before.get(name) != value}
        self.overwritten = {
            name: self.values[name] for name, value in changes.items() if name in found and self.values[name] != value
        }
        self._news |= found - changes.keys()
        wanted = (set() if forget else self.touched) | set(changes if touched is None else touched)
        self._save(follow_presets({**self.values, **changes}, wanted, self._usual), wanted)

    def clear(self) -> None:
        """Forget every setting; pictures stay."""
        self._save(follow_presets(self._usual, set(), self._usual), set())

    def discard(self) -> None:
        """Remove the draft with its pictures: they live on in the run that it became."""
        if self._log:
            self._log.close()
        shutil.rmtree(self.folder.path, ignore_errors=True)

    def _save(self, values: dict[str, Any], touched: set[str]) -> None:
        """Write it down; only what is in the log counts, so that a refused edit spoils no later one."""
        try:
            self.folder.path.mkdir(parents=True, exist_ok=True)
            self._log = self._log or EventLog(self.folder.path, "app", run=self.id)
            self._log.append("config.saved", {"config": values, "touched": sorted(touched)})
            self._log.close()  # sessions are many, descriptors few; the writer's count goes on
        except EventError:
            raise RunError("your edit can't be kept: a text or a number in it is too long") from None
        except OSError as error:
            raise RunError(f"your edit can't be kept ({error.strerror}): make room in {self.outputs}") from None
        self.values, self.touched = values, touched
        self._apply()

    def _apply(self) -> bool:
        try:
            saved = [event.data for event in self._reader.read_new() if event.type == "config.saved"]
        except OSError:  # what can't be read is edited neither: `edit` says so, and the form can be cleared
            self._reader = LogReader(self.folder.events)
            return False
        if not saved:
            return False
        self._saved = True
        for config in (one.get("config") for one in saved):
            trigger = str(config.get("concept_sentence") or "").strip() if isinstance(config, dict) else ""
            last = self.triggers[-1] if self.triggers else ""
            if last and trigger.startswith(last):  # it is being typed
                self.triggers[-1] = trigger
            elif not last.startswith(trigger):  # nor is it being taken away
                self.triggers.append(trigger)
        config = saved[-1].get("config")
        if isinstance(config, dict):
            self.values = {**self._usual, **{key: config[key] for key in config if key in RunConfig.model_fields}}
        self.touched = {str(name) for name in saved[-1].get("touched") or []}
        return True


def usual_settings(outputs: Path) -> dict[str, Any]:
    """The defaults as a person set them on the page Settings; the schema's where nobody did, or where they fit not."""
    try:
        saved = read_installation(outputs).defaults
    except OSError:
        saved = {}
    return defaults() | {name: saved[name] for name in MONITORING if type(saved.get(name)) is type(defaults()[name])}


def follow_presets(values: dict[str, Any], touched: set[str], usual: dict[str, Any] | None = None) -> dict[str, Any]:
    """`values` with each untouched field as it is `usual`ly, or as the memory preset and the base model set it.

    Without `usual` the schema's defaults are.
    """
    try:
        model = find_model(str(values["base_model"])).settings(str(values["vram"]))
    except ModelNotFound:
        model = {}
    presets = {**(usual or defaults()), **VRAM_PRESETS.get(str(values["vram"]), {}), **model}
    return {name: values[name] if name in touched else presets[name] for name in values}


def newest_draft(outputs: Path) -> Draft | None:
    """The draft that was edited last, or None."""
    try:
        names = [entry.name for entry in os.scandir(outputs / DRAFTS) if entry.is_dir() and _ID.fullmatch(entry.name)]
    except OSError:
        return None

    def edited(name: str) -> float:
        folder = outputs / DRAFTS / name
        return max(
            (file.stat().st_mtime for file in (folder / "events.jsonl", folder / "dataset") if file.exists()), default=0
        )

    return Draft(outputs, max(names, key=edited)) if names else None


def new_draft(outputs: Path) -> Draft:
    """An empty draft that will be the newest. Raises RunError where the outputs folder can't be written."""
    check_outputs(outputs)
    draft = Draft(outputs)
    draft._is_new = False  # whatever else there is
    draft.clear()
    return draft


def fill_from(draft: Draft, values: dict[str, Any], pictures: Path) -> None:
    """Set the draft to another run's (or the example's) settings and a copy of its pictures. Raises UserError."""
    shutil.rmtree(draft.folder.dataset, ignore_errors=True)
    copy_pictures(pictures, draft.dataset)
    draft.edit(values, touched=values)


def copy_pictures(source: Path, target: Path, *, link: bool = False) -> None:
    """Every picture with its caption, without looking into them: they were checked on their way in.

    `link` saves the disk the second copy, for a source that goes away (a draft that becomes a run): a hard link of a
    picture that stays would let an editor change both.
    """
    for picture in list_pictures(source):
        if (target / picture.path.name).exists():
            continue
        _place(picture.path, target / picture.path.name, link)
        caption = picture.path.with_suffix(".txt")
        if caption.is_file():
            shutil.copyfile(caption, target / caption.name)


def _place(source: Path, target: Path, link: bool) -> None:
    if link:
        try:
            os.link(source, target)
            return
        except OSError:  # this disk has no hard links
            pass
    shutil.copyfile(source, target)
