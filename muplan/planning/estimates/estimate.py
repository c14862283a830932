"""Estimates: what one service costs and carries on one shape of group at given clocks.

An estimate is a fact of the profiles; it knows neither of other services nor of the guard. Forward
services are estimated at batch 1 for energy (under light load batches rarely form, so this never
flatters a plan) and at every batch that pays for capacity.
"""

from __future__ import annotations

from dataclasses import dataclass

from muplan.planning.stated.model import StageClusters

MAX_STAGES = 8
"""Stages of the longest pipeline offered."""


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
