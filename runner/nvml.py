"""One reading of the GPUs from NVIDIA's driver. What it does not tell is None, never 0. May block: see gpus.py."""

from __future__ import annotations

import ctypes
import logging
import os
import time
from collections.abc import Callable
from typing import Any

RETRY_SECONDS = 60.0
GIB = 2**30
FALLEN_OFF_THE_BUS = 79
MOST_EVENTS = 64
"""How many XID events one reading fetches at the most; the driver keeps the others for the next."""

log = logging.getLogger(__name__)

_THROTTLE = {
    0x0000000000000002: "applications_clocks",
    0x0000000000000004: "power_cap",
    0x0000000000000008: "hw_slowdown",
    0x0000000000000010: "sync_boost",
    0x0000000000000020: "sw_thermal",
    0x0000000000000040: "hw_thermal",
    0x0000000000000080: "hw_power_brake",
    0x0000000000000100: "display_clocks",
}  # 1 is "idle", which throttles nothing

_GPU_IS_LOST, _RESET_REQUIRED = 15, 16
_XID_EVENT = 8
_CLOCK_SM, _CLOCK_MEMORY = 1, 2
_UNCORRECTED, _SINCE_DRIVER_START = 1, 0


class Nvml:
    """The driver. Its library is loaded at the first reading, and again later where that failed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._nvml: Any = None
        self._try_at = float("-inf")
        self._known: dict[int, dict[str, Any]] = {}
        self._events: Any = None
        self._registered: dict[int, int | None] = {}
        """GPU → the address by which its events name it, None where it reports none."""
        self._xids: dict[int, list[int]] = {}

    def read(self) -> list[dict[str, Any]] | None:
        """One `gpu.sampled` for each visible GPU; None where no driver answers.

        A lost GPU keeps its name and has `problem` "lost". `xid_errors` are all that it reported since the runner
        began to listen, oldest first; None where the driver does not tell.
        """
        if not self._open():
            return None
        count = self._ask(self._nvml.nvmlDeviceGetCount)
        if count is None:  # the driver went away: start over later
            self.close()
            self._try_at = self._clock() + RETRY_SECONDS
            return None
        handles = [self._ask(self._nvml.nvmlDeviceGetHandleByIndex, index) for index in range(count)]
        self._listen(handles)
        found = [self._one(index, handle) for index, handle in enumerate(handles)]
        return [sample for sample in found if _visible(sample["index"], sample["uuid"])]

    def close(self) -> None:
        """Let go of the driver."""
        if self._nvml is not None:
            if self._events is not None:
                self._ask(self._nvml.nvmlEventSetFree, self._events)
            self._ask(self._nvml.nvmlShutdown)
            self._nvml, self._events, self._registered = None, None, {}

    def _one(self, index: int, handle: Any) -> dict[str, Any]:
        nvml = self._nvml
        lost = handle is None

        def ask(function: str, *arguments: Any) -> Any:
            nonlocal lost
            if lost:
                return None
            answer = self._ask(getattr(nvml, function, None), handle, *arguments, tell_lost=True)
            lost = answer is _LOST
            return None if lost else answer

        uuid, name = ask("nvmlDeviceGetUUID"), ask("nvmlDeviceGetName")
        if uuid is None:  # a lost GPU doesn't tell its name any more
            uuid, name = (self._known.get(index, {}).get(key) for key in ("uuid", "name"))
        else:
            self._known[index] = {"uuid": uuid, "name": name}
        use, memory = ask("nvmlDeviceGetUtilizationRates"), ask("nvmlDeviceGetMemoryInfo")
        power, limit = ask("nvmlDeviceGetPowerUsage"), ask("nvmlDeviceGetEnforcedPowerLimit")
        reasons = ask("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:
            reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        xids = self._xids.get(index)
        sample = {
            "index": index,
            "uuid": uuid,
            "name": name,
            "utilization_percent": None if use is None else int(use.gpu),
            "memory_used_gib": None if memory is None else round(memory.used / GIB, 3),
            "memory_total_gib": None if memory is None else round(memory.total / GIB, 3),
            "power_watts": None if power is None else round(power / 1000, 1),
            "power_limit_watts": None if limit is None else round(limit / 1000, 1),
            "temperature_c": ask("nvmlDeviceGetTemperature", 0),
            "throttle_reasons": None if reasons is None else [name for bit, name in _THROTTLE.items() if reasons & bit],
            "sm_clock_mhz": ask("nvmlDeviceGetClockInfo", _CLOCK_SM),
            "memory_clock_mhz": ask("nvmlDeviceGetClockInfo", _CLOCK_MEMORY),
            "ecc_uncorrected": ask("nvmlDeviceGetTotalEccErrors", _UNCORRECTED, _SINCE_DRIVER_START),
            "xid_errors": None if xids is None else list(xids),
        }
        if xids and FALLEN_OFF_THE_BUS in xids and use is None and memory is None:
            lost = True  # some drivers answer "unknown error" then
        if lost:  # what was read before it went is of no use either
            sample |= unknown(sample)
        return {**sample, "problem": "lost" if lost else None}

    def _listen(self, handles: list[Any]) -> None:
        """Ask for XID events once, and fetch what came, without waiting."""
        nvml = self._nvml
        if self._events is None and not self._registered:
            self._events = self._ask(nvml.nvmlEventSetCreate)
        for index, handle in enumerate(handles):
            if handle is not None and index not in self._registered:
                registered = self._events is not None and self._tell(
                    nvml.nvmlDeviceRegisterEvents, handle, _XID_EVENT, self._events
                )
                self._registered[index] = _address(handle) if registered else None
                if registered:
                    self._xids.setdefault(index, [])
        of = {address: index for index, address in self._registered.items() if address is not None}
        wait = getattr(nvml, "nvmlEventSetWait_v2", None)
        for _ in range(MOST_EVENTS if of else 0):
            event = self._ask(wait, self._events, 0)
            if event is None:
                break
            known = of.get(_address(event.device))
            if known is not None and event.eventType == _XID_EVENT:
                self._xids[known].append(int(event.eventData))

    def _open(self) -> bool:
        if self._nvml is not None:
            return True
        if self._clock() < self._try_at:
            return False
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception as error:  # no library, no driver, or one that does not answer: all the same to us
            self._try_at = self._clock() + RETRY_SECONDS
            log.debug("no GPU readings: %s", error)
            return False
        self._nvml = pynvml
        return True

    def _ask(self, function: Callable[..., Any] | None, *arguments: Any, tell_lost: bool = False) -> Any:
        """The driver's answer, or None. A function that it lacks raises NVMLError or NVMLLibraryMismatchError."""
        if function is None:
            return None
        try:
            answer = function(*arguments)
        except self._nvml.NVMLError as error:
            return _LOST if tell_lost and error.value in (_GPU_IS_LOST, _RESET_REQUIRED) else None
        except (self._nvml.NVMLLibraryMismatchError, OSError, AttributeError):
            return None
        return answer.decode(errors="replace") if isinstance(answer, bytes) else answer

    def _tell(self, function: Callable[..., Any], *arguments: Any) -> bool:
        """Whether the driver took an order, to which its answer is no more than that."""
        try:
            function(*arguments)
        except (self._nvml.NVMLError, self._nvml.NVMLLibraryMismatchError, OSError, AttributeError):
            return False
        return True


_LOST = object()


def _address(handle: Any) -> int:
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def unknown(sample: dict[str, Any]) -> dict[str, Any]:
    """A reading of the same GPU in which nothing is known but who it is."""
    return {key: sample[key] if key in ("index", "uuid", "name", "xid_errors") else None for key in sample}


def _visible(index: int, uuid: str | None) -> bool:
    """Whether CUDA_VISIBLE_DEVICES of the runner, where set, names this GPU."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return True
    names = [name.strip() for name in given.split(",") if name.strip()]
    return str(index) in names or any(uuid is not None and uuid.startswith(name) for name in names)
