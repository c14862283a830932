"""The measured profiler: a profile whose latencies were timed on the device at hand.

The clusters and the grid are those of the analytical profiler. Every point is timed at the clock that the
device runs at when nothing holds it; power is read from the energy counter at nine points of each grid, and
interpolated between them. Other clocks follow the device's physics, by the ratio of the modelled values. The
profile's description says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from muplan.errors import InputError
from muplan.hardware.device import Device
from muplan.model.graph import ModelGraph
from muplan.profile import Method, OperatingTable, PhaseGrid, Profile
from muplan.profiling.analytical import cluster_members, make_profile, nested
from muplan.profiling.clustering import Segment
from muplan.profiling.grid import make_grid
from muplan.profiling.measured.points import Kept, Measurement, Point, points_of
from muplan.serde import digest

if TYPE_CHECKING:
    from muplan.profiling.measured.stopwatch import Stopwatch

Floats = NDArray[np.float64]
Report = Callable[[int, int], None]
"""Told how many points of how many are measured."""

BATCHES = (1, 2, 4, 8, 16, 32, 64)
TOKENS = (1, 64, 128, 256, 512, 1024)
"""What is measured where nothing else is asked for, up to the model's longest sequence."""
_LEAST_SHARE = 0.02
"""Power is measured of cluster types that take this share of a phase's time at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A measured profile with the points that it stands on."""

    profile: Profile
    points: Mapping[Point, Measurement]


def measure_profile(
    graph: ModelGraph,
    device: Device,
    *,
    stopwatch: Stopwatch,
    label: str,
    batches: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    side_file: Path | None = None,
    report: Report = lambda _done, _total: None,
) -> Measured:
    """Measure the clusters of a model on the device that the stopwatch is for.

    Parameters
    ----------
    device
        Its physics, for what is not measured.
    label
        What was measured on, for the profile's description: ``NVIDIA H200, driver …, torch …``.
    batches, tokens
        Of every phase; the module's defaults where absent.
    side_file
        Keeps every point as it is measured; a run that finds it goes on from there. Delete it when the
        profile is safe.

    Raises
    ------
    InputError
        A model that cannot be run here, a grid that the model does not allow, a side file of something else.
    DeviceError
        The device refuses, or a pass does not fit.
    """
    from muplan.profiling.measured.bench import Bench

    check_runnable(graph)
    batches = tuple(batches or BATCHES)
    if tokens is None and graph.fixed_tokens is None:
        tokens = tuple(count for count in TOKENS if count <= graph.max_context)
    modelled = make_profile(graph, device, batches=batches, tokens=tokens, tensor_parallel=(1,))
    members, counts = _members_by_type(graph, device, batches, tokens, modelled)
    bench = Bench(graph, members, counts, stopwatch)
    kept = Kept(side_file, key=f"{digest(graph)} {digest(device)} {label} {batches} {tokens}")
    points, powered = points_of(modelled), _powered(modelled)
    for done, point in enumerate(points):
        report(done, len(points))
        if point not in kept.measured:
            kept.add(point, bench.measure(point, with_power=point in powered))
    report(len(points), len(points))
    profile = _filled(modelled, kept.measured, label)
    return Measured(profile=profile, points=dict(kept.measured))


def check_runnable(graph: ModelGraph) -> None:
    """Refuse what is not one stack of layers: an operator's input would be more than the one before it.

    Raises
    ------
    InputError
        The model has a second stack, or attention to another sequence.
    """
    stacks = sum(block.repeat > 1 for block in graph.blocks)
    if stacks > 1:
        raise InputError(
            f"{graph.name} ({graph.family}) cannot be run yet: it is more than one stack of layers.",
            "Measure an encoder or a decoder of transformer layers, or import measurements made elsewhere:"
            " muplan profile import --help",
        )


def _members_by_type(
    graph: ModelGraph,
    device: Device,
    batches: Sequence[int],
    tokens: Sequence[int] | None,
    modelled: Profile,
) -> tuple[list[tuple[Segment, ...]], list[int]]:
    grid = make_grid(graph, device, clocks_mhz=None, batches=batches, tokens=tokens, tensor_parallel=(1,))
    members = cluster_members(graph, device, grid)
    first = {cluster.type: place for place, cluster in reversed(list(enumerate(modelled.clusters)))}
    counts = np.bincount(modelled.cluster_type_index, minlength=len(modelled.cluster_types))
    return [members[first[number]] for number in range(len(first))], counts.tolist()


def _powered(modelled: Profile) -> set[Point]:
    """Nine points of each phase's grid, of the cluster types that take some of the time there."""
    counts = np.bincount(modelled.cluster_type_index, minlength=len(modelled.cluster_types))
    powered = set()
    for grid in modelled.phases:
        for batch, tokens in product(_first_middle_last(grid.batches), _first_middle_last(grid.tokens)):
            latency_s = modelled.latency_s(grid.phase, tensor_parallel=1, batch=batch, tokens=tokens)[:, -1]
            share = counts * latency_s / (counts @ latency_s)
            powered |= {
                Point(cluster_type=number, phase=grid.phase, batch=batch, tokens=tokens)
                for number in np.flatnonzero(share >= _LEAST_SHARE).tolist()
            }
    return powered


def _first_middle_last(values: Sequence[int]) -> list[int]:
    return sorted({values[0], values[len(values) // 2], values[-1]})


def _filled(modelled: Profile, measured: Mapping[Point, Measurement], label: str) -> Profile:
    """The modelled profile with the measured values, and all others in their proportion."""
    types = tuple(
        kind.model_copy(
            update={
                "tables": tuple(
                    _table(number, grid, table, measured)
                    for grid, table in zip(modelled.phases, kind.tables, strict=True)
                )
            }
        )
        for number, kind in enumerate(modelled.cluster_types)
    )
    provenance = modelled.provenance.model_copy(
        update={"method": Method.MEASURED, "description": describe(measured, label)}
    )
    # Made anew, not copied: a copy would keep the tables that look-ups have cached.
    content = {name: getattr(modelled, name) for name in Profile.model_fields}
    return Profile(**{**content, "cluster_types": types, "provenance": provenance})


def _table(
    number: int,
    grid: PhaseGrid,
    table: OperatingTable,
    measured: Mapping[Point, Measurement],
) -> OperatingTable:
    def at(batch: int, tokens: int) -> Measurement:
        return measured[Point(cluster_type=number, phase=grid.phase, batch=batch, tokens=tokens)]

    latency, power = np.array(table.latency_s[0]), np.array(table.power_w[0])  # [clock][batch][tokens]
    taken_s = np.array([[at(batch, tokens).latency_s for tokens in grid.tokens] for batch in grid.batches])
    latency *= taken_s / latency[-1]
    drawn_w = {
        (row, column): at(batch, tokens).power_w
        for row, batch in enumerate(grid.batches)
        for column, tokens in enumerate(grid.tokens)
    }
    known = {place: watts for place, watts in drawn_w.items() if watts is not None}
    if known:
        power *= _between(known, power[-1], grid) / power[-1]
    return OperatingTable(phase=table.phase, latency_s=nested([latency]), power_w=nested([power]))


def _between(known: Mapping[tuple[int, int], float], modelled_w: Floats, grid: PhaseGrid) -> Floats:
    """Power on a whole grid from some of its points, linear in the logarithms.

    Where the cluster took too little of the time at one of the points to be measured, it is modelled there.
    """
    rows, columns = sorted({row for row, _ in known}), sorted({column for _, column in known})
    watts = [[known.get((row, column), modelled_w[row, column]) for column in columns] for row in rows]
    log_tokens, log_batches = np.log(grid.tokens), np.log(grid.batches)
    wide = np.array([np.interp(log_tokens, log_tokens[columns], np.log(line)) for line in watts])
    whole = np.array([np.interp(log_batches, log_batches[rows], line) for line in wide.T]).T
    return np.asarray(np.exp(whole))


def describe(measured: Mapping[Point, Measurement], label: str) -> str:
    """What was measured, how well, and what was not."""
    spreads = np.array([made.spread for made in measured.values()])
    drawn = [made for made in measured.values() if made.power_w is not None]
    capped = sum(bool(made.limits) for made in drawn)
    clocks = [made.sm_clock_mhz for made in drawn if made.sm_clock_mhz is not None]
    parts = [
        f"{label}: {len(measured)} passes timed at the running clock"
        f" (95 % intervals ±{np.median(spreads):.1%} in the median, ±{spreads.max():.1%} at most)"
    ]
    if drawn:
        parts.append(
            f"power of {len(drawn)} from the energy counter, SM clock {min(clocks):.0f} to"
            f" {max(clocks):.0f} MHz under load, {capped} of them under a limit; interpolated between"
        )
    else:
        parts.append("power modelled")
    parts.append("other clocks modelled from the device's physics")
    return "; ".join(parts)
