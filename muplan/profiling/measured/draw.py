"""What a device draws over a while, from its energy counter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muplan.errors import DeviceError
from muplan.hardware.meter import Meter, Reading
from muplan.profiling.measured.load import Host, Load

STEADY_LOAD_S = 2.0
"""The energy counter is read over so long at least: it is refreshed every 20 to 100 ms."""
_SETTLING_S = 2.0
"""Clocks fall back to their resting values in so long."""
_NUM_READINGS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """Mean power of a device over some seconds, and how it fared.

    ``limits`` held at any reading, ``slowest_mhz`` and ``fastest_mhz`` are the extremes of the SM clock.
    ``read_power_w`` is the mean of the driver's own figures in the second half of the time, which its
    averaging window has not carried over from before.
    """

    power_w: float
    read_power_w: float
    seconds: float
    sm_clock_mhz: float
    slowest_mhz: int
    fastest_mhz: int
    temperature_c: int
    limits: tuple[str, ...]


def draw_load(load: Load, run_s: float, meter: Meter, host: Host) -> Draw:
    """Keep the device at a load for two seconds and more.

    Raises
    ------
    DeviceError
        The counter stood still or ran backwards.
    """
    part = max(1, round(STEADY_LOAD_S / _NUM_READINGS / max(run_s, 1e-7)))
    load.start(part)  # the driver raises the clock, and power settles
    load.wait()
    readings: list[Reading] = []
    begin_s, begin_j = host.now_s(), meter.energy_j()
    while host.now_s() - begin_s < STEADY_LOAD_S:
        load.start(part)
        readings.append(meter.read())  # while the queue is still full
        load.wait()
    return _since(meter, host, begin_s, begin_j, readings)


def draw_idle(meter: Meter, host: Host, seconds: float = STEADY_LOAD_S) -> Draw:
    """Return what a device draws that has nothing to do; its clocks settle first.

    Raises
    ------
    DeviceError
        The counter stood still or ran backwards.
    """
    host.sleep(_SETTLING_S)
    begin_s, begin_j = host.now_s(), meter.energy_j()
    host.sleep(seconds)
    return _since(meter, host, begin_s, begin_j, [meter.read()])


def _since(meter: Meter, host: Host, begin_s: float, begin_j: float, readings: Sequence[Reading]) -> Draw:
    """Return what was drawn since the counter stood at ``begin_j``."""
    seconds, joules = host.now_s() - begin_s, meter.energy_j() - begin_j
    if joules <= 0.0:
        raise DeviceError(
            f"{meter.name}: the energy counter moved by {joules:g} J in {seconds:.1f} s.",
            "Measure with another driver or GPU; the counter needs Volta or newer.",
        )
    clocks = [reading.sm_clock_mhz for reading in readings]
    return Draw(
        power_w=joules / seconds,
        read_power_w=float(np.mean([reading.power_w for reading in readings[len(readings) // 2 :]])),
        seconds=seconds,
        sm_clock_mhz=float(np.median(clocks)),
        slowest_mhz=min(clocks),
        fastest_mhz=max(clocks),
        temperature_c=max(reading.temperature_c for reading in readings),
        limits=tuple(sorted({limit for reading in readings for limit in reading.limits})),
    )
