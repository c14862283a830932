"""Changes a device's clock: the seam to NVML, to zeusd and to the tests' double."""

from __future__ import annotations

from typing import Protocol


class Actuator(Protocol):
    """Locks a device's SM clock and lets it go; hold it through a `muplan.hardware.lease.Lease`.

    Both raise a `muplan.errors.DeviceError` where the device, its driver or a daemon refuses.
    """

    def lock_clock(self, clock_mhz: int) -> None:
        """Ask for one clock, from the list of the driver; it holds until the next call."""

    def reset_clock(self) -> None:
        """Let the driver choose the clock again, as it does after a restart."""
