"""What is measured, in which order: every point at the running clock, or at clocks that are set for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from muplan.errors import DeviceError
from muplan.hardware.actuator import Actuator
from muplan.hardware.device import Device
from muplan.hardware.meter import Meter
from muplan.profile import Profile
from muplan.profiling.measured.clock_choice import MOST_CLOCKS, MOST_RESIDUAL, first_clocks, next_clock
from muplan.profiling.measured.clock_curve import along_clocks
from muplan.profiling.measured.load import Bench, Host
from muplan.profiling.measured.points import Kept, Measurement, Point, points_of
from muplan.profiling.measured.rules import Rules
from muplan.profiling.measured.settling import check_unheld, settle
from muplan.profiling.measured.trial import measure_load

Report = Callable[[int, int], None]
"""Told how many points of how many are measured."""

_LEAST_SHARE = 0.02
"""Power is measured of cluster types that take this share of a phase's time at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """The clocks that were measured.

    Parameters
    ----------
    set_mhz
        Those that were set; empty where the running clock alone was measured.
    refused
        Those that the device did not come to, and why.
    judged_mhz
        Those that were left out, and measured at one point of the grid to judge the curves.
    residual
        How far time or power of a whole pass at any of them is from what the curves say, the largest; None
        where no clock was left out.
    """

    set_mhz: tuple[int, ...] = ()
    refused: tuple[str, ...] = ()
    judged_mhz: tuple[int, ...] = ()
    residual: float | None = None


class Survey:
    """Measures the points of a modelled profile with a bench, and keeps them."""

    def __init__(
        self,
        modelled: Profile,
        device: Device,
        bench: Bench,
        kept: Kept,
        *,
        meter: Meter | None,
        host: Host,
        rules: Rules,
        report: Report,
    ) -> None:
        self._modelled, self._device, self._bench, self._kept = modelled, device, bench, kept
        self._meter, self._host, self._rules, self._report = meter, host, rules, report
        self._points = points_of(modelled)
        self._shares = shares_of(modelled)
        self._powered = _powered(modelled, self._shares)
        self._total = self._done = 0

    # --- at the running clock -------------------------------------------------------------------

    def at_running_clock(self) -> Clocks:
        """Measure every point at the clock that the device runs at."""
        self._expect(len(self._points))
        self._measure(self._points)
        return Clocks()

    # --- at clocks that are set -----------------------------------------------------------------

    def at_set_clocks(self, meter: Meter, actuator: Actuator) -> Clocks:
        """Measure every point at four clocks, and at more where a clock left out is foretold badly.

        Raises
        ------
        DeviceError
            Somebody else holds the clock, the device comes to fewer than two of the clocks, or it refuses.
        """
        highest_mhz = self._device.effective_clock_mhz(self._device.max_clock_mhz)
        check_unheld(self._bench.load(self._points[0]), highest_mhz, meter=meter, host=self._host)
        listed = set(meter.supported_clocks_mhz)
        allowed = [clock for clock in self._modelled.clocks_mhz if clock in listed]
        wanted, probes = first_clocks(self._modelled, allowed), self._probes()
        self._expect(len(wanted) * len(self._points))
        refused: dict[int, str] = {}
        taken = [clock for clock in wanted if self._at(clock, self._points, meter, actuator, refused)]
        if len(taken) < 2:
            raise DeviceError(
                f"{meter.name} came to {len(taken)} of the clocks that were set"
                f" ({'; '.join(refused.values())}).",
                "Let nothing else set its clock or power limit, or measure at the running clock alone: leave"
                " --apply-clocks out.",
            )
        judged: list[int] = []
        while clock := next_clock(allowed, taken, [*judged, *refused]):
            self._expect(len(probes))
            if not self._at(clock, probes, meter, actuator, refused):
                continue
            if self._residual(clock, taken) <= MOST_RESIDUAL or len(taken) == MOST_CLOCKS:
                judged.append(clock)
                continue
            self._expect(len(self._points))
            if self._at(clock, self._points, meter, actuator, refused):
                taken = sorted([*taken, clock])
        return Clocks(
            set_mhz=tuple(taken),
            refused=tuple(refused[clock] for clock in sorted(refused)),
            judged_mhz=tuple(sorted(judged)),
            residual=max((self._residual(clock, taken) for clock in judged), default=None),
        )

    def _at(
        self,
        clock_mhz: int,
        points: Sequence[Point],
        meter: Meter,
        actuator: Actuator,
        refused: dict[int, str],
    ) -> bool:
        """Measure points at a clock; False, with a reason in ``refused``, if the device does not reach it."""
        wanted = [replace(point, clock_mhz=clock_mhz) for point in points]
        missing = [point for point in wanted if point not in self._kept.measured]
        expected_mhz = self._device.effective_clock_mhz(clock_mhz)
        if missing:
            actuator.lock_clock(clock_mhz)
            load = self._bench.load(missing[0])
            reason = settle(load, expected_mhz, meter=meter, host=self._host, rules=self._rules)
            if reason:
                refused[clock_mhz] = f"{clock_mhz} MHz: {reason}"
                self._expect(-len(points))
                return False
        self._measure(wanted, expected_mhz)
        return True

    def _probes(self) -> list[Point]:
        """All cluster types at the middle of each phase's grid."""
        middle = {
            grid.phase: (grid.batches[len(grid.batches) // 2], grid.tokens[len(grid.tokens) // 2])
            for grid in self._modelled.phases
        }
        return [point for point in self._points if middle[point.phase] == (point.batch, point.tokens)]

    def _residual(self, clock_mhz: int, taken: Sequence[int]) -> float:
        """How far time or power of a whole pass at a clock is from what those taken foretell, the largest."""
        clocks = self._modelled.clocks_mhz
        places = [clocks.index(clock) for clock in taken]
        wholes = np.array([self._whole(clock) for clock in (*taken, clock_mhz)])  # [clock][phase × 2]
        wholes = wholes[:, ~np.isnan(wholes).any(axis=0)]
        flat = np.ones((len(clocks), wholes.shape[1]))
        foretold = along_clocks(clocks, places, wholes[:-1], flat)[clocks.index(clock_mhz)]
        return float(np.abs(foretold / wholes[-1] - 1.0).max())

    def _whole(self, clock_mhz: int) -> NDArray[np.float64]:
        """Time and mean power of a whole pass of each phase at its probe; NaN where power was not read."""
        counts, figures = counts_of(self._modelled), []
        for grid in self._modelled.phases:
            total_s = busy_s = drawn_j = 0.0
            for point in self._probes():
                if point.phase is not grid.phase:
                    continue
                made = self._kept.measured[replace(point, clock_mhz=clock_mhz)]
                taken_s = float(counts[point.cluster_type]) * made.latency_s
                total_s += taken_s
                if made.believed_power_w is not None:
                    busy_s, drawn_j = busy_s + taken_s, drawn_j + taken_s * made.believed_power_w
            figures += [total_s, drawn_j / busy_s if busy_s else np.nan]
        return np.array(figures)

    # --- either way -----------------------------------------------------------------------------

    def _expect(self, count: int) -> None:
        self._total += count
        self._report(self._done, self._total)

    def _measure(self, points: Sequence[Point], expected_mhz: float | None = None) -> None:
        for point in points:
            if point not in self._kept.measured:
                made = measure_load(
                    self._bench.load(point),
                    meter=self._meter,
                    host=self._host,
                    rules=self._rules,
                    share=self._shares[replace(point, clock_mhz=None)],
                    with_power=replace(point, clock_mhz=None) in self._powered,
                    expected_mhz=expected_mhz,
                )
                self._kept.add(point, made)
            self._done += 1
            self._report(self._done, self._total)


def at_clock(measured: Mapping[Point, Measurement], clock_mhz: int | None) -> dict[Point, Measurement]:
    """Return the points of one clock, without it."""
    return {
        replace(point, clock_mhz=None): made
        for point, made in measured.items()
        if point.clock_mhz == clock_mhz
    }


def counts_of(profile: Profile) -> NDArray[np.int64]:
    """Return how often each cluster type stands in the model."""
    return np.bincount(profile.cluster_type_index, minlength=len(profile.cluster_types))


def shares_of(modelled: Profile) -> dict[Point, float]:
    """Return the share of a whole pass that all clusters of a point's type take, as modelled."""
    counts, shares = counts_of(modelled), {}
    for grid in modelled.phases:
        for batch, tokens in product(grid.batches, grid.tokens):
            latency_s = modelled.latency_s(grid.phase, tensor_parallel=1, batch=batch, tokens=tokens)[:, -1]
            for number, share in enumerate((counts * latency_s / (counts @ latency_s)).tolist()):
                shares[Point(cluster_type=number, phase=grid.phase, batch=batch, tokens=tokens)] = share
    return shares


def _powered(modelled: Profile, shares: Mapping[Point, float]) -> set[Point]:
    """Nine points of each phase's grid, of the cluster types that take some of the time there."""
    ends = {
        grid.phase: (_first_middle_last(grid.batches), _first_middle_last(grid.tokens))
        for grid in modelled.phases
    }
    return {
        point
        for point, share in shares.items()
        if share >= _LEAST_SHARE
        and point.batch in ends[point.phase][0]
        and point.tokens in ends[point.phase][1]
    }


def _first_middle_last(values: Sequence[int]) -> list[int]:
    return sorted({values[0], values[len(values) // 2], values[-1]})
