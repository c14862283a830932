"""Costs of a forward pass: what each cluster of a model asks of a device, at every batch and clock."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from muplan.hardware.device import Device
from muplan.planning.estimates.clusters import Floats, cluster_bytes, cluster_table, transfer_s
from muplan.planning.stated.model import PoolSupply
from muplan.profile import Phase, Profile
from muplan.serving.groups import loaded_power_w


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ForwardCosts:
    """The clusters of a model on a device at one tensor parallelism, for requests of one length.

    All that services of the same model and length have in common. Clocks are those at which no cluster
    exceeds the cap on a GPU.

    Parameters
    ----------
    num_stages
        The only number of stages, where the profile was measured stage by stage.
    stage_overhead
        As `muplan.workload.Serving`.
    batches
        1, 2, 4 … up to the planner's limit and the profile's largest.
    latency_s
        Shape (clusters, batches, clocks).
    energy_j
        Energy of a GPU above that of a loaded one, at batch 1; shape (clusters, clocks).
    peak_w
        Highest power of a GPU at any batch; shape (clusters, clocks).
    loaded_w
        Power of a loaded, idle GPU; shape (clocks,).
    weight_bytes, working_bytes
        Memory of a GPU, the latter for each request of a batch; shape (clusters,).
    near_s, far_s
        Time to hand a cluster's output to another stage, within a node and to another one; shape
        (batches, clusters).
    scores
        Sensitivity score of every cluster; shape (clusters,).
    """

    profile: Profile
    supply: PoolSupply
    tensor_parallel: int
    num_stages: int | None
    overhead_s: float
    stage_overhead: float
    usable_bytes: float
    clocks_mhz: tuple[int, ...]
    batches: NDArray[np.int64]
    latency_s: Floats
    energy_j: Floats
    peak_w: Floats
    loaded_w: Floats
    weight_bytes: Floats
    working_bytes: Floats
    near_s: Floats
    far_s: Floats
    scores: Floats

    @property
    def num_clusters(self) -> int:
        """Clusters along the graph."""
        return len(self.weight_bytes)

    def stretch(self, num_stages: int) -> float:
        """How much longer every stage takes for the stages there are."""
        return 1.0 + self.stage_overhead * num_stages


def forward_costs(
    profile: Profile,
    device: Device,
    supply: PoolSupply,
    *,
    tensor_parallel: int,
    input_tokens: float,
    max_batch: int,
    cap_w: float,
    num_stages: int | None = None,
    overhead_s: float = 0.0,
    stage_overhead: float = 0.0,
) -> ForwardCosts:
    """Look up the costs of a model.

    Parameters
    ----------
    max_batch
        The largest batch that the planner may choose.
    cap_w
        Cap on the power of each GPU; clocks at which any cluster draws more are left out.
    """
    limit = min(max_batch, profile.grid(Phase.FORWARD).batches[-1])
    batches = [2**power for power in range(limit.bit_length()) if 2**power <= limit]
    table_at = partial(
        cluster_table,
        profile,
        Phase.FORWARD,
        tensor_parallel=tensor_parallel,
        tokens=input_tokens,
        num_stages=num_stages,
    )
    tables = [table_at(batch=batch) for batch in batches]
    loaded_w = loaded_power_w(device, profile.clocks_mhz)
    peak_w = np.max([table.power_w for table in tables], axis=0)
    kept = [
        index
        for index, clock in enumerate(profile.clocks_mhz)
        if peak_w[:, index].max() <= cap_w and clock in supply.clocks_mhz
    ]
    single = tables[0]
    near_s, far_s = (
        np.array([transfer_s(device, profile, input_tokens * batch, same_node=together) for batch in batches])
        for together in (True, False)
    )
    scores = profile.sensitivity_score(
        Phase.FORWARD, tensor_parallel=tensor_parallel, batch=1, tokens=input_tokens, num_stages=num_stages
    )
    return ForwardCosts(
        profile=profile,
        supply=supply,
        tensor_parallel=tensor_parallel,
        num_stages=num_stages,
        overhead_s=overhead_s,
        stage_overhead=stage_overhead,
        usable_bytes=device.usable_memory_bytes,
        clocks_mhz=tuple(profile.clocks_mhz[index] for index in kept),
        batches=np.array(batches),
        latency_s=np.stack([table.latency_s[:, kept] for table in tables], axis=1),
        energy_j=np.ascontiguousarray((single.latency_s * (single.power_w - loaded_w))[:, kept]),
        peak_w=peak_w[:, kept],
        loaded_w=loaded_w[kept],
        weight_bytes=cluster_bytes(profile, tensor_parallel, "weight", num_stages),
        working_bytes=cluster_bytes(profile, tensor_parallel, "activation_per_token", num_stages)
        * input_tokens,
        near_s=near_s,
        far_s=far_s,
        scores=scores[profile.cluster_type_index],
    )
