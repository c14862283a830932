"""What a device tells of itself while it works: energy, power, clock, temperature, and what holds it back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at a device.

    ``limits`` names what keeps the clock below what is asked for (``power cap``, ``thermal`` …).
    """

    power_w: float
    sm_clock_mhz: int
    temperature_c: int
    limits: tuple[str, ...] = ()


class Meter(Protocol):
    """Reads a device; changes nothing on it."""

    @property
    def name(self) -> str:
        """The device's name, as its driver gives it."""

    @property
    def max_sm_clock_mhz(self) -> int:
        """The highest clock that the driver lists."""

    def energy_j(self) -> float:
        """Energy drawn since the driver was loaded, joules; only differences mean anything."""

    def read(self) -> Reading:
        """Look at the device now."""
