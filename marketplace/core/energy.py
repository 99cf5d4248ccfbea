"""Energy of a lease: kilowatt-hours, their cost and their carbon.

A node that measures its power reports millijoules; one that can't is estimated from its class
and marked as estimated wherever the figure is shown.
"""

from dataclasses import dataclass
from typing import Final

MILLIJOULES_PER_KWH: Final = 3_600_000_000

# Board power in watts by class, from the vendors' data sheets; used only where nothing measures.
BOARD_WATTS: Final[dict[str, int]] = {
    "b200": 1000,
    "h200-sxm": 700,
    "h200-nvl": 600,
    "h100-sxm": 700,
    "h100-pcie": 350,
    "a100-sxm-80": 400,
    "a100-sxm-40": 400,
    "a100-pcie-80": 300,
    "a100-pcie-40": 250,
    "rtx-4090": 450,
    "rtx-5090": 575,
    "l40s": 350,
}
DEFAULT_GPU_WATTS: Final = 300
# A server core under load: a 96-core EPYC 9654 draws 360 W by its data sheet, 3.75 W a core.
CPU_CORE_WATTS: Final = 4


@dataclass(frozen=True)
class Energy:
    """What a lease drew at the wall."""

    millijoules: int
    estimated: bool

    @property
    def kwh(self) -> float:
        """Kilowatt-hours."""
        return self.millijoules / MILLIJOULES_PER_KWH

    def grams_co2(self, grams_per_kwh: float) -> float:
        """Grams of CO2 at the grid's intensity."""
        return self.kwh * grams_per_kwh


def at_the_wall(device_millijoules: int, *, pue: float, estimated: bool) -> Energy:
    """Energy with the building's overhead (PUE: power usage effectiveness, 1.0 at home)."""
    return Energy(round(device_millijoules * pue), estimated)


def watts(gpu_class: str, *, cores: int = 1) -> int:
    """Estimated draw of one unit of a class under load; `cores` for a machine without a GPU."""
    if gpu_class.startswith("cpu-"):
        return CPU_CORE_WATTS * cores
    return BOARD_WATTS.get(gpu_class, DEFAULT_GPU_WATTS)


def ask_floor(*, watts: float, pue: float, micros_per_kwh: int) -> int:
    """The least ask, micros per GPU-hour, that pays for the power of one GPU."""
    return -(-int(watts * pue * micros_per_kwh) // 1000)
