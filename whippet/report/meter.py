"""Measures what a run takes: the GPU's own counter (NVML), the processor's (RAPL), else watts times time.

Comes in: the device, and the records of the loop, for the meter takes them as a tracker does (``trackers.py``) and is
read no more often than every ten seconds. Goes out: ``energy.jsonl`` in the run's folder, a line each time: joules
since this session began. A run that was stopped begins another session, so nothing is counted twice, and a crash loses
what came after the last line: ten seconds and the step under way. Nothing here can end a run: what cannot be read is
estimated, or told to be unknown.

Both counters measure a whole chip, whoever uses it. A processor without a readable counter is taken as its time in
this process at ``CPU_CORE_WATTS``. Memory outside the chips, disks, fans and losses of the supply are not measured.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from whippet.errors import UsageError
from whippet.report.emissions import COUNTER, ESTIMATE, PARTIAL
from whippet.report.metrics import MetricsLog, Record, read_metrics
from whippet.report.watts import CPU_CORE_WATTS, gpu_watts

ENERGY = "energy.jsonl"
EVERY = 10.0
"""Seconds between readings: a counter takes microseconds, a line of the file less than a millisecond."""
NVML = "nvml.dll" if sys.platform == "win32" else "libnvidia-ml.so.1"
POWERCAP = Path("/sys/class/powercap")
ZONES = re.compile(r"intel-rapl:\d+(:\d+)?")
"""Under Linux AMD's processors have zones of that name too."""


class Counter(Protocol):
    """Hardware that counts its energy."""

    def joules(self) -> float | None:
        """Since some moment in the past; None if it does not answer."""


class Nvml:
    """The energy counter of one GPU (Volta and later), by its UUID. Raises LookupError if there is none."""

    def __init__(self, uuid: str) -> None:
        try:
            self._library = ctypes.CDLL(NVML)
            self._read = self._library.nvmlDeviceGetTotalEnergyConsumption
            ready = self._library.nvmlInit_v2() == 0
        except (OSError, AttributeError) as error:
            raise LookupError(f"no NVML: {error}") from error
        self._device = ctypes.c_void_p()
        named = (uuid if uuid.startswith("GPU-") else f"GPU-{uuid}").encode()
        if not ready or self._library.nvmlDeviceGetHandleByUUID(named, ctypes.byref(self._device)) != 0:
            raise LookupError("NVML does not know the GPU")
        if self.joules() is None:
            raise LookupError("the GPU has no energy counter")

    def joules(self) -> float | None:
        """Since the driver was loaded."""
        millijoules = ctypes.c_ulonglong()
        return None if self._read(self._device, ctypes.byref(millijoules)) != 0 else millijoules.value / 1e3


class Rapl:
    """The counters of all processors and their memory. Raises LookupError if one cannot be read (most systems let only
    root do so)."""

    def __init__(self, root: Path) -> None:
        self._zones: list[tuple[Path, int]] = []
        try:
            for zone in sorted(root.iterdir() if root.is_dir() else ()):
                if ZONES.fullmatch(zone.name) and _word(zone / "name").startswith(("package", "dram")):
                    self._zones.append((zone / "energy_uj", int(_word(zone / "max_energy_range_uj"))))
            self._last = [int(_word(path)) for path, _ in self._zones]
        except (OSError, ValueError) as error:
            raise LookupError(f"RAPL cannot be read: {error}") from error
        if not self._zones:
            raise LookupError("no RAPL")
        self._sum = 0

    def joules(self) -> float | None:
        """Since this object was made. A counter that began anew is seen if it is read once a round (minutes)."""
        try:
            now = [int(_word(path)) for path, _ in self._zones]
        except (OSError, ValueError):
            return None
        for value, before, (_, most) in zip(now, self._last, self._zones, strict=True):
            self._sum += value - before if value >= before else value - before + most
        self._last = now
        return self._sum / 1e6


class Meter:
    """Counts from its making until ``close``. A tracker: give it to the loop."""

    def __init__(
        self, folder: Path, device: torch.device, note: Callable[[str], None], watts: float | None = None
    ) -> None:
        """``watts`` counts the GPU as so much in place of its counter."""
        self._log, self._note = MetricsLog(folder / ENERGY), note
        self._session = self._begin()
        self._gpu_name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
        self._device = self._gpu_name or f"CPU ({platform.machine()})"
        gpu: Counter | None = None
        if self._gpu_name is not None and watts is None:
            gpu = _counter(lambda: Nvml(str(getattr(torch.cuda.get_device_properties(device), "uuid", ""))))
            watts = gpu_watts(self._gpu_name)
        self._gpu = _Reading(gpu, lambda: None if watts is None else watts * self._seconds())
        busy = _busy_seconds()
        self._cpu = _Reading(_counter(lambda: Rapl(POWERCAP)), lambda: CPU_CORE_WATTS * (_busy_seconds() - busy))
        self._started = self._written = time.monotonic()
        self._step = 0

    def log(self, record: Mapping[str, Any]) -> None:
        """A step was made: write where things stand, if it is time."""
        self._step = int(record["step"])
        if time.monotonic() - self._written >= EVERY:
            self._write()

    def close(self) -> None:
        """Write the last line of this session."""
        self._write()

    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _begin(self) -> int | None:
        """The number of this session; None if the file cannot be used, and then nothing is written."""
        path, records = self._log.path, []
        try:
            try:
                self._log.truncate_after(sys.maxsize)  # a line that a crash cut short
                records = read_metrics(path) if path.is_file() else []
            except UsageError as error:
                path.replace(path.with_name(f"{path.name}.unreadable"))
                self._note(f"{error}; set aside as {path.name}.unreadable, energy is counted anew")
        except OSError as error:
            self._note(f"energy is not measured: {error}")
            return None
        return 1 + max((record["session"] for record in records if type(record.get("session")) is int), default=0)

    def _write(self) -> None:
        self._written = time.monotonic()
        if self._session is None:
            return
        record: Record = {
            "step": self._step, "session": self._session, "seconds": self._seconds(), "device": self._device,
            "gpu": self._gpu.as_dict() if self._gpu_name is not None else None, "cpu": self._cpu.as_dict(),
        }  # fmt: skip
        try:
            self._log.append(record)
        except OSError as error:
            self._note(f"energy is no longer written: {error}")
            self._session = None


class _Reading:
    """A counter from where it stood, or an estimate."""

    def __init__(self, counter: Counter | None, estimate: Callable[[], float | None]) -> None:
        self._counter, self._estimate = counter, estimate
        self._from = counter.joules() if counter is not None else None
        self._last, self._how = 0.0, COUNTER

    def as_dict(self) -> dict[str, Any]:
        if self._counter is None or self._from is None:
            return {"joules": self._estimate(), "how": ESTIMATE}
        now = self._counter.joules()
        if now is None or now < self._from:
            self._how = PARTIAL
        else:
            self._last = now - self._from
        return {"joules": self._last, "how": self._how}


def _counter(make: Callable[[], Counter]) -> Counter | None:
    try:
        return make()
    except LookupError:
        return None


def _busy_seconds() -> float:
    """Time of all cores in this process and in those that it waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _word(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()
