"""The measured profiler: a profile whose latencies were timed on the device at hand.

The clusters and the grid are those of the analytical profiler. A bench prepares the pass of every point in
turn; it is timed at the clock that the device runs at when nothing holds it, and at nine points of each grid
power is read from the energy counter. Rules judge what was measured; what breaks them is tried again, then
reported and filled in. Other clocks follow the device's physics, by the ratio of the modelled values, and the
profile's provenance says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muplan.errors import InputError
from muplan.hardware.device import Device
from muplan.hardware.meter import Meter
from muplan.model.graph import ModelGraph
from muplan.profile import MeasurementSummary, Method, OperatingTable, Profile
from muplan.profiling.analytical import cluster_members, make_profile, nested
from muplan.profiling.clustering import Segment
from muplan.profiling.grid import make_grid
from muplan.profiling.measured.load import Bench, Host
from muplan.profiling.measured.points import Kept, Measurement, Point, points_of
from muplan.profiling.measured.rules import Rules
from muplan.profiling.measured.summary import Levels, describe, running_clock_mhz, summarise
from muplan.profiling.measured.tables import interpolation_errors, latency_table, power_table
from muplan.profiling.measured.trial import measure_load
from muplan.serde import digest

Floats = NDArray[np.float64]
Report = Callable[[int, int], None]
"""Told how many points of how many are measured."""
MakeBench = Callable[[ModelGraph, Sequence[tuple[Segment, ...]], Sequence[int]], Bench]
"""Makes a bench of a model, the segments of each cluster type, and how often each stands in the model."""

_LEAST_SHARE = 0.02
"""Power is measured of cluster types that take this share of a phase's time at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where it is measured.

    Parameters
    ----------
    label
        What it is, for the profile: ``NVIDIA H200, driver …, torch …``.
    meter
        Reads the device; None where nothing does.
    device
        The shipped device that it is, if any.
    levels
        Power of it with nothing to do, where measured.
    batches, tokens
        What is measured there where nothing else is asked for, up to the model's longest sequence.
    """

    label: str
    make_bench: MakeBench
    meter: Meter | None
    host: Host
    rules: Rules
    batches: tuple[int, ...]
    tokens: tuple[int, ...]
    device: str | None = None
    levels: Levels | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A measured profile with the points that it stands on."""

    profile: Profile
    points: Mapping[Point, Measurement]


def measure_profile(
    graph: ModelGraph,
    device: Device,
    *,
    place: Place,
    batches: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    side_file: Path | None = None,
    report: Report = lambda _done, _total: None,
) -> Measured:
    """Measure the clusters of a model on the device at a place.

    Parameters
    ----------
    device
        Its physics, for what is not measured.
    batches, tokens
        Of every phase; the place's defaults where absent.
    side_file
        Keeps every point as it is measured; a run that finds it goes on from there. Delete it when the
        profile is safe.

    Raises
    ------
    InputError
        A model that cannot be run here, a grid that the model does not allow, a side file of something else.
    DeviceError
        The device refuses, a pass does not fit, or too many points were refused.
    """
    check_runnable(graph)
    batches = tuple(batches or place.batches)
    if tokens is None and graph.fixed_tokens is None:
        tokens = tuple(count for count in place.tokens if count <= graph.max_context)
    modelled = make_profile(graph, device, batches=batches, tokens=tokens, tensor_parallel=(1,))
    members, counts = _members_by_type(graph, device, batches, tokens, modelled)
    bench = place.make_bench(graph, members, counts)
    kept = Kept(side_file, key=f"{digest(graph)} {digest(device)} {place.label} {batches} {tokens}")
    points, shares = points_of(modelled), _shares(modelled)
    powered = _powered(modelled, shares)
    for done, point in enumerate(points):
        report(done, len(points))
        if point not in kept.measured:
            made = measure_load(
                bench.load(point),
                meter=place.meter,
                host=place.host,
                rules=place.rules,
                share=shares[point],
                with_power=point in powered,
            )
            kept.add(point, made)
    report(len(points), len(points))
    return Measured(profile=_profile(modelled, kept.measured, place), points=dict(kept.measured))


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
    return [members[first[number]] for number in range(len(first))], _counts(modelled).tolist()


def _counts(profile: Profile) -> NDArray[np.int64]:
    return np.bincount(profile.cluster_type_index, minlength=len(profile.cluster_types))


def _shares(modelled: Profile) -> dict[Point, float]:
    """The share of a whole pass that all clusters of a point's type take, as modelled."""
    counts, shares = _counts(modelled), {}
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


# --- the profile ---------------------------------------------------------------------------------


def _profile(modelled: Profile, measured: Mapping[Point, Measurement], place: Place) -> Profile:
    """The modelled profile with what was measured at its running clock, and all else in proportion."""
    highest_mhz = place.meter.supported_clocks_mhz[-1] if place.meter else modelled.max_clock_mhz
    running_mhz = running_clock_mhz(measured, highest_mhz)
    anchor = int(np.abs(np.array(modelled.clocks_mhz) - running_mhz).argmin())
    counts, errors, types = _counts(modelled), [], []
    taken = [
        [latency_table(modelled, number, grid, measured, anchor) for number in range(len(counts))]
        for grid in modelled.phases
    ]
    for grid, by_type in zip(modelled.phases, taken, strict=True):
        whole_s = np.asarray(np.tensordot(counts, np.array(by_type), axes=1), dtype=np.float64)
        errors.append(interpolation_errors(whole_s, grid.batches, grid.tokens))
    for number, kind in enumerate(modelled.cluster_types):
        tables = []
        for grid, taken_s, table in zip(modelled.phases, taken, kind.tables, strict=True):
            modelled_w = np.array(table.power_w[0])[anchor]
            drawn_w = power_table(modelled_w, number, grid, measured)
            tables.append(_in_proportion(table, taken_s[number], drawn_w, anchor))
        types.append(kind.model_copy(update={"tables": tuple(tables)}))
    summary = summarise(
        modelled,
        measured,
        place=place.label,
        running_mhz=running_mhz,
        levels=place.levels,
        errors=np.concatenate(errors),
    )
    return _remade(modelled, tuple(types), summary)


def _in_proportion(
    table: OperatingTable, taken_s: Floats, drawn_w: Floats | None, anchor: int
) -> OperatingTable:
    latency, power = np.array(table.latency_s[0]), np.array(table.power_w[0])  # [clock][batch][tokens]
    latency *= taken_s / latency[anchor]
    if drawn_w is not None:
        power *= drawn_w / power[anchor]
    return OperatingTable(phase=table.phase, latency_s=nested([latency]), power_w=nested([power]))


def _remade(modelled: Profile, types: tuple[object, ...], summary: MeasurementSummary) -> Profile:
    """Made anew, not copied: a copy would keep the tables that look-ups have cached."""
    provenance = modelled.provenance.model_copy(
        update={"method": Method.MEASURED, "description": describe(summary), "measurement": summary}
    )
    content = {name: getattr(modelled, name) for name in Profile.model_fields}
    return Profile(**{**content, "cluster_types": types, "provenance": provenance})
