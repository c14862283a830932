"""What a measurement says of itself: how steady its points were, what was refused, at which clocks it ran."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.profile import MeasurementSummary, Profile
from muplan.profiling.measured.points import Measurement, Point
from muplan.profiling.measured.settling import OWN_LIMITS, is_held
from muplan.profiling.measured.survey import Clocks

Floats = NDArray[np.float64]

_ASKED_FOR = "application clocks"
"""A limit that is there because a clock was set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Levels:
    """Power of a device at rest, watts: without a context (None where others have one), and with one."""

    parked_w: float | None
    loaded_w: float


def running_clock_mhz(measured: Mapping[Point, Measurement], highest_mhz: int) -> int:
    """Return the requested clock that a measurement ran at.

    NVML does not tell a locked clock. So it is read off points at which the device held itself back by no
    limit of its own: where they run clearly below its highest clock, someone has set that clock.
    """
    free = [
        made.sm_clock_mhz
        for made in measured.values()
        if made.power_w is not None
        and made.sm_clock_mhz is not None
        and not OWN_LIMITS.intersection(made.limits)
    ]
    running = float(np.median(free)) if free else float(highest_mhz)
    return round(running) if is_held(running, (), highest_mhz) else highest_mhz


def summarise(
    modelled: Profile,
    measured: Mapping[Point, Measurement],
    *,
    place: str,
    clocks: Clocks,
    running_mhz: int | None,
    levels: Levels | None,
    errors: Floats,
) -> MeasurementSummary:
    """Summarise a measurement; ``errors`` are its interpolation errors."""
    spreads = np.array([made.spread for made in measured.values()])
    drawn = [made for made in measured.values() if made.believed_power_w is not None]
    ran_mhz = [made.sm_clock_mhz for made in drawn if made.sm_clock_mhz is not None]
    ratios = [
        made.power_w / made.read_power_w for made in drawn if made.power_w is not None and made.read_power_w
    ]
    return MeasurementSummary(
        place=place,
        num_points=len(measured),
        refused=_told(modelled, {point: made.refused for point, made in measured.items()}),
        interval_median=_rounded(np.median(spreads)),
        interval_largest=_rounded(spreads.max()),
        interpolation_error_median=_rounded(np.median(errors)) if errors.size else None,
        interpolation_error_largest=_rounded(errors.max()) if errors.size else None,
        running_clock_mhz=running_mhz,
        set_clocks_mhz=clocks.set_mhz,
        effective_mhz=tuple(_effective_mhz(measured, clock) for clock in clocks.set_mhz),
        clocks_refused=clocks.refused,
        clock_residual=None if clocks.residual is None else _rounded(clocks.residual),
        judged_clocks_mhz=clocks.judged_mhz,
        num_energy_points=len(drawn),
        energy_refused=_told(modelled, {point: made.power_refused for point, made in measured.items()}),
        slowest_effective_mhz=min(ran_mhz, default=None),
        fastest_effective_mhz=max(ran_mhz, default=None),
        num_limited=sum(bool(_limits(made, clocks)) for made in drawn),
        limits=tuple(sorted({limit for made in drawn for limit in _limits(made, clocks)})),
        hottest_c=max((made.temperature_c for made in drawn if made.temperature_c is not None), default=None),
        counter_over_readings=_rounded(np.median(ratios)) if ratios else None,
        parked_w=_rounded(levels.parked_w) if levels and levels.parked_w is not None else None,
        loaded_w=_rounded(levels.loaded_w) if levels else None,
    )


def _limits(made: Measurement, clocks: Clocks) -> set[str]:
    """The limits of a point, without the one that is the clock that was set."""
    return set(made.limits) - ({_ASKED_FOR} if clocks.set_mhz else set())


def _effective_mhz(measured: Mapping[Point, Measurement], clock_mhz: int) -> float:
    """The median of the SM clock under load where a clock was set."""
    ran = [
        made.sm_clock_mhz
        for point, made in measured.items()
        if point.clock_mhz == clock_mhz and made.sm_clock_mhz is not None
    ]
    return float(np.median(ran))


def _told(modelled: Profile, reasons: Mapping[Point, Sequence[str]]) -> tuple[str, ...]:
    return tuple(
        f"{modelled.cluster_types[point.cluster_type].name}, {point.phase}, {point.batch} × {point.tokens}"
        f"{f' at {point.clock_mhz} MHz' if point.clock_mhz else ''}: {', '.join(broken)}"
        for point, broken in reasons.items()
        if broken
    )


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def at_which_clocks(summary: MeasurementSummary) -> str:
    """Say at which clocks a measurement ran; where nothing reads clocks, as what it is taken."""
    if summary.set_clocks_mhz:
        return f"{', '.join(map(str, summary.set_clocks_mhz))} MHz, set for it"
    if summary.slowest_effective_mhz is None:
        return f"the running clock, which nothing here reads (taken as {summary.running_clock_mhz} MHz)"
    return f"{summary.running_clock_mhz} MHz"


def other_clocks(summary: MeasurementSummary) -> str:
    """Say where the values of all other clocks are from, and how well that is known."""
    if not summary.set_clocks_mhz:
        return "modelled from the device's physics; none was set"
    judged = "no clock was left out to judge that"
    if summary.clock_residual is not None:
        left_out = ", ".join(map(str, summary.judged_clocks_mhz))
        judged = f"{left_out} MHz, left out, are {summary.clock_residual:.1%} off at most"
    return f"interpolated between those set ({judged})"


def describe(summary: MeasurementSummary) -> str:
    """Say in a sentence what was measured, how well, and what was not."""
    parts = [
        f"{summary.place}: {summary.num_points} passes timed at {at_which_clocks(summary)}"
        f" (95 % intervals ±{summary.interval_median:.1%} in the median,"
        f" ±{summary.interval_largest:.1%} at most)"
    ]
    if summary.refused:
        parts.append(f"{len(summary.refused)} refused and filled in from their neighbours")
    if summary.num_energy_points:
        parts.append(
            f"power of {summary.num_energy_points} from the energy counter, SM clock"
            f" {summary.slowest_effective_mhz:.0f} to {summary.fastest_effective_mhz:.0f} MHz under load,"
            f" {summary.num_limited} of them under a limit; interpolated between"
        )
    else:
        parts.append("power modelled")
    parts.append(f"other clocks {other_clocks(summary)}")
    return "; ".join(parts)
