"""Times and powers of a replica's passes, stage by stage, taken from its profile.

A *pass* is one batch going once through the stages of a group. What a stage computes of a pass
takes the sum of its clusters' latencies; its power is their mean, weighted by time. Where the next
cluster lies on another stage, the activation is transferred.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.errors import InputError
from muplan.hardware.device import Device
from muplan.plan import Group, Replica
from muplan.profile import Configuration, Phase, Profile

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassTable:
    """Passes of one replica in one phase at one number of tokens.

    Parameters
    ----------
    latency_s
        Time a stage computes; shape (stages, clocks, batches).
    power_w
        Power of one GPU of the stage meanwhile; same shape.
    transfer_s
        Time after a stage until the next can begin (after the last: until the pass is complete);
        shape (stages, batches).
    """

    latency_s: Floats
    power_w: Floats
    transfer_s: Floats


def pass_table(
    device: Device,
    group: Group,
    replica: Replica,
    profile: Profile,
    *,
    phase: Phase,
    tokens: float,
    batches: Sequence[int] | NDArray[np.int64],
) -> PassTable:
    """Tabulate a replica's passes.

    Between the profile's batches, values are interpolated log-log, as `Profile.latency_s` does.

    Parameters
    ----------
    tokens
        Tokens of every sequence (in decode: attended to).
    batches
        Sequences in a pass, each within the profile's range.

    Raises
    ------
    InputError
        The profile does not cover the operating points, or the stages do not hold every cluster
        once.
    """
    grid = profile.grid(phase).batches
    if min(batches) < grid[0] or max(batches) > grid[-1]:
        raise InputError(
            f"Replica {replica.service!r} of group {group.name!r} wants batches of {min(batches)} to"
            f" {max(batches)}; {profile.model} on {profile.device} was profiled for {grid[0]}–{grid[-1]}.",
            "Lower its max_batch, or profile larger batches.",
        )
    counts = _cluster_counts(profile, replica)
    latency, power = _type_passes(
        profile, phase, _configuration(profile, group, replica), tokens, tuple(map(int, batches))
    )
    # (stages, cluster types) × (cluster types, clocks, batches)
    stage_latency = np.tensordot(counts, latency, axes=1)
    stage_power = np.tensordot(counts, latency * power, axes=1) / stage_latency
    computed = 1.0 if phase == Phase.DECODE else tokens
    transfers = np.stack(
        [transfer_s(device, group, replica, profile, num_tokens=batch * computed) for batch in batches],
        axis=-1,
    )
    return PassTable(latency_s=stage_latency, power_w=stage_power, transfer_s=transfers)


_kept: dict[int, dict[tuple[Phase, Configuration, float, tuple[int, ...]], tuple[Floats, Floats]]] = {}
"""What `_type_passes` has returned, by identity of the profile, for as long as the profile lives."""


def _configuration(profile: Profile, group: Group, replica: Replica) -> Configuration:
    """Return the group's configuration in the profile; refuse a pipeline cut elsewhere than measured."""
    index = profile.tensor_parallel_index(group.tensor_parallel, len(group.stages))
    cuts = profile.measured_cuts(group.tensor_parallel, len(group.stages))
    if cuts is not None and replica.stage_clusters != tuple(
        ((start, stop),) for start, stop in itertools.pairwise((0, *cuts))
    ):
        raise InputError(
            f"Replica {replica.service!r} of group {group.name!r} is cut elsewhere than the"
            f" measured pipelines of {profile.model} on {profile.device}.",
            f"Cut its {len(group.stages)} stages after the clusters {', '.join(map(str, cuts))}.",
        )
    return profile.configurations[index]


def _type_passes(
    profile: Profile, phase: Phase, configuration: Configuration, tokens: float, batches: tuple[int, ...]
) -> tuple[Floats, Floats]:
    """Latency and power of each cluster type; shape (cluster types, clocks, batches).

    A planner simulates thousands of deployments of the same profiles, so results are kept.
    """
    if id(profile) not in _kept:
        _kept[id(profile)] = {}
        weakref.finalize(profile, _kept.pop, id(profile))
    key = (phase, configuration, tokens, batches)
    if key not in _kept[id(profile)]:
        grid = profile.grid(phase).batches
        width, stages = configuration
        latency, power = (
            [look_up(phase, tensor_parallel=width, num_stages=stages, batch=b, tokens=tokens) for b in grid]
            for look_up in (profile.latency_s, profile.power_w)
        )
        _kept[id(profile)][key] = (
            _between(np.stack(latency, axis=-1), grid, batches),
            _between(np.stack(power, axis=-1), grid, batches),
        )
    return _kept[id(profile)][key]


def transfer_s(
    device: Device, group: Group, replica: Replica, profile: Profile, *, num_tokens: float
) -> Floats:
    """Seconds of all transfers that leave each stage when a pass computes ``num_tokens``; shape (stages,).

    Every GPU of a tensor-parallel set sends the whole activation to its opposite number.
    """
    seconds = np.zeros(len(group.stages))
    near_each = near_crossings(group, replica)
    for near, (stage, _, last_cluster) in zip(near_each, crossings(replica), strict=True):
        bytes_per_token = profile.cluster_types[profile.clusters[last_cluster].type].output_bytes_per_token
        seconds[stage] += device.transfer_s(bytes_per_token * num_tokens, near)
    return seconds


def crossings(replica: Replica) -> tuple[tuple[int, int, int], ...]:
    """Where a pass moves to another stage: (stage, next stage, last cluster before), in order."""
    ranges = sorted(
        (start, stop, stage)
        for stage, cluster_ranges in enumerate(replica.stage_clusters)
        for start, stop in cluster_ranges
    )
    return tuple(
        (stage, following, stop - 1)
        for (_, stop, stage), (_, _, following) in itertools.pairwise(ranges)
        if stage != following
    )


def near_crossings(group: Group, replica: Replica) -> tuple[bool, ...]:
    """Whether each of a pass's `crossings` stays within a node."""
    return tuple(
        _same_node(group.stages[stage].gpus, group.stages[following].gpus)
        for stage, following, _ in crossings(replica)
    )


def _same_node(gpus: tuple[str, ...], others: tuple[str, ...]) -> bool:
    """Whether each GPU (``pool/node/gpu``) and its opposite number are in one node."""
    return all(
        gpu.rsplit("/", 1)[0] == other.rsplit("/", 1)[0] for gpu, other in zip(gpus, others, strict=True)
    )


def _cluster_counts(profile: Profile, replica: Replica) -> Floats:
    """How many clusters of each type each stage computes; shape (stages, cluster types)."""
    counts = np.zeros((len(replica.stage_clusters), len(profile.cluster_types)))
    times_held = np.zeros(len(profile.clusters), dtype=np.int64)
    for stage, cluster_ranges in enumerate(replica.stage_clusters):
        for start, stop in cluster_ranges:
            if not 0 <= start < stop <= len(profile.clusters):
                raise InputError(
                    f"Replica {replica.service!r} names the clusters {start} to {stop}; the profile of"
                    f" {profile.model} has {len(profile.clusters)}.",
                    "Solve the workload again with the present profile.",
                )
            times_held[start:stop] += 1
            np.add.at(counts[stage], profile.cluster_type_index[start:stop], 1.0)
    if (times_held != 1).any():
        wrong = int(np.flatnonzero(times_held != 1)[0])
        raise InputError(
            f"Cluster {wrong} of replica {replica.service!r} is on {times_held[wrong]} stages.",
            "A replica's stages must hold every cluster once; solve the workload again.",
        )
    if (counts.sum(axis=1) == 0).any():
        raise InputError(
            f"A stage of replica {replica.service!r} holds no cluster.",
            "Give every stage at least one cluster.",
        )
    return counts


def _between(values: Floats, grid: tuple[int, ...], batches: Sequence[int] | NDArray[np.int64]) -> Floats:
    """Interpolate the last axis log-log from ``grid`` onto ``batches``."""
    position = np.interp(np.log(batches), np.log(grid), np.arange(len(grid)))
    lower = np.minimum(position.astype(np.int64), max(len(grid) - 2, 0))
    upper = np.minimum(lower + 1, len(grid) - 1)
    weight = position - lower
    logs = np.log(values)
    between = np.exp(logs[..., lower] * (1.0 - weight) + logs[..., upper] * weight)
    exact = np.isin(batches, grid)
    between[..., exact] = values[..., np.searchsorted(grid, np.asarray(batches)[exact])]
    return np.asarray(between)
