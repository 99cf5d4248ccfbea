"""The only door to NVIDIA's management library: what GPUs there are, and what they do."""

import contextlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pynvml

_XID: Final = pynvml.nvmlEventTypeXidCriticalError


@dataclass(frozen=True)
class Card:
    """One GPU as its driver tells it."""

    uuid: str
    index: int
    minor: int
    """N of /dev/nvidiaN, which need not be the index."""
    name: str
    memory_bytes: int
    watts: int
    """Its power limit; 0 if the driver does not say."""


@dataclass(frozen=True)
class Load:
    """What a GPU does now."""

    utilisation: float
    """Percent of the last sampling period in which some kernel ran."""
    memory_bytes: int
    watts: float | None
    celsius: float | None
    xid: int | None
    """The last critical error since the reading before, if there was one."""


class Nvml:
    """An open session with the driver."""

    def __init__(self) -> None:
        """Raises pynvml.NVMLError where there is no driver or no GPU; see `open_nvml`."""
        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        self._handles: dict[str, Any] = {pynvml.nvmlDeviceGetUUID(one): one for one in handles}
        self._events = pynvml.nvmlEventSetCreate()
        for handle in handles:
            with contextlib.suppress(pynvml.NVMLError):  # not every card and driver reports them
                pynvml.nvmlDeviceRegisterEvents(handle, _XID, self._events)
        self._xids: dict[str, int] = {}

    def cards(self) -> list[Card]:
        """All GPUs, by index."""
        return [_card(handle, uuid) for uuid, handle in self._handles.items()]

    def driver(self) -> str:
        """The driver's version."""
        return str(pynvml.nvmlSystemGetDriverVersion())

    def has_nvlink(self) -> bool:
        """Whether all GPUs have an active NVLink."""
        return len(self._handles) > 1 and all(map(_has_link, self._handles.values()))

    def load(self, uuid: str) -> Load:
        """What one GPU does; zeros where its driver does not tell. Raises KeyError."""
        handle = self._handles[uuid]
        self._drain_events()
        load = Load(0.0, 0, None, None, self._xids.pop(uuid, None))
        with contextlib.suppress(pynvml.NVMLError):
            load = _with(load, memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).used))
        with contextlib.suppress(pynvml.NVMLError):
            rates = pynvml.nvmlDeviceGetUtilizationRates(handle)
            load = _with(load, utilisation=float(rates.gpu))
        with contextlib.suppress(pynvml.NVMLError):
            load = _with(load, watts=pynvml.nvmlDeviceGetPowerUsage(handle) / 1000)
        with contextlib.suppress(pynvml.NVMLError):
            degrees = pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
            load = _with(load, celsius=float(degrees))
        return load

    def programs(self) -> Iterator[int]:
        """Process ids of all that compute on a GPU."""
        for handle in self._handles.values():
            with contextlib.suppress(pynvml.NVMLError):
                for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
                    yield int(process.pid)

    def _drain_events(self) -> None:
        with contextlib.suppress(pynvml.NVMLError):  # a timeout: nothing has happened
            while True:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
                uuid = pynvml.nvmlDeviceGetUUID(event.device)
                self._xids[uuid] = int(event.eventData)


def open_nvml() -> Nvml | None:
    """A session, or None on a machine without an NVIDIA GPU or driver."""
    try:
        nvml = Nvml()
    except pynvml.NVMLError:
        return None
    return nvml if nvml.cards() else None


def foreign(programs: Collection[int], ours: Collection[int]) -> str:
    """Words for the first program on a GPU that is none of our jobs'; "" if there is none."""
    strangers = sorted(set(programs) - set(ours))
    return f"process {strangers[0]}" if strangers else ""


def _card(handle: Any, uuid: str) -> Card:
    watts = 0
    with contextlib.suppress(pynvml.NVMLError):
        watts = round(pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000)
    return Card(
        uuid=uuid,
        index=int(pynvml.nvmlDeviceGetIndex(handle)),
        minor=int(pynvml.nvmlDeviceGetMinorNumber(handle)),
        name=str(pynvml.nvmlDeviceGetName(handle)),
        memory_bytes=int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
        watts=watts,
    )


def _has_link(handle: Any) -> bool:
    with contextlib.suppress(pynvml.NVMLError):  # no NVLink at all
        for link in range(pynvml.NVML_NVLINK_MAX_LINKS):
            if pynvml.nvmlDeviceGetNvLinkState(handle, link) == pynvml.NVML_FEATURE_ENABLED:
                return True
    return False


def _with(load: Load, **known: Any) -> Load:
    return Load(**{**load.__dict__, **known})
