"""A point measured: timed, its energy read, judged by the rules, tried again where it breaks them."""

from __future__ import annotations

import math

from muplan.hardware.meter import Meter
from muplan.profiling.measured.draw import Draw, draw_load
from muplan.profiling.measured.load import Host, Load
from muplan.profiling.measured.points import Measurement
from muplan.profiling.measured.rules import HEAT, Rules
from muplan.profiling.measured.timing import Timing, time_load

_LOOK_S = 0.01
"""A device is looked at under so much load."""


def measure_load(
    load: Load, *, meter: Meter | None, host: Host, rules: Rules, share: float = 1.0, with_power: bool
) -> Measurement:
    """Measure a load; where every try breaks a rule, the steadiest is returned with what was wrong with it.

    ``share`` is the part of the whole model's time that it stands for.

    Raises
    ------
    DeviceError
        The device or its driver refuses a reading.
    """
    timing, refused, tries = _timed(load, meter, host, rules, share)
    drawn: Draw | None = None
    power_refused: tuple[str, ...] = ()
    if with_power and meter is not None:
        drawn, power_refused = _drawn(load, timing.median_s, meter, host, rules)
    passes = load.num_passes
    return Measurement(
        latency_s=timing.median_s / passes,
        low_s=timing.low_s / passes,
        high_s=timing.high_s / passes,
        tries=tries,
        refused=refused,
        power_w=drawn.power_w if drawn else None,
        read_power_w=drawn.read_power_w if drawn else None,
        sm_clock_mhz=drawn.sm_clock_mhz if drawn else None,
        temperature_c=drawn.temperature_c if drawn else None,
        limits=drawn.limits if drawn else (),
        power_refused=power_refused,
    )


def _timed(
    load: Load, meter: Meter | None, host: Host, rules: Rules, share: float
) -> tuple[Timing, tuple[str, ...], int]:
    """Time a load until the rules hold; else return the steadiest try, what was wrong, and the tries."""
    tried: list[tuple[Timing, tuple[str, ...]]] = []
    for _ in range(rules.num_tries):
        timing = time_load(load, rules.sample_s)
        limits = _limits_under(load, timing.median_s, meter) if meter is not None else ()
        broken = rules.broken_by_timing(timing, limits, share)
        tried.append((timing, broken))
        if not broken:
            return timing, (), len(tried)
        if HEAT.intersection(limits):
            host.sleep(rules.rest_s)
    timing, broken = min(tried, key=lambda one: one[0].spread)
    return timing, broken, len(tried)


def _limits_under(load: Load, run_s: float, meter: Meter) -> tuple[str, ...]:
    load.start(max(1, math.ceil(_LOOK_S / run_s)))
    limits = meter.read().limits
    load.wait()
    return limits


def _drawn(load: Load, run_s: float, meter: Meter, host: Host, rules: Rules) -> tuple[Draw, tuple[str, ...]]:
    for attempt in range(rules.num_tries):
        drawn = draw_load(load, run_s, meter, host)
        broken = rules.broken_by_draw(drawn)
        if not broken:
            break
        if HEAT.intersection(drawn.limits) and attempt + 1 < rules.num_tries:
            host.sleep(rules.rest_s)
    return drawn, broken
