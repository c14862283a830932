"""What is measured, and the time it is measured in: the seam to torch and to emulated devices."""

from __future__ import annotations

import time
from typing import Protocol

from muplan.profiling.measured.points import Point


class Load(Protocol):
    """A run of passes that can be repeated."""

    @property
    def num_passes(self) -> int:
        """Passes in a run."""

    def time_s(self, count: int) -> float:
        """Mean time of ``count`` runs one after the other, seconds, by the device's own clock."""

    def start(self, count: int) -> None:
        """Hand ``count`` runs to the device without waiting for them."""

    def wait(self) -> None:
        """Wait until the device has done what it was handed."""


class Bench(Protocol):
    """Makes the load of a point."""

    def load(self, point: Point) -> Load:
        """Prepare a point's passes.

        Raises
        ------
        DeviceError
            They do not fit in the device's memory.
        """


class Host(Protocol):
    """The clock of the machine that the device is in."""

    def now_s(self) -> float:
        """Seconds since some beginning."""

    def sleep(self, seconds: float) -> None:
        """Do nothing for so long."""


class Machine:
    """The machine that muplan runs on."""

    def now_s(self) -> float:
        """Seconds since some beginning."""
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Do nothing for so long."""
        time.sleep(seconds)
