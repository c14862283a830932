"""Clusters of a profile along the graph: their time, power, memory and transfers, and sums over stages."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muplan.hardware.device import Device
from muplan.planning.stated.model import PoolSupply, StageClusters
from muplan.profile import Phase, Profile

Floats = NDArray[np.float64]


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


def same_node(supply: PoolSupply, tensor_parallel: int, stage: int, other: int) -> bool:
    """Whether two stages of a group share a node (`muplan.planning.stated.model.PoolSupply.parts`)."""
    per_node = supply.stages_per_node(tensor_parallel)
    return stage // per_node == other // per_node


def transfer_s(device: Device, profile: Profile, num_tokens: float, *, same_node: bool) -> Floats:
    """Time to hand every cluster's output to another stage, for ``num_tokens`` tokens in all."""
    by_type = [
        device.transfer_s(kind.output_bytes_per_token * num_tokens, same_node)
        for kind in profile.cluster_types
    ]
    return np.array(by_type)[profile.cluster_type_index]
