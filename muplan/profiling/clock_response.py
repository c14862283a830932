"""How a pass that was measured at one clock responds to others, by the device's physics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.hardware.device import Device

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockResponse:
    """How a pass responds to the clock, by the device's physics; arrays of shape (clocks,).

    ``slowdown`` is the latency over that at the measured clock, ``power_w`` the power of a busy GPU and
    ``loaded_w`` that of one that waits.
    """

    slowdown: Floats
    power_w: Floats
    loaded_w: Floats


def clock_response(
    device: Device, clocks_mhz: Sequence[int], *, measured_mhz: int, sensitivity: float
) -> ClockResponse:
    """Split a pass into a share that follows the clock and one that waits for memory.

    With ``s`` the ``sensitivity``, ``f`` the effective clock under the device's power cap and ``B`` its
    memory bandwidth, ``t(f) / t(f₀) = s f₀ / f + (1 − s) B(f₀) / B(f)``; core activity is
    ``s · matmul + (1 − s) · memory`` (the device's constants), memory activity ``1 − s``.
    """
    core = sensitivity * device.matmul_core_activity + (1.0 - sensitivity) * device.memory_core_activity
    memory = 1.0 - sensitivity
    wanted = np.array([device.effective_clock_mhz(clock) for clock in (*clocks_mhz, measured_mhz)])
    effective = device.capped_clocks_mhz(wanted, core, memory)
    bandwidth = device.memory_bandwidth_bytes_per_s(effective)
    slowdown = sensitivity * effective[-1] / effective + memory * bandwidth[-1] / bandwidth
    return ClockResponse(
        slowdown=slowdown[:-1],
        power_w=device.busy_power_w(effective[:-1], core, memory),
        loaded_w=device.loaded_power_w(wanted[:-1]),
    )
