"""What the devices do now: utilisation, memory, watts. Measured where something measures."""

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from agent import nvml
from agent.nvml import Nvml
from agent.owner import Load
from agent.protocol import Device, DeviceSample

CORE_WATTS: Final = 4.0
"""A server core under load: a 96-core EPYC 9654 draws 360 W by its data sheet, 3.75 W a core."""
_POWERCAP: Final = Path("/sys/class/powercap")
_LEAST_S: Final = 0.2
"""Readings closer together than this are answered from the last one."""


@dataclass(frozen=True)
class Power:
    """What some devices draw; `measured` only if all of it is."""

    watts: float
    measured: bool


class Sampler:
    """Reads all devices at most every fifth of a second; for one thread."""

    def __init__(
        self, devices: Sequence[Device], cores: Sequence[int], driver: Nvml | None
    ) -> None:
        self._devices, self._cores, self._nvml = tuple(devices), tuple(cores), driver
        self._rapl = Rapl()
        self._busy = _CoreTimes(cores)
        self._at = 0.0
        self._samples: dict[str, DeviceSample] = {}
        self._measured: dict[str, bool] = {}
        self._share = 0.0

    @property
    def measures(self) -> bool:
        """Whether all devices' power is measured."""
        self.take()
        return all(self._measured.values())

    def take(self) -> list[DeviceSample]:
        """A sample of each device."""
        now = time.monotonic()
        if now - self._at >= _LEAST_S or not self._samples:
            self._at = now
            self._share = self._busy.share()
            for device in self._devices:
                sample = self._of_gpu(device) if device.kind == "gpu" else self._of_cpu(device)
                self._samples[device.uuid] = sample
        return list(self._samples.values())

    def power(self, uuids: Iterable[str]) -> Power:
        """What these devices draw; raises KeyError for a device that isn't ours."""
        self.take()
        uuids = list(uuids)
        watts = [
            self._samples[uuid].watts if self._measured[uuid] else self._estimate(uuid)
            for uuid in uuids
        ]
        return Power(sum(watts), all(self._measured[uuid] for uuid in uuids))

    def full_power(self, uuids: Iterable[str]) -> Power:
        """What these devices draw at most: an estimate for when nobody looked."""
        return Power(sum(map(self._limit, uuids)), measured=False)

    def utilisation(self, uuids: Iterable[str]) -> float:
        """The busiest of these devices, in percent."""
        self.take()
        return max((self._samples[uuid].utilisation for uuid in uuids), default=0.0)

    def _of_gpu(self, device: Device) -> DeviceSample:
        assert self._nvml is not None, "a GPU is listed only where NVML has found it"
        load = self._nvml.load(device.uuid)
        self._measured[device.uuid] = load.watts is not None
        return DeviceSample(
            uuid=device.uuid,
            utilisation=min(100.0, load.utilisation),
            memory_bytes=load.memory_bytes,
            watts=min(10_000.0, load.watts or 0.0),
            celsius=load.celsius,
            xid=load.xid,
        )

    def _of_cpu(self, device: Device) -> DeviceSample:
        watts = self._rapl.watts()
        self._measured[device.uuid] = watts is not None
        # A package holds more cores than may be let; each is charged alike.
        part = len(self._cores) / (psutil.cpu_count() or len(self._cores))
        return DeviceSample(
            uuid=device.uuid,
            utilisation=100.0 * self._share,
            memory_bytes=min(device.memory_bytes, psutil.virtual_memory().used),
            watts=(watts or 0.0) * min(1.0, part),
        )

    def _estimate(self, uuid: str) -> float:
        return self._limit(uuid) * self._samples[uuid].utilisation / 100

    def _limit(self, uuid: str) -> float:
        device = next(one for one in self._devices if one.uuid == uuid)
        return CORE_WATTS * device.cores if device.kind == "cpu" else float(device.watts)


class Rapl:
    """The energy counters of the processor's packages, where we may read them (mostly as root)."""

    def __init__(self, root: Path = _POWERCAP) -> None:
        self._counters = [
            zone / "energy_uj"
            for zone in sorted(root.glob("intel-rapl:*"))
            if _read(zone / "name").startswith("package") and _read(zone / "energy_uj")
        ]
        self._last: dict[Path, int] = {}
        self._at = 0.0
        self._watts: float | None = None
        self.watts()

    def watts(self) -> float | None:
        """Mean since the reading before; None if nothing measures."""
        now, used = time.monotonic(), 0
        if now - self._at < _LEAST_S:
            return self._watts
        for counter in self._counters:
            text = _read(counter)
            if not text.isdigit():
                return None
            before = self._last.get(counter, int(text))
            used += (int(text) - before) % _range(counter)
            self._last[counter] = int(text)
        elapsed, self._at = now - self._at, now
        if self._counters:
            self._watts = used / 1e6 / elapsed
        return self._watts


class Foreign:
    """What programs other than jobs and the agent do with the let cores and GPUs."""

    def __init__(self, cores: Sequence[int], driver: Nvml | None) -> None:
        self._cores, self._nvml = cores, driver
        self._busy = _CoreTimes(cores)
        self._at, self._ours_s = time.monotonic(), 0.0

    def read(self, keepers: Iterable[int]) -> Load:
        """Since the reading before; `keepers` are the process ids of all jobs' keepers."""
        ours = [process for pid in (os.getpid(), *keepers) for process in tree(pid)]
        used_s, now = cpu_seconds(ours), time.monotonic()
        elapsed = max(now - self._at, _LEAST_S)
        # a job that has ended takes its processor time with it: then none was ours
        share = max(0.0, used_s - self._ours_s) / elapsed / len(self._cores)
        self._at, self._ours_s = now, used_s
        programs = set(self._nvml.programs()) if self._nvml else set()
        stranger = nvml.foreign(programs, {process.pid for process in ours})
        return Load(max(0.0, self._busy.share() - share), stranger)


class _CoreTimes:
    """How busy some cores were since the reading before."""

    def __init__(self, cores: Sequence[int]) -> None:
        self._cores = cores
        self._last = self._read()

    def share(self) -> float:
        """0 to 1, over all of the cores."""
        now = self._read()
        busy, total = now[0] - self._last[0], now[1] - self._last[1]
        self._last = now
        return min(1.0, max(0.0, busy / total)) if total > 0 else 0.0

    def _read(self) -> tuple[float, float]:
        every = psutil.cpu_times(percpu=True)
        ours = [every[core] for core in self._cores if core < len(every)] or every
        idle = sum(times.idle + getattr(times, "iowait", 0.0) for times in ours)
        # guest time is already part of user time
        total = sum(sum(times) - getattr(times, "guest", 0.0) for times in ours)
        return total - idle, total


def cpu_seconds(processes: Iterable[psutil.Process]) -> float:
    """Processor time of some processes and of their ended children."""
    used = 0.0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            used += sum(process.cpu_times()[:4])
    return used


def tree(pid: int) -> list[psutil.Process]:
    """A process and all below it; empty if it has ended."""
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    return []


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii").strip()
    except OSError:
        return ""


def _range(counter: Path) -> int:
    text = _read(counter.with_name("max_energy_range_uj"))
    return int(text) + 1 if text.isdigit() else 2**63
