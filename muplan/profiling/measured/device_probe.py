"""Probes of a GPU type: what arithmetic, memory and launches reach at its clocks, and what they draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from muplan.errors import DeviceError
from muplan.hardware.actuator import Actuator
from muplan.hardware.meter import Meter
from muplan.profiling.measured.draw import draw_load
from muplan.profiling.measured.load import Host, Load
from muplan.profiling.measured.settling import look
from muplan.profiling.measured.timing import time_load

_NUM_CLOCKS = 8
_LOWEST_SHARE = 0.4
"""Of the highest listed clock: below that memory bandwidth and effective clocks fall away."""
_PATIENCE_S = 2.0
_SAME = 0.02
"""A clock has come when it stays within this share of itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A load whose work is known: FLOPs, bytes or kernels in a run."""

    load: Load
    work: float


class Probes(Protocol):
    """The loads that a GPU type is probed with."""

    @property
    def compute(self) -> Probe:
        """Large matrix products of two bytes; work in FLOPs."""

    @property
    def memory(self) -> Probe:
        """Copies of much memory; work in bytes read and written."""

    @property
    def launches(self) -> Probe:
        """Kernels that do next to nothing, one after the other; work in kernels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AtClock:
    """What the probes gave at one requested clock.

    Clocks are those under the load in question: products may run into the power cap, copies rarely do.
    """

    requested_mhz: int
    flops_per_s: float
    compute_mhz: float
    compute_w: float
    is_capped: bool
    bytes_per_s: float
    memory_mhz: float
    memory_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What was measured of a GPU type; ``change_s`` is None where no clock was set."""

    at_clocks: tuple[AtClock, ...]
    launch_s: float
    change_s: float | None


def probe_device(probes: Probes, *, meter: Meter, host: Host, actuator: Actuator | None) -> Probed:
    """Run the probes at eight clocks that are set, or at the running clock alone.

    Raises
    ------
    DeviceError
        The device or its driver refuses.
    """
    listed = meter.supported_clocks_mhz
    if actuator is None:
        clocks = [listed[-1]]
    else:
        wanted = np.linspace(max(listed[0], _LOWEST_SHARE * listed[-1]), listed[-1], _NUM_CLOCKS)
        clocks = sorted({min(listed, key=lambda clock: abs(clock - want)) for want in wanted.tolist()})
    found = []
    for clock in clocks:
        if actuator is not None:
            actuator.lock_clock(clock)
            _settled_s(probes.memory.load, meter, host)
        found.append(_at(clock, probes, meter, host))
    timing = time_load(probes.launches.load)
    return Probed(
        at_clocks=tuple(found),
        launch_s=timing.median_s / probes.launches.work,
        change_s=None if actuator is None else _change_s(clocks, probes.memory.load, meter, host, actuator),
    )


def _at(clock_mhz: int, probes: Probes, meter: Meter, host: Host) -> AtClock:
    compute, memory = time_load(probes.compute.load), time_load(probes.memory.load)
    products = draw_load(probes.compute.load, compute.median_s, meter, host)
    copies = draw_load(probes.memory.load, memory.median_s, meter, host)
    return AtClock(
        requested_mhz=clock_mhz,
        flops_per_s=probes.compute.work / compute.median_s,
        compute_mhz=products.sm_clock_mhz,
        compute_w=products.power_w,
        is_capped="power cap" in products.limits,
        bytes_per_s=probes.memory.work / memory.median_s,
        memory_mhz=copies.sm_clock_mhz,
        memory_w=copies.power_w,
    )


def _change_s(clocks: list[int], load: Load, meter: Meter, host: Host, actuator: Actuator) -> float:
    """The longer time of a change from the lowest clock to the highest and back, under load."""
    times = []
    for clock in (clocks[0], clocks[-1], clocks[0]):
        actuator.lock_clock(clock)
        times.append(_settled_s(load, meter, host))
    return max(times[1:])


def _settled_s(load: Load, meter: Meter, host: Host) -> float:
    """Seconds until the clock under load has come to where it is two seconds later.

    Raises
    ------
    DeviceError
        It wanders all the while.
    """
    run_s, begin_s = load.time_s(1), host.now_s()
    seen: list[tuple[float, int]] = []
    while not seen or seen[-1][0] < _PATIENCE_S:
        clock = look(load, run_s, meter).sm_clock_mhz
        seen.append((host.now_s() - begin_s, clock))
    last = seen[-1][1]
    apart = [place for place, (_, clock) in enumerate(seen) if abs(clock / last - 1.0) > _SAME]
    if apart and apart[-1] == len(seen) - 2:
        raise DeviceError(
            f"{meter.name}: its clock does not settle within {_PATIENCE_S:g} s.",
            "Let nothing else use it or set its clock.",
        )
    return seen[apart[-1] + 1][0] if apart else seen[0][0]
