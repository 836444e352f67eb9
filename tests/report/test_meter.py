"""The meter: counters and estimates, sessions that add up, and that nothing of it can end a run."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from whippet.report import meter
from whippet.report.emissions import total
from whippet.report.meter import ENERGY, Meter, Nvml, Rapl
from whippet.report.metrics import read_metrics
from whippet.report.watts import CPU_CORE_WATTS, gpu_watts

CPU = torch.device("cpu")


class Clock:
    """A clock and a processor's time that go as they are told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.busy = 100.0, 7.0
        monkeypatch.setattr(meter.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(meter, "_busy_seconds", lambda: self.busy)

    def goes(self, seconds: float, busy: float = 0.0) -> None:
        self.now, self.busy = self.now + seconds, self.busy + busy


class FakeNvml:
    """The three functions of NVML that are called. ``joules`` is None for a card without a counter."""

    def __init__(self, joules: float | None = 50.0, known: bytes = b"GPU-1234") -> None:
        self.joules, self.known = joules, known

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, handle: Any) -> int:
        return 0 if uuid == self.known else 6

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, out: Any) -> int:
        if self.joules is None:
            return 3
        ctypes.cast(out, ctypes.POINTER(ctypes.c_ulonglong)).contents.value = round(self.joules * 1000)
        return 0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    monkeypatch.setattr(meter, "POWERCAP", tmp_path / "no-powercap")
    return Clock(monkeypatch)


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    library = FakeNvml()
    monkeypatch.setattr(meter.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("P", (), {"uuid": "1234"})())
    return library


def lines(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / ENERGY)


def test_a_processor_is_estimated_by_its_busy_time(clock: Clock, tmp_path: Path) -> None:
    taken = Meter(tmp_path, CPU, print)
    clock.goes(9, busy=12)
    taken.log({"step": 1})
    assert not (tmp_path / ENERGY).exists()
    clock.goes(2, busy=3)
    taken.log({"step": 2})
    assert lines(tmp_path) == [
        {"step": 2, "session": 1, "seconds": 11.0, "device": lines(tmp_path)[0]["device"], "gpu": None,
         "cpu": {"joules": 15 * CPU_CORE_WATTS, "how": "estimate"}}
    ]  # fmt: skip
    taken.log({"step": 3})
    taken.close()
    assert [line["step"] for line in lines(tmp_path)] == [2, 3]


def test_sessions_add_up_and_a_crash_loses_a_line(clock: Clock, tmp_path: Path) -> None:
    for busy in (10, 20):
        taken = Meter(tmp_path, CPU, print)
        clock.goes(30, busy=busy)
        taken.log({"step": 1})
        clock.goes(30, busy=busy)
        taken.close()
        with (tmp_path / ENERGY).open("a") as file:
            file.write('{"step": 2, "session": 9, "cp')  # killed in the middle of a line
    last = Meter(tmp_path, CPU, print)
    last.close()
    energy = total(lines(tmp_path))
    assert energy is not None and (energy.sessions, energy.seconds) == (3, 120.0)
    assert energy.cpu.joules == (20 + 40) * CPU_CORE_WATTS and energy.gpu is None


def test_a_gpu_is_read_from_its_counter(clock: Clock, h100: FakeNvml, tmp_path: Path) -> None:
    taken = Meter(tmp_path, torch.device("cuda"), print)
    h100.joules = 650.0
    clock.goes(60)
    taken.close()
    assert lines(tmp_path)[0]["gpu"] == {"joules": 600.0, "how": "counter"}
    assert lines(tmp_path)[0]["device"] == "NVIDIA H100 80GB HBM3"


def test_a_counter_that_falls_silent_keeps_its_last_figure_and_says_so(
    clock: Clock, h100: FakeNvml, tmp_path: Path
) -> None:
    taken = Meter(tmp_path, torch.device("cuda"), print)
    h100.joules = 90.0
    clock.goes(20)
    taken.log({"step": 1})
    h100.joules = None
    taken.close()
    assert [line["gpu"] for line in lines(tmp_path)] == [
        {"joules": 40.0, "how": "counter"}, {"joules": 40.0, "how": "partial"},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "joules", "uuid", "given", "wanted"),
    [
        ("NVIDIA H100 PCIe", None, "1234", None, 350 * 60),
        ("NVIDIA H100 PCIe", 50.0, "another", None, 350 * 60),
        ("NVIDIA H100 PCIe", 50.0, "1234", 200.0, 200 * 60),
        ("Some New Chip", None, "1234", None, None),
    ],
    ids=["no-counter", "not-known-to-nvml", "watts-of-the-recipe", "unknown-chip"],
)
def test_a_gpu_without_a_counter_is_watts_times_time(
    clock: Clock, h100: FakeNvml, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, joules: float | None,
    uuid: str, given: float | None, wanted: float | None,
) -> None:  # fmt: skip
    h100.joules = joules
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: type("P", (), {"uuid": uuid})())
    taken = Meter(tmp_path, torch.device("cuda"), print, given)
    clock.goes(60)
    taken.close()
    assert lines(tmp_path)[0]["gpu"] == {"joules": wanted, "how": "estimate"}


def test_no_nvml_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "NVML", "libno-such-library.so.1")
    with pytest.raises(LookupError, match="no NVML"):
        Nvml("1234")


def zone(root: Path, place: str, name: str, microjoules: int) -> Path:
    folder = root / place
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text("1000000000\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_rapl_sums_packages_and_memory_and_goes_round(tmp_path: Path) -> None:
    first, memory = zone(tmp_path, "intel-rapl:0", "package-0", 100), zone(tmp_path, "intel-rapl:0:1", "dram", 0)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 999_000_000)
    core = zone(tmp_path, "intel-rapl:0:0", "core", 0)  # a part of its package
    machine = zone(tmp_path, "intel-rapl:2", "psys", 0)  # all of it once more
    counter = Rapl(tmp_path)
    core.write_text("9000000\n")
    machine.write_text("9000000\n")
    first.write_text("5000100\n")
    memory.write_text("2000000\n")
    second.write_text("1000000\n")  # past 1000 J it begins anew
    assert counter.joules() == pytest.approx(5 + 2 + 2)
    second.unlink()
    assert counter.joules() is None


@pytest.mark.parametrize("spoiled", ["nothing", "unreadable", "words"])
def test_rapl_that_cannot_be_read_is_an_answer(tmp_path: Path, spoiled: str) -> None:
    if spoiled != "nothing":
        file = zone(tmp_path, "intel-rapl:0", "package-0", 100)
        file.unlink()
        if spoiled == "words":
            file.write_text("many\n")
    with pytest.raises(LookupError):
        Rapl(tmp_path)


def test_nothing_of_it_can_end_a_run(clock: Clock, tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / ENERGY).write_text("no record\n")
    taken = Meter(tmp_path, CPU, said.append)
    assert "set aside" in said[0] and (tmp_path / f"{ENERGY}.unreadable").read_text() == "no record\n"
    clock.goes(20, busy=1)
    taken.log({"step": 1})
    assert len(lines(tmp_path)) == 1
    (tmp_path / ENERGY).unlink()
    (tmp_path / ENERGY).mkdir()  # as good as a disk that is gone
    clock.goes(20)
    taken.log({"step": 2})
    taken.close()
    assert len(said) == 2 and "no longer written" in said[1]
    Meter(tmp_path, CPU, said.append).close()
    assert len(said) == 3


def test_it_is_cheap(tmp_path: Path) -> None:
    """Looking at the clock at each step: a hundred thousand looks in less than a second."""
    import time

    taken = Meter(tmp_path, CPU, print)
    started = time.perf_counter()
    for step in range(100_000):
        taken.log({"step": step})
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    ("name", "watts"),
    [
        ("NVIDIA H100 80GB HBM3", 700), ("NVIDIA H100 PCIe", 350), ("NVIDIA A100-SXM4-80GB", 400),
        ("NVIDIA A100 80GB PCIe", 300), ("NVIDIA L40S", 350), ("NVIDIA L40", 300), ("NVIDIA L4", 72), ("Tesla T4", 70),
        ("NVIDIA GeForce RTX 4090", 450), ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA T400", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("AMD Instinct MI300X", None),
    ],
)  # fmt: skip
def test_watts_by_name(name: str, watts: float | None) -> None:
    assert gpu_watts(name) == watts


@pytest.mark.gpu
def test_the_counter_of_a_real_gpu(tmp_path: Path) -> None:
    device = torch.device("cuda")
    taken = Meter(tmp_path, device, print)
    product = torch.ones(8192, 8192, device=device, dtype=torch.bfloat16)
    for _ in range(300):
        product @ product
    torch.cuda.synchronize()
    taken.close()
    told = lines(tmp_path)[0]
    assert told["gpu"]["how"] == "counter", json.dumps(told)
    assert 50 * told["seconds"] < told["gpu"]["joules"] < 1200 * (told["seconds"] + 0.2)
