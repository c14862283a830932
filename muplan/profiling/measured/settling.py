"""Whether a device has come to the clock that was set, looked at under load: at rest it may do otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable

from muplan.errors import DeviceError
from muplan.hardware.meter import Meter, Reading
from muplan.profiling.measured.load import Host, Load
from muplan.profiling.measured.rules import Rules

_LOOK_S = 0.01
"""A device is looked at under so much load."""
_PATIENCE_S = 2.0
"""Clock changes take 10 to 200 ms on the devices that were measured."""
_HELD_BACK = 0.97
"""A device that runs below this share of its highest clock, with no limit of its own, is held there."""
OWN_LIMITS = frozenset({"power cap", "thermal", "hardware slowdown", "power brake"})


def look(load: Load, run_s: float, meter: Meter) -> Reading:
    """Read the device while it is at a load of ``run_s`` seconds a run."""
    load.start(max(1, math.ceil(_LOOK_S / max(run_s, 1e-7))))
    reading = meter.read()
    load.wait()
    return reading


def settle(load: Load, expected_mhz: float, *, meter: Meter, host: Host, rules: Rules) -> str:
    """Keep a device at a load until it runs at the clock that is expected.

    Returns
    -------
    str
        What is wrong after two seconds; empty where it came to the clock, or to its power cap on the way.
    """

    def broken(seen: Reading) -> tuple[str, ...]:
        return rules.broken_by_clock(seen.sm_clock_mhz, seen.limits, expected_mhz)

    return "".join(broken(_look_until(lambda seen: not broken(seen), load, meter, host)))


def check_unheld(load: Load, highest_mhz: float, *, meter: Meter, host: Host) -> None:
    """Refuse a device whose clock somebody else has set: restoring it would lose their setting.

    NVML does not tell a locked clock; a device that runs clearly below the highest clock that is expected of
    it, and names no limit of its own, is held.

    Raises
    ------
    DeviceError
        It is held.
    """

    def is_free(seen: Reading) -> bool:
        return not is_held(seen.sm_clock_mhz, seen.limits, highest_mhz)

    reading = _look_until(is_free, load, meter, host)
    if not is_free(reading):
        raise DeviceError(
            f"{meter.name} runs at {reading.sm_clock_mhz} MHz, not at {highest_mhz:.0f}: somebody seems to"
            " have set its clock.",
            "Setting clocks would end that for good, as NVML does not tell what was set. Reset it first"
            " (nvidia-smi --reset-gpu-clocks), or leave --apply-clocks out. If it never comes to that clock,"
            " correct the device file.",
        )


def _look_until(is_enough: Callable[[Reading], bool], load: Load, meter: Meter, host: Host) -> Reading:
    """Look until it is enough, but for no more than two seconds; return the last reading."""
    run_s, begin_s = load.time_s(1), host.now_s()
    while True:
        reading = look(load, run_s, meter)
        if is_enough(reading) or host.now_s() - begin_s > _PATIENCE_S:
            return reading


def is_held(sm_clock_mhz: float, limits: tuple[str, ...], highest_mhz: float) -> bool:
    """Whether a device under load runs below its highest clock for no reason of its own."""
    return sm_clock_mhz < _HELD_BACK * highest_mhz and not OWN_LIMITS.intersection(limits)
