"""The analytical profiler: a profile from a model's graph and a device's physics, without a GPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

import muplan
from muplan.errors import InputError
from muplan.hardware.device import Device
from muplan.model.graph import ModelGraph, Operator, OperatorKind
from muplan.profile import (
    Cluster,
    ClusterType,
    Method,
    OperatingTable,
    PhaseGrid,
    Profile,
    ProfileProvenance,
)
from muplan.profiling.clustering import Costs, Segment, cluster_segments, segments_of
from muplan.profiling.grid import ProfileGrid, ProfilePasses, make_grid
from muplan.profiling.roofline import (
    PassGrid,
    load_of,
    operating_points,
    overlap_exponent_of,
    works_of,
)
from muplan.serde import digest

Floats = NDArray[np.float64]

# A cluster without work in a phase (an encoder in decode) still needs a latency whose logarithm exists.
_NO_WORK_S = 1e-9
_SIGNIFICANT_DIGITS = 7


def make_profile(
    graph: ModelGraph,
    device: Device,
    *,
    clocks_mhz: Sequence[int] | None = None,
    batches: Sequence[int] | None = None,
    tokens: Sequence[int] | None = None,
    tensor_parallel: Sequence[int] | None = None,
) -> Profile:
    """Model the latency and power of a model's operator clusters on a device.

    Parameters
    ----------
    clocks_mhz
        Requested clocks; each is snapped to the device's nearest usable one. By default ten across
        the usable band, its ends among them.
    batches
        Batch sizes; by default powers of two to 64, in decode to 256.
    tokens
        Tokens per sequence: new ones in a forward or prefill pass, the context in decode. By default
        from 1 to the model's maximum or 16,384; one value for a model with a fixed number.
    tensor_parallel
        Degrees; by default 1, 2, 4 and 8 where the attention heads allow.

    Raises
    ------
    InputError
        A clock outside the usable band, a token count or degree that the model does not allow.
    """
    grid = make_grid(
        graph,
        device,
        clocks_mhz=clocks_mhz,
        batches=batches,
        tokens=tokens,
        tensor_parallel=tensor_parallel,
    )
    kinds: dict[tuple[tuple[int, int], ...], int] = {}
    types: list[ClusterType] = []
    clusters: list[Cluster] = []
    for members in cluster_members(graph, device, grid):
        key = tuple((member.block, member.part) for member in members)
        if key not in kinds:
            kinds[key] = len(types)
            types.append(_cluster_type(graph, members, device, grid))
        clusters.append(Cluster(name=_cluster_name(graph, members), type=kinds[key]))
    return Profile(
        model=graph.name,
        device=device.name,
        request_kind=graph.request_kind,
        provenance=ProfileProvenance(
            method=Method.MODELLED,
            description=f"analytical roofline with {graph.attention} attention",
            muplan_version=muplan.__version__,
            model_digest=digest(graph),
            device_digest=digest(device),
        ),
        reference_clock_mhz=grid.reference_clock_mhz,
        clocks_mhz=grid.clocks_mhz,
        tensor_parallel=grid.tensor_parallel,
        phases=tuple(
            PhaseGrid(phase=passes.phase, batches=passes.batches, tokens=passes.tokens)
            for passes in grid.passes
        ),
        cluster_types=tuple(types),
        clusters=tuple(clusters),
    )


# --- clustering ----------------------------------------------------------------------------------


def profile_members(profile: Profile, graph: ModelGraph, device: Device) -> list[tuple[Segment, ...]]:
    """Return the segments of every cluster of a profile, modelled or measured.

    Raises
    ------
    InputError
        The profile's clusters are not those of the graph.
    """
    grid = ProfileGrid(
        clocks_mhz=profile.clocks_mhz,
        reference_clock_mhz=profile.reference_clock_mhz,
        tensor_parallel=profile.tensor_parallel,
        passes=tuple(
            ProfilePasses(phase=phase.phase, batches=phase.batches, tokens=phase.tokens)
            for phase in profile.phases
        ),
    )
    members = cluster_members(graph, device, grid)
    if [_cluster_name(graph, segments) for segments in members] != [one.name for one in profile.clusters]:
        raise InputError(
            f"The clusters of the profile of {profile.model} on {profile.device} are not those of its graph.",
            "Profile the model again.",
        )
    return members


def cluster_members(graph: ModelGraph, device: Device, grid: ProfileGrid) -> list[tuple[Segment, ...]]:
    """Return the segments of every cluster, in the order of the graph."""
    segments = segments_of(graph)
    ranges = cluster_segments(segments, segment_costs(segments, device, grid))
    return [segments[start:stop] for start, stop in ranges]


def segment_costs(segments: Sequence[Segment], device: Device, grid: ProfileGrid) -> Costs:
    """Return the share of time and sensitivity of every segment, per phase, on one GPU.

    They are taken at the grid's typical pass of each phase and between the reference clock and the
    highest, both without the power cap: what a cap does depends on the clusters.
    """
    unique: dict[tuple[int, int], int] = {}
    rows = np.array([unique.setdefault((s.block, s.part), len(unique)) for s in segments])
    examples = {(s.block, s.part): s for s in segments}
    latency = np.array(
        [
            [_two_clocks(examples[key].operators, device, grid, passes) for passes in grid.typical_passes()]
            for key in unique
        ]
    )  # (unique segments, phases, 2): at the reference clock and at the highest
    reference, highest = (
        device.effective_clock_mhz(clock) for clock in (grid.reference_clock_mhz, grid.clocks_mhz[-1])
    )
    slowdown = latency[:, :, 0] / np.where(latency[:, :, 1] > 0, latency[:, :, 1], 1.0) - 1.0
    sensitivities = np.where(latency[:, :, 1] > 0, slowdown / (highest / reference - 1.0), 0.0)
    shares = latency[rows, :, 1] / latency[rows, :, 1].sum(axis=0)
    return Costs(shares=shares, sensitivities=sensitivities[rows])


def _two_clocks(
    operators: tuple[Operator, ...], device: Device, grid: ProfileGrid, passes: PassGrid
) -> tuple[float, float]:
    works = works_of([(operator, 1) for operator in operators], device, passes, tensor_parallel=1)
    if not works:
        return 0.0, 0.0
    exponent = overlap_exponent_of(device, passes.phase)
    times = []
    for clock in (grid.reference_clock_mhz, grid.clocks_mhz[-1]):
        effective = np.array(device.effective_clock_mhz(clock))
        times.append(float(load_of(works, device, effective, overlap_exponent=exponent).latency_s.sum()))
    return times[0], times[1]


# --- cluster types -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Members:
    """Distinct operators of a cluster, each with how often it stands in it."""

    operators: tuple[tuple[Operator, int], ...]

    def sum_per_gpu(self, attribute: str, tensor_parallel: int) -> int:
        return sum(
            repeat * math.ceil(getattr(operator, attribute) / operator.shards(tensor_parallel))
            for operator, repeat in self.operators
        )


def _members(segments: Sequence[Segment]) -> _Members:
    first = segments[0].instance
    num_instances = segments[-1].instance - first + 1
    return _Members(
        operators=tuple(
            (operator, num_instances)
            for segment in segments
            if segment.instance == first
            for operator in segment.operators
        )
    )


def _cluster_type(
    graph: ModelGraph, segments: Sequence[Segment], device: Device, grid: ProfileGrid
) -> ClusterType:
    members = _members(segments)
    block = graph.blocks[segments[0].block].name
    degrees = grid.tensor_parallel
    output = segments[-1].operators[-1].output_bytes
    return ClusterType(
        name=_type_name(graph, segments),
        operators=tuple(f"{block}.{operator.name}" for operator, _ in members.operators),
        weight_bytes_per_gpu=tuple(members.sum_per_gpu("weight_bytes", degree) for degree in degrees),
        kv_bytes_per_token_per_gpu=tuple(_kv_bytes(graph, members, degree) for degree in degrees),
        activation_bytes_per_token_per_gpu=tuple(_live_bytes(members, grid, degree) for degree in degrees),
        output_bytes_per_token=float(output(1, 1, 1)),
        tables=tuple(_table(members, device, grid, passes) for passes in grid.passes),
    )


def _table(members: _Members, device: Device, grid: ProfileGrid, passes: PassGrid) -> OperatingTable:
    """Return latency and power, indexed [tensor parallelism][clock][batch][tokens]."""
    shape = (len(grid.clocks_mhz), len(passes.batches), len(passes.tokens))
    latency, power = [], []
    for degree in grid.tensor_parallel:
        works = works_of(members.operators, device, passes, tensor_parallel=degree)
        if works:
            points = operating_points(works, device, grid.clocks_mhz, passes.phase)
            latency.append(np.broadcast_to(points.latency_s, shape))
            power.append(np.broadcast_to(points.power_w, shape))
        else:
            idle = [float(device.loaded_power_w(device.effective_clock_mhz(c))) for c in grid.clocks_mhz]
            latency.append(np.full(shape, _NO_WORK_S))
            power.append(np.broadcast_to(np.array(idle)[:, None, None], shape))
    return OperatingTable(phase=passes.phase, latency_s=nested(latency), power_w=nested(power))


_Table = tuple[tuple[tuple[tuple[float, ...], ...], ...], ...]


def nested(arrays: Sequence[Floats]) -> _Table:
    """Return arrays [clock][batch][tokens] as the document holds them, rounded."""
    return tuple(
        tuple(tuple(tuple(_rounded(value) for value in row) for row in matrix) for matrix in array)
        for array in arrays
    )


def _rounded(value: float) -> float:
    """Round to seven significant digits: far finer than the model, and short in the file."""
    return float(f"{value:.{_SIGNIFICANT_DIGITS}g}")


def _kv_bytes(graph: ModelGraph, members: _Members, tensor_parallel: int) -> int:
    """Return the KV cache of a token on one GPU; KV heads fewer than the GPUs are held more than once."""
    shards = math.gcd(tensor_parallel, graph.num_kv_heads)
    return sum(
        repeat * math.ceil(operator.kv_bytes_per_token / shards) for operator, repeat in members.operators
    )


def _live_bytes(members: _Members, grid: ProfileGrid, tensor_parallel: int) -> int:
    """Return the peak working memory per token: an operator's input and output, and the residual stream.

    Taken at the longest sequence of the grid, where unfused attention scores are largest.
    """
    longest = grid.passes[0].tokens[-1]
    stream = members.operators[-1][0].output_bytes(1, longest, longest)
    previous = peak = float(stream)
    for operator, _ in members.operators:
        shards = operator.shards(tensor_parallel) if operator.kind is not OperatorKind.ALL_REDUCE else 1
        current = float(operator.output_bytes(1, longest, longest)) / shards
        peak = max(peak, previous + current + float(stream))
        previous = current
    return math.ceil(peak / longest)


# --- names ---------------------------------------------------------------------------------------


def _parts_name(segments: Sequence[Segment]) -> str:
    """Name the part of an instance that a cluster holds; empty where it is the whole instance."""
    if segments[0].part == 0 and segments[-1].part == segments[-1].num_parts - 1:
        return ""
    prefixes = [operator.name.split(".")[0] for segment in segments for operator in segment.operators]
    return "." + "+".join(dict.fromkeys(prefixes))


def _type_name(graph: ModelGraph, segments: Sequence[Segment]) -> str:
    block = graph.blocks[segments[0].block].name
    num_instances = segments[-1].instance - segments[0].instance + 1
    return f"{block}{_parts_name(segments)}" + (f" ×{num_instances}" if num_instances > 1 else "")


def _cluster_name(graph: ModelGraph, segments: Sequence[Segment]) -> str:
    block = graph.blocks[segments[0].block]
    first, last = segments[0].instance, segments[-1].instance
    if block.repeat == 1:
        return f"{block.name}{_parts_name(segments)}"
    place = f"{first}" if first == last else f"{first}-{last}"
    return f"{block.name}.{place}{_parts_name(segments)}"
