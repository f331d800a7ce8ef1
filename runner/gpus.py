"""Readings of the GPUs through NVML. What a driver does not tell is None, never 0; no driver: no readings."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any, Protocol

RETRY_SECONDS = 60.0
GIB = 2**30

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


class Gpus(Protocol):
    """The GPUs that trainers may use."""

    def by_index(self) -> dict[int, str]:
        """The uuids of the visible GPUs by the number that nvidia-smi shows; empty where there is none or no driver."""

    def sample(self) -> list[dict[str, Any]]:
        """One `gpu.sampled` for each visible GPU."""


class NvmlGpus:
    """NVIDIA's GPUs. Loads the driver's library when first asked, and again later where that failed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._nvml: Any = None
        self._try_at = float("-inf")
        self._uuids: dict[int, str] = {}

    def by_index(self) -> dict[int, str]:
        return {int(gpu["index"]): str(gpu["uuid"]) for gpu in self._read(details=False) if gpu["uuid"]}

    def uuids(self) -> list[str]:
        """The visible GPUs, in order."""
        return list(self.by_index().values())

    def sample(self) -> list[dict[str, Any]]:
        return self._read(details=True)

    def close(self) -> None:
        """Let go of the driver."""
        if self._nvml is not None:
            self._ask(self._nvml.nvmlShutdown)
            self._nvml = None

    def _read(self, details: bool) -> list[dict[str, Any]]:
        if not self._open():
            return []
        nvml = self._nvml
        count = self._ask(nvml.nvmlDeviceGetCount)
        if count is None:  # the driver went away: start over later
            self.close()
            self._try_at = self._clock() + RETRY_SECONDS
            return []
        found = []
        for index in range(count):
            handle = self._ask(nvml.nvmlDeviceGetHandleByIndex, index)
            uuid = self._ask(nvml.nvmlDeviceGetUUID, handle) if handle is not None else None
            if uuid is not None:
                self._uuids[index] = uuid
            elif details:
                uuid = self._uuids.get(index)  # a lost GPU doesn't tell its name any more
            if _visible(index, uuid):
                sample: dict[str, Any] = {"index": index, "uuid": uuid}
                found.append({**sample, **self._details(handle)} if details else sample)
        return found

    def _details(self, handle: Any) -> dict[str, Any]:
        nvml = self._nvml

        def ask(function: str, *arguments: Any) -> Any:
            return self._ask(getattr(nvml, function, None), handle, *arguments) if handle is not None else None

        use, memory = ask("nvmlDeviceGetUtilizationRates"), ask("nvmlDeviceGetMemoryInfo")
        power, limit = ask("nvmlDeviceGetPowerUsage"), ask("nvmlDeviceGetEnforcedPowerLimit")
        reasons = ask("nvmlDeviceGetCurrentClocksEventReasons")
        if reasons is None:
            reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons")
        return {
            "name": ask("nvmlDeviceGetName"),
            "utilization_percent": None if use is None else int(use.gpu),
            "memory_used_gib": None if memory is None else round(memory.used / GIB, 3),
            "memory_total_gib": None if memory is None else round(memory.total / GIB, 3),
            "power_watts": None if power is None else round(power / 1000, 1),
            "power_limit_watts": None if limit is None else round(limit / 1000, 1),
            "temperature_c": ask("nvmlDeviceGetTemperature", 0),
            "throttle_reasons": None if reasons is None else [name for bit, name in _THROTTLE.items() if reasons & bit],
        }

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

    def _ask(self, function: Callable[..., Any] | None, *arguments: Any) -> Any:
        """The driver's answer, or None. A function that it lacks raises NVMLError or NVMLLibraryMismatchError."""
        if function is None:
            return None
        try:
            answer = function(*arguments)
        except (self._nvml.NVMLError, self._nvml.NVMLLibraryMismatchError, OSError, AttributeError):
            return None
        return answer.decode(errors="replace") if isinstance(answer, bytes) else answer


class NoGpus:
    """A machine without GPUs."""

    def by_index(self) -> dict[int, str]:
        return {}

    def sample(self) -> list[dict[str, Any]]:
        return []


def _visible(index: int, uuid: str | None) -> bool:
    """Whether CUDA_VISIBLE_DEVICES of the runner, where set, names this GPU."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return True
    names = [name.strip() for name in given.split(",") if name.strip()]
    return str(index) in names or any(uuid is not None and uuid.startswith(name) for name in names)
