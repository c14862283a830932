"""Which measurements are believed: rules that a point must keep, in words where it breaks them."""

from __future__ import annotations

from dataclasses import dataclass

from muplan.profiling.measured.draw import STEADY_LOAD_S, Draw
from muplan.profiling.measured.timing import SAMPLE_S, Timing

POWER_CAP = "power cap"
HEAT = frozenset({"thermal", "hardware slowdown", "power brake"})
"""Limits that come and go with the room and the neighbours: what is measured under them holds for no other
day.

A power cap is no such limit: it is part of the device, and is recorded.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What is asked of every point.

    Parameters
    ----------
    most_spread
        Half the width of the latency's 95 % interval over its median, at most.
    most_spread_of_whole
        The same over the whole model's latency: a cluster that takes a thousandth of the time may be timed
        less well, as nothing depends on it.
    most_clock_drift
        The SM clock's range over its median under a steady load, at most, where no limit explains it.
    most_clock_miss
        How far the SM clock may lie from the one that was set, as a share of it.
    sample_s
        Seconds of a sample, at least.
    num_tries
        Tries of a point before it is given up.
    rest_s
        Pause before another try where heat was the reason, or the clock.
    """

    most_spread: float = 0.05
    most_spread_of_whole: float = 0.01
    most_clock_drift: float = 0.05
    most_clock_miss: float = 0.02
    sample_s: float = SAMPLE_S
    num_tries: int = 3
    rest_s: float = 5.0

    def broken_by_timing(
        self, timing: Timing, limits: tuple[str, ...], share: float = 1.0
    ) -> tuple[str, ...]:
        """Return what is wrong with a timing; nothing where it is believed.

        Parameters
        ----------
        share
            Of the whole model's time that all clusters of this type take.
        """
        broken = [f"{limit} limit" for limit in limits if limit in HEAT]
        most = max(self.most_spread, self.most_spread_of_whole / share)
        if timing.spread > most:
            broken.append(f"interval of ±{timing.spread:.0%}, more than ±{most:.0%}")
        return tuple(broken)

    def broken_by_clock(
        self, sm_clock_mhz: float, limits: tuple[str, ...], expected_mhz: float | None
    ) -> tuple[str, ...]:
        """Return what is wrong with a clock under load; nothing where it is believed, or none was set.

        A power cap may keep it lower than expected: that is the device's own.
        """
        if expected_mhz is None:
            return ()
        miss = sm_clock_mhz / expected_mhz - 1.0
        if abs(miss) <= self.most_clock_miss or (miss < 0 and POWER_CAP in limits):
            return ()
        return (f"{sm_clock_mhz:.0f} MHz under load where {expected_mhz:.0f} MHz were expected",)

    def broken_by_draw(self, draw: Draw) -> tuple[str, ...]:
        """Return what is wrong with a reading of energy; nothing where it is believed."""
        broken = [f"{limit} limit" for limit in draw.limits if limit in HEAT]
        if draw.seconds < STEADY_LOAD_S:
            broken.append(f"energy over {draw.seconds:.2f} s, less than {STEADY_LOAD_S:g} s")
        drift = (draw.fastest_mhz - draw.slowest_mhz) / draw.sm_clock_mhz
        if drift > self.most_clock_drift and not draw.limits:
            broken.append(f"clock between {draw.slowest_mhz} and {draw.fastest_mhz} MHz, with no limit told")
        return tuple(broken)


PROCESSOR_RULES = Rules(most_spread=0.25, most_spread_of_whole=0.05, sample_s=1e-2)
"""A processor shares its cores with the system and other programs."""
