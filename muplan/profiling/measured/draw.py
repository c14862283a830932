"""What a device draws over a while, from its energy counter."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muplan.errors import DeviceError
from muplan.hardware.meter import Meter, Reading

STEADY_LOAD_S = 2.0
"""The energy counter is read over so long at least: it is refreshed every 20 to 100 ms."""
_SETTLING_S = 2.0
"""Clocks fall back to their resting values in so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Mean power of a device over some seconds, and how it fared; ``limits`` held at any reading."""

    power_w: float
    seconds: float
    sm_clock_mhz: float
    temperature_c: int
    limits: tuple[str, ...]


def drawn_since(meter: Meter, begin_s: float, begin_j: float, readings: Sequence[Reading]) -> Draw:
    """Return what was drawn since the counter stood at ``begin_j``, at ``begin_s`` of the host's clock.

    Raises
    ------
    DeviceError
        The counter stood still or ran backwards.
    """
    seconds, joules = time.perf_counter() - begin_s, meter.energy_j() - begin_j
    if joules <= 0.0:
        raise DeviceError(
            f"{meter.name}: the energy counter moved by {joules:g} J in {seconds:.1f} s.",
            "Measure with another driver or GPU; the counter needs Volta or newer.",
        )
    return Draw(
        power_w=joules / seconds,
        seconds=seconds,
        sm_clock_mhz=float(np.median([reading.sm_clock_mhz for reading in readings])),
        temperature_c=max(reading.temperature_c for reading in readings),
        limits=tuple(sorted({limit for reading in readings for limit in reading.limits})),
    )


def draw_idle(meter: Meter, seconds: float = STEADY_LOAD_S) -> Draw:
    """Return what a device draws that has nothing to do; its clocks settle first."""
    time.sleep(_SETTLING_S)
    begin_s, begin_j = time.perf_counter(), meter.energy_j()
    time.sleep(seconds)
    return drawn_since(meter, begin_s, begin_j, [meter.read()])
