"""The measured profiler: a profile whose latencies were timed on the device at hand.

The clusters and the grid are those of the analytical profiler. A bench prepares the pass of every point in
turn; it is timed, and at nine points of each grid power is read from the energy counter. Rules judge what was
measured; what breaks them is tried again, then reported and filled in. Where the place may set clocks, all of
it is measured at several, and curves over the clock are drawn through them; elsewhere at the clock that the
device runs at when nothing holds it, and other clocks follow the device's physics. The provenance says which.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from muplan.errors import InputError
from muplan.hardware.actuator import Actuator
from muplan.hardware.device import Device
from muplan.hardware.meter import Meter
from muplan.model.graph import ModelGraph
from muplan.profile import MeasurementSummary, Method, OperatingTable, PhaseGrid, Profile
from muplan.profiling.analytical import cluster_members, make_profile, nested
from muplan.profiling.clustering import Segment
from muplan.profiling.grid import make_grid
from muplan.profiling.measured.clock_curve import along_clocks
from muplan.profiling.measured.load import Bench, Host
from muplan.profiling.measured.points import Kept, Measurement, Point
from muplan.profiling.measured.rules import Rules
from muplan.profiling.measured.summary import Levels, describe, running_clock_mhz, summarise
from muplan.profiling.measured.survey import Clocks, Report, Survey, at_clock, counts_of
from muplan.profiling.measured.tables import interpolation_errors, latency_table, power_table
from muplan.serde import digest

MakeBench = Callable[[ModelGraph, Sequence[tuple[Segment, ...]], Sequence[int]], Bench]
"""Makes a bench of a model, the segments of each cluster type, and how often each stands in the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where it is measured.

    Parameters
    ----------
    label
        What it is, for the profile: ``NVIDIA H200, driver …, torch …``.
    meter
        Reads the device; None where nothing does.
    actuator
        Sets its clock, and restores it in the end; None where no clock may be set.
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
    actuator: Actuator | None = None


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
    batches, tokens = axes_of(graph, batches or place.batches, tokens, place.tokens)
    modelled = make_profile(graph, device, batches=batches, tokens=tokens, tensor_parallel=(1,))
    members, counts = _members_by_type(graph, device, batches, tokens, modelled)
    way = "running clock" if place.actuator is None else "set clocks"
    kept = Kept(side_file, key=f"{digest(graph)} {digest(device)} {place.label} {way} {batches} {tokens}")
    survey = Survey(
        modelled,
        device,
        place.make_bench(graph, members, counts),
        kept,
        meter=place.meter,
        host=place.host,
        rules=place.rules,
        report=report,
    )
    if place.meter is None or place.actuator is None:
        clocks = survey.at_running_clock()
    else:
        clocks = survey.at_set_clocks(place.meter, place.actuator)
    return Measured(profile=_profile(modelled, kept.measured, clocks, place), points=dict(kept.measured))


def axes_of(
    graph: ModelGraph, batches: Sequence[int], tokens: Sequence[int] | None, usual_tokens: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...] | None]:
    """Return the batches and tokens to measure, the usual tokens where none are asked for.

    Tokens are None where the model takes one number alone.
    """
    if tokens is None and graph.fixed_tokens is None:
        tokens = [count for count in usual_tokens if count <= graph.max_context]
    return tuple(batches), None if tokens is None else tuple(tokens)


def check_runnable(graph: ModelGraph) -> None:
    """Refuse what is not one stack of layers: an operator's input would be more than the one before it.

    Raises
    ------
    InputError
        The model has a second stack, or attention to another sequence.
    """
    stacks = sum(block.repeat > 1 for block in graph.blocks)
    if stacks > 1 and graph.captured_from is None:
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
    return [members[first[number]] for number in range(len(first))], counts_of(modelled).tolist()


# --- the profile ---------------------------------------------------------------------------------


def _profile(
    modelled: Profile, measured: Mapping[Point, Measurement], clocks: Clocks, place: Place
) -> Profile:
    """The modelled profile, its values replaced by curves over the clock through what was measured."""
    running_mhz = None
    if clocks.set_mhz:
        by_anchor = {modelled.clocks_mhz.index(mhz): at_clock(measured, mhz) for mhz in clocks.set_mhz}
    else:
        highest_mhz = place.meter.supported_clocks_mhz[-1] if place.meter else modelled.max_clock_mhz
        running_mhz = running_clock_mhz(measured, highest_mhz)
        nearest = int(np.abs(np.array(modelled.clocks_mhz) - running_mhz).argmin())
        by_anchor = {nearest: at_clock(measured, None)}
    types, errors = [], []
    for number, kind in enumerate(modelled.cluster_types):
        tables = [
            _table(modelled, number, grid, table, by_anchor)
            for grid, table in zip(modelled.phases, kind.tables, strict=True)
        ]
        types.append(kind.model_copy(update={"tables": tuple(tables)}))
    counts = counts_of(modelled)
    for place_in_phases, grid in enumerate(modelled.phases):
        by_type = np.array([kind.tables[place_in_phases].latency_s[0] for kind in types])
        whole_s = np.tensordot(counts, by_type, axes=1)  # [clock][batch][tokens]
        errors += [interpolation_errors(whole_s[anchor], grid.batches, grid.tokens) for anchor in by_anchor]
    summary = summarise(
        modelled,
        measured,
        place=place.label,
        clocks=clocks,
        running_mhz=running_mhz,
        levels=place.levels,
        errors=np.concatenate(errors),
    )
    return _remade(modelled, tuple(types), summary)


def _table(
    modelled: Profile,
    number: int,
    grid: PhaseGrid,
    table: OperatingTable,
    by_anchor: Mapping[int, Mapping[Point, Measurement]],
) -> OperatingTable:
    """Latency and power of a cluster type over all clocks; power is modelled where it was read nowhere."""
    latency, power = np.array(table.latency_s[0]), np.array(table.power_w[0])  # [clock][batch][tokens]
    taken_s = [latency_table(modelled, number, grid, points, anchor) for anchor, points in by_anchor.items()]
    drawn_w = {
        anchor: watts
        for anchor, points in by_anchor.items()
        if (watts := power_table(power[anchor], number, grid, points)) is not None
    }
    latency = along_clocks(modelled.clocks_mhz, list(by_anchor), np.array(taken_s), latency)
    if drawn_w:
        power = along_clocks(modelled.clocks_mhz, list(drawn_w), np.array(list(drawn_w.values())), power)
    return OperatingTable(phase=table.phase, latency_s=nested([latency]), power_w=nested([power]))


def _remade(modelled: Profile, types: tuple[object, ...], summary: MeasurementSummary) -> Profile:
    """Made anew, not copied: a copy would keep the tables that look-ups have cached."""
    provenance = modelled.provenance.model_copy(
        update={"method": Method.MEASURED, "description": describe(summary), "measurement": summary}
    )
    content = {name: getattr(modelled, name) for name in Profile.model_fields}
    return Profile(**{**content, "cluster_types": types, "provenance": provenance})
