"""Estimates: what one service costs and carries on one shape of group at given clocks.

An estimate is a fact of the profiles; it knows neither of other services nor of the guard. Forward
services are estimated at batch 1 for energy (under light load batches rarely form, so this never
flatters a plan) and at every batch that pays for capacity.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.hardware.device import Device
from muplan.planning.stated.model import StageClusters
from muplan.problem.problem import ResolvedService
from muplan.profile import Phase, Profile

Floats = NDArray[np.float64]

_BATCH_GAIN = 0.95
"""A batch limit is doubled only where that lowers the time per request to this share or less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The GPUs of a group: a pool, the tensor parallelism of its stages, and their number."""

    pool: str
    tensor_parallel: int
    num_stages: int

    @property
    def num_gpus(self) -> int:
        """GPUs of the group."""
        return self.tensor_parallel * self.num_stages


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLevel:
    """A batch size: time on the bottleneck stage, and from dispatch to completion, seconds."""

    batch: int
    bottleneck_s: float
    latency_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A service on a shape at given clocks.

    Parameters
    ----------
    levels
        Batch sizes worth forming, ascending; the first is 1. Generate services have none.
    max_batch
        Batch limit, or limit of sequences.
    energy_j
        Energy of a request above that of loaded GPUs, at batch 1 (generate: the slope of power over rate).
    standing_w
        Power that is there as soon as the group works, whatever its rate (generate only).
    rate_limit_rps, guarded_rps
        Generate only: the rate at which a group meets its hard limits, and the one that the guard allows
        a single group. 0 for forward services.
    latency_s
        Least time from dispatch to completion (generate: of the prefill).
    loaded_w
        Power of the group's GPUs, loaded and idle.
    peak_w
        Highest power of one GPU, for every stage.
    weight_bytes, working_bytes
        Memory of each GPU, for every stage: weights; the working set with the caches it must hold.
    """

    service: str
    shape: Shape
    clocks_mhz: tuple[int, ...]
    stage_clusters: StageClusters
    levels: tuple[BatchLevel, ...]
    max_batch: int
    energy_j: float
    standing_w: float
    rate_limit_rps: float
    guarded_rps: float
    latency_s: float
    loaded_w: float
    peak_w: tuple[float, ...]
    weight_bytes: tuple[float, ...]
    working_bytes: tuple[float, ...]
    is_grouped: bool

    @property
    def bottleneck_s(self) -> float:
        """Time of a single request on the bottleneck stage."""
        return self.levels[0].bottleneck_s if self.levels else 1.0 / self.rate_limit_rps


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterTable:
    """Clusters of a profile at one tensor parallelism and operating point, in the order of the graph.

    ``latency_s`` and ``power_w`` (of one GPU) have the shape (clusters, clocks).
    """

    latency_s: Floats
    power_w: Floats


def cluster_table(
    profile: Profile,
    phase: Phase,
    *,
    tensor_parallel: int,
    batch: float,
    tokens: float,
    num_stages: int | None = None,
) -> ClusterTable:
    """Latency and power of every cluster along the graph at an operating point.

    ``num_stages`` is needed where the profile was measured stage by stage.
    """
    index = profile.cluster_type_index
    latency, power = (
        look_up(phase, tensor_parallel=tensor_parallel, batch=batch, tokens=tokens, num_stages=num_stages)
        for look_up in (profile.latency_s, profile.power_w)
    )
    return ClusterTable(latency_s=latency[index], power_w=power[index])


def forward_tables(
    service: ResolvedService,
    profile: Profile,
    tensor_parallel: int,
    max_batch: int,
    num_stages: int | None = None,
) -> dict[int, ClusterTable]:
    """Tables of a forward service at batches 1, 2, 4 … up to ``max_batch`` and the profile's largest."""
    limit = min(max_batch, profile.grid(Phase.FORWARD).batches[-1])
    batches = [2**power for power in range(limit.bit_length()) if 2**power <= limit]
    return {
        batch: cluster_table(
            profile,
            Phase.FORWARD,
            tensor_parallel=tensor_parallel,
            batch=batch,
            tokens=service.input_tokens,
            num_stages=num_stages,
        )
        for batch in batches
    }


def stage_sums(values: Floats, stage_clusters: StageClusters) -> Floats:
    """Sum over the clusters of every stage; the first axis of ``values`` runs over clusters."""
    return np.array(
        [sum(values[start:stop].sum(axis=0) for start, stop in ranges) for ranges in stage_clusters]
    )


def stage_peaks(values: Floats, stage_clusters: StageClusters) -> Floats:
    """Maximum over the clusters of every stage; the first axis of ``values`` runs over clusters."""
    return np.array(
        [
            np.max([values[start:stop].max(axis=0) for start, stop in ranges], axis=0)
            for ranges in stage_clusters
        ]
    )


def cluster_bytes(profile: Profile, tensor_parallel: int, kind: str, num_stages: int | None = None) -> Floats:
    """Bytes a GPU of every cluster; ``kind`` is ``weight``, ``kv_per_token`` or ``activation_per_token``."""
    width = profile.tensor_parallel_index(tensor_parallel, num_stages)
    values = {
        "weight": [cluster_type.weight_bytes_per_gpu[width] for cluster_type in profile.cluster_types],
        "kv_per_token": [kind_.kv_bytes_per_token_per_gpu[width] for kind_ in profile.cluster_types],
        "activation_per_token": [
            kind_.activation_bytes_per_token_per_gpu[width] for kind_ in profile.cluster_types
        ],
    }[kind]
    return np.array(values, dtype=float)[profile.cluster_type_index]


def output_bytes(profile: Profile) -> Floats:
    """Size of the activation that every cluster hands on, bytes a token."""
    return np.array([kind.output_bytes_per_token for kind in profile.cluster_types])[
        profile.cluster_type_index
    ]


def same_node(shape: Shape, gpus_per_node: int, stage: int, other: int) -> bool:
    """Whether two stages of a group share a node, as `muplan.planning.deploy` places it."""
    if shape.num_gpus <= gpus_per_node:
        return True
    per_node = gpus_per_node // shape.tensor_parallel
    return stage // per_node == other // per_node


def transfer_s(device: Device, profile: Profile, num_tokens: float, *, same_node: bool) -> Floats:
    """Time to hand every cluster's output to another stage, for ``num_tokens`` tokens in all."""
    return np.array(
        [device.transfer_s(float(size) * num_tokens, same_node) for size in output_bytes(profile)]
    )


def batches_that_pay(
    levels: Iterator[BatchLevel] | list[BatchLevel], limit_s: float
) -> tuple[BatchLevel, ...]:
    """The batch sizes worth forming: 1, and each doubling that serves requests faster and in time.

    A request may arrive when a full batch has just begun and must then be served within its limit in
    the next full batch.
    """
    kept: list[BatchLevel] = []
    for level in levels:
        if kept:
            last = kept[-1]
            gains = level.bottleneck_s / level.batch <= _BATCH_GAIN * last.bottleneck_s / last.batch
            if not gains or level.latency_s + level.bottleneck_s > limit_s:
                break
        kept.append(level)
    return tuple(kept)
