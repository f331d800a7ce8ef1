"""The trainer's parent: outlives the runner, waits for the trainer, writes down how it ended.

Started by the runner as a script (`python -I -S shim.py ORDER`), in a session of its own, so that closing a terminal,
a disconnect or the runner's death touch neither shim nor trainer. It is the subreaper of everything the trainer starts:
what daemonises itself stays its descendant and can be found. Standard library only, in one file: it must start in
milliseconds and stay small for as long as a training lasts.

What it leaves in the attempt's folder, each file whole or absent:

    claim.json     this shim serves this attempt: a second shim for it ends at once; or the runner has given it up
    process.json   the trainer's pid, creation time and boot, on the disk before the trainer's program starts
    exit.json      exit code, signal, seconds, and how many processes of the control group the kernel killed for want
                   of memory: meanwhile, and in all
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

PR_SET_CHILD_SUBREAPER = 36
PR_SET_PTRACER, PR_SET_PTRACER_ANY = 0x59616D61, 2**64 - 1
CLAIMED = 75  # exit code of a shim whose attempt is another's
_GO = b"g"
_IGNORED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)


def main(order: dict[str, Any]) -> int:
    """Serve one attempt. `order`: `folder` (of the attempt), `argv`, `cwd`, `env` (added to this process's), `log`."""
    folder = Path(order["folder"])
    if not claim(folder):
        return CLAIMED
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    log_offset = os.stat(order["log"]).st_size
    oom_before, begun = oom_kills(), time.monotonic()

    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        start_trainer(reader, order)
    os.close(reader)
    write_whole(folder / "process.json", {**identity(pid), "shim": identity(os.getpid()), "log_offset": log_offset})
    os.write(writer, _GO)
    os.close(writer)

    status = wait_for(pid)
    oom_now = oom_kills()
    ended = {
        "seconds": round(time.monotonic() - begun, 3),
        "oom_kills": max(0, (oom_now or 0) - (oom_before or 0)),
        "oom_total": oom_now,
    }
    write_whole(folder / "exit.json", {**exit_of(status), **ended})
    reap_the_rest()
    return 0


def claim(folder: Path, owner: dict[str, Any] | None = None) -> bool:
    """Whether this attempt is ours: the first one makes the file, whole at once, all others find it.

    `owner`: what it says, by default this process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, aside = folder / "claim.json", folder / f".claim-{os.getpid()}.tmp"
    try:
        with open(aside, "w") as file:
            json.dump(owner or identity(os.getpid()), file)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, path)
        except FileExistsError:
            return False
        except OSError:  # no hard links here; then it is empty for a moment, for which the runner waits
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
            os.replace(aside, path)
        return True
    except FileExistsError:
        return False
    finally:
        aside.unlink(missing_ok=True)


def start_trainer(reader: int, order: dict[str, Any]) -> None:
    """In the child: wait until the parent has written process.json, then become the trainer. Never returns."""
    try:
        if os.read(reader, 1) != _GO:  # the shim died before it could write the trainer down: then there is none
            os._exit(126)
        os.close(reader)
        for number in _IGNORED:
            signal.signal(number, signal.SIG_DFL)
        # Where the machine lets only parents look into a process (Yama), the runner's py-spy may look into this one.
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(PR_SET_PTRACER_ANY), 0, 0, 0)
        os.setpgid(0, 0)  # a trainer that signals its own group must not reach the shim
        os.chdir(order["cwd"])
        os.execvpe(order["argv"][0], order["argv"], {**os.environ, **order["env"]})
    except BaseException as error:
        os.write(2, f"the trainer can't be started: {order['argv'][0]}: {error}\n".encode())
        os._exit(127)


def wait_for(pid: int) -> int:
    """The wait status of `pid`; orphans of the trainer that end meanwhile are reaped."""
    while True:
        ended, status = os.waitpid(-1, 0)
        if ended == pid:
            return status


def reap_the_rest() -> None:
    """Stay while anything the trainer started still lives, so that the runner can find it below this process."""
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        return


def exit_of(status: int) -> dict[str, Any]:
    """A wait status as exit.json has it; a signal's exit code is 128 + its number, as in a shell."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        named = number in set(signal.Signals)
        return {"exit_code": 128 + number, "signal": signal.Signals(number).name if named else f"SIG{number}"}
    return {"exit_code": os.WEXITSTATUS(status), "signal": None}


def identity(pid: int) -> dict[str, Any]:
    """pid, creation time (epoch seconds; ticks since boot) and boot of a process."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        ticks = int(file.read().rpartition(b")")[2].split()[19])
    with open("/proc/stat") as file:
        booted = float(next(line.split()[1] for line in file if line.startswith("btime")))
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    created = booted + ticks / os.sysconf("SC_CLK_TCK")
    return {"pid": pid, "create_time": created, "start_ticks": ticks, "boot_id": boot}


def oom_kills(pid: int | str = "self") -> int | None:
    """How many processes of this one's control group the kernel has killed for want of memory so far.

    Whoever's limit it was: the kernel counts where the victim was. None where it doesn't tell.
    """
    candidates = [Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control")]
    try:
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                candidates.insert(0, Path("/sys/fs/cgroup" + path) / "memory.events")
            elif "memory" in controllers.split(","):
                candidates.insert(0, Path("/sys/fs/cgroup/memory" + path) / "memory.oom_control")
    except (OSError, ValueError):
        pass
    for file in candidates:
        try:
            counts = [int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith("oom_kill ")]
        except (OSError, ValueError, IndexError):
            continue
        if counts:
            return counts[0]
    return None


def write_whole(path: Path, data: dict[str, Any]) -> None:
    """Write aside, sync, rename, sync the folder. Retries for ever: this record is why the shim exists."""
    while True:
        try:
            aside = path.with_suffix(".tmp")
            with open(aside, "w") as file:
                json.dump(data, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(folder)
            os.close(folder)
            return
        except OSError:  # a full disk; the folder being gone ends it
            if not path.parent.is_dir():
                return
            time.sleep(1.0)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
