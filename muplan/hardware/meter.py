"""What a device tells of itself: energy, power, clock, memory, temperature, and what holds it back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One look at a device.

    ``power_w`` is the driver's, an average over up to a second; ``limits`` names what keeps the clock below
    what is asked for (``power cap``, ``thermal`` …).
    """

    power_w: float
    sm_clock_mhz: int
    temperature_c: int
    limits: tuple[str, ...] = ()


class Meter(Protocol):
    """Reads a device; changes nothing on it.

    Every reading raises a `muplan.errors.DeviceError` where the device or its driver refuses.
    """

    @property
    def name(self) -> str:
        """The device's name, as its driver gives it."""

    @property
    def driver(self) -> str:
        """Version of the driver."""

    @property
    def supported_clocks_mhz(self) -> tuple[int, ...]:
        """The SM clocks that the driver lists, ascending."""

    @property
    def power_limit_w(self) -> float:
        """The power limit in force."""

    @property
    def memory_bytes(self) -> int:
        """All of the device's memory."""

    @property
    def memory_used_bytes(self) -> int:
        """What of it is taken, by anyone."""

    @property
    def num_processes(self) -> int:
        """Processes that compute on the device, our own among them."""

    @property
    def is_partitioned(self) -> bool:
        """Whether the device is divided into instances (MIG)."""

    def energy_j(self) -> float:
        """Energy drawn since the driver was loaded, joules; only differences mean anything."""

    def read(self) -> Reading:
        """Look at the device now."""
