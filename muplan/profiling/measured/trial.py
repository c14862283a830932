"""A point measured: timed, its energy read, judged by the rules, tried again where it breaks them."""

from __future__ import annotations

from dataclasses import dataclass

from muplan.hardware.meter import Meter, Reading
from muplan.profiling.measured.draw import Draw, draw_load
from muplan.profiling.measured.load import Host, Load
from muplan.profiling.measured.points import Measurement
from muplan.profiling.measured.rules import HEAT, Rules
from muplan.profiling.measured.settling import look
from muplan.profiling.measured.timing import Timing, time_load


@dataclass(frozen=True, slots=True, kw_only=True)
class _Try:
    """A timing with what the device told under that load, and what is wrong with it."""

    timing: Timing
    reading: Reading | None
    broken: tuple[str, ...]


def measure_load(
    load: Load,
    *,
    meter: Meter | None,
    host: Host,
    rules: Rules,
    share: float = 1.0,
    with_power: bool,
    expected_mhz: float | None = None,
) -> Measurement:
    """Measure a load; where every try breaks a rule, the steadiest is returned with what was wrong with it.

    Parameters
    ----------
    share
        The part of the whole model's time that it stands for.
    expected_mhz
        The SM clock that was set, as the device then runs; None where none was.

    Raises
    ------
    DeviceError
        The device or its driver refuses a reading.
    """
    tries = _timed(load, meter, host, rules, share, expected_mhz)
    best = min(tries, key=lambda one: (bool(one.broken), one.timing.spread))
    drawn: Draw | None = None
    power_refused: tuple[str, ...] = ()
    if with_power and meter is not None:
        drawn, power_refused = _drawn(load, best.timing.median_s, meter, host, rules, expected_mhz)
    passes, limits = load.num_passes, drawn.limits if drawn else ()
    sm_clock_mhz, temperature_c = (drawn.sm_clock_mhz, drawn.temperature_c) if drawn else (None, None)
    if drawn is None and best.reading is not None:
        sm_clock_mhz, temperature_c = float(best.reading.sm_clock_mhz), best.reading.temperature_c
        limits = best.reading.limits
    return Measurement(
        latency_s=best.timing.median_s / passes,
        low_s=best.timing.low_s / passes,
        high_s=best.timing.high_s / passes,
        tries=len(tries),
        refused=best.broken,
        power_w=drawn.power_w if drawn else None,
        read_power_w=drawn.read_power_w if drawn else None,
        sm_clock_mhz=sm_clock_mhz,
        temperature_c=temperature_c,
        limits=limits,
        power_refused=power_refused,
    )


def _timed(
    load: Load, meter: Meter | None, host: Host, rules: Rules, share: float, expected_mhz: float | None
) -> list[_Try]:
    """Time a load until the rules hold, or the tries are used up."""
    tried: list[_Try] = []
    while len(tried) < rules.num_tries:
        timing = time_load(load, rules.sample_s)
        reading = look(load, timing.median_s, meter) if meter is not None else None
        limits = reading.limits if reading else ()
        missed = rules.broken_by_clock(reading.sm_clock_mhz, limits, expected_mhz) if reading else ()
        broken = (*missed, *rules.broken_by_timing(timing, limits, share))
        tried.append(_Try(timing=timing, reading=reading, broken=broken))
        if not broken:
            break
        if missed or HEAT.intersection(limits):
            host.sleep(rules.rest_s)
    return tried


def _drawn(
    load: Load, run_s: float, meter: Meter, host: Host, rules: Rules, expected_mhz: float | None
) -> tuple[Draw, tuple[str, ...]]:
    for attempt in range(rules.num_tries):
        drawn = draw_load(load, run_s, meter, host)
        missed = rules.broken_by_clock(drawn.sm_clock_mhz, drawn.limits, expected_mhz)
        broken = (*missed, *rules.broken_by_draw(drawn))
        if not broken:
            break
        if (missed or HEAT.intersection(drawn.limits)) and attempt + 1 < rules.num_tries:
            host.sleep(rules.rest_s)
    return drawn, broken
