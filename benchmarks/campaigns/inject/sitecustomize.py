"""Makes the real trainer hang at a step, for `bench hangs`: this folder is put on PYTHONPATH, nothing else knows of it.

`BENCH_HANGS` is a JSON object: run → {"kind", "step"}. Only the first attempt hangs, so that its resume can go on. When
it does, `.hung` appears in the run's folder.
"""

import importlib.machinery
import json
import os
import signal
import sys
from pathlib import Path

RANDOMNESS, STATES = "fluxcore.training.randomness", "fluxcore.training.states"


def hang(kind):
    """Never return (but where a stopped process is continued)."""
    (Path(os.environ["FLUXGYM_RUN"]) / ".hung").touch()
    if kind == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif kind == "busy loop":
        while True:
            pass
    elif kind == "dead worker":
        import multiprocessing

        batches = multiprocessing.Queue()
        workers = [multiprocessing.Process(target=signal.pause, daemon=True) for _ in range(2)]
        for worker in workers:
            worker.start()
        workers[0].kill()
        batches.get()  # what the dead one would have put there
    else:
        import threading

        lock = threading.Lock()
        lock.acquire()
        lock.acquire()


def patch(module, kind, at):
    """Put the hang into a module of the trainer that was just imported."""
    if module.__name__ == STATES and kind == "lock in a save":
        sync_tree = module.sync_tree

        def sync_or_hang(folder):
            if json.loads((folder / "train_state.json").read_text())["current_step"] == at:
                hang(kind)
            sync_tree(folder)

        module.sync_tree = sync_or_hang
    if module.__name__ == RANDOMNESS and kind != "lock in a save":
        step_items = module.step_items

        def items_or_hang(seed, step, *rest):
            if step == at:
                hang(kind)
            return step_items(seed, step, *rest)

        module.step_items = items_or_hang


class Finder:
    """Finds the trainer's modules as ever, and patches them once they are loaded."""

    def __init__(self, kind, at):
        self.kind, self.at = kind, at

    def find_spec(self, name, path=None, target=None):
        if name not in (RANDOMNESS, STATES):
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        load = spec.loader.exec_module

        def load_and_patch(module):
            load(module)
            patch(module, self.kind, self.at)

        spec.loader.exec_module = load_and_patch
        return spec


def arm():
    """Hang in this process, where it is the first attempt of a run that is told to."""
    run = os.path.basename(os.environ.get("FLUXGYM_RUN", ""))
    order = json.loads(os.environ.get("BENCH_HANGS", "{}")).get(run)
    if order and os.environ.get("FLUXGYM_ATTEMPT") == "1":
        sys.meta_path.insert(0, Finder(order["kind"], order["step"]))


arm()
