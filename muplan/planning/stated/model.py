"""The planning model: configurations of groups, how many of each, and the rates they carry.

GPUs of a pool are interchangeable, so the model names none of them: a *configuration* says how a
group is built (pool, parallelism, clocks, hosted services) and an integer counts such groups.
``docs/mathematics.md`` states the model; `muplan.planning.stated.constraints` writes it, one function for
each constraint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from muplan.plan import ClusterRange, Status
from muplan.workload import Goal

LEAST_ADMITTED = 0.01
"""Part of every service's demand that a plan for goodput admits at least."""

StageClusters = tuple[tuple[ClusterRange, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """A service on a configuration.

    Parameters
    ----------
    service
        Name of the service.
    max_batch
        Batch limit (forward) or limit of sequences (generate).
    stage_clusters
        Cluster ranges of every stage.
    occupancy_s
        Time one request takes of the group's bottleneck stage.
    energy_j
        Energy of one request above that of the loaded, idle GPUs.
    latency_s
        Time from dispatch to completion without waiting, batch 1 (generate: of the prefill).
    """

    service: str
    max_batch: int
    stage_clusters: StageClusters
    occupancy_s: float
    energy_j: float
    latency_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """How a group is built.

    Parameters
    ----------
    pool
        Name of the pool its GPUs come from.
    tensor_parallel
        GPUs of each stage.
    clocks_mhz
        Clock of every stage.
    hostings
        The services it hosts.
    utilisation
        The highest utilisation of its bottleneck stage at which the queueing guard sees every
        hosted service within its limits, in time at batch 1 (so above 1 where batches gain much).
    standing_w
        Power of the group while it is loaded and carries nothing, above that of parked GPUs.
    peak_w
        Power of the group while all its GPUs are busy.
    """

    pool: str
    tensor_parallel: int
    clocks_mhz: tuple[int, ...]
    hostings: tuple[Hosting, ...]
    utilisation: float
    standing_w: float
    peak_w: float

    @property
    def num_gpus(self) -> int:
        """GPUs of one group."""
        return self.tensor_parallel * len(self.clocks_mhz)

    @property
    def services(self) -> tuple[str, ...]:
        """Names of the hosted services."""
        return tuple(hosting.service for hosting in self.hostings)

    def load_s(self, hosting: Hosting) -> float:
        """Groups needed for each request per second of ``hosting``: its occupancy over the utilisation."""
        return hosting.occupancy_s / self.utilisation


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSupply:
    """GPUs of a pool: how many, on nodes of which size, and what they draw when parked."""

    name: str
    num_gpus: int
    gpus_per_node: int
    parked_w: float

    def num_slots(self, width: int) -> int:
        """How many sets of ``width`` GPUs can be cut from the nodes, none across two nodes."""
        full, rest = divmod(self.num_gpus, self.gpus_per_node)
        return full * (self.gpus_per_node // width) + rest // width

    def slot_width(self, num_gpus: int) -> int:
        """GPUs of a group that must share a node: all of them, or a whole node for larger groups."""
        return min(num_gpus, self.gpus_per_node)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningModel:
    """One instance of the stated model.

    Parameters
    ----------
    rates_rps
        Demand of every service by name, requests per second.
    pools
        The supply of GPUs.
    configurations
        The candidates; each meets ``memory_fits`` and ``slo_met`` by construction.
    power_cap_w
        Cap on the fleet's power while every placed GPU is busy and the rest are parked; infinite
        where there is none.
    goal
        What is optimised.
    """

    rates_rps: Mapping[str, float]
    pools: tuple[PoolSupply, ...]
    configurations: tuple[Configuration, ...]
    power_cap_w: float
    goal: Goal

    @property
    def parked_w(self) -> float:
        """Power of the fleet with every GPU parked."""
        return sum(pool.num_gpus * pool.parked_w for pool in self.pools)

    def pool(self, name: str) -> PoolSupply:
        """The pool of that name."""
        return next(pool for pool in self.pools if pool.name == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """How a solution uses a configuration.

    ``rates_rps`` has one entry for each of the configuration's hostings: what all ``count`` groups
    together carry.
    """

    configuration: Configuration
    count: int
    rates_rps: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What a solver found for a planning model.

    ``objective`` and ``bound`` are in watts (power; the bound is below) or in requests per second
    (goodput; the bound is above). Without a solution the objective is NaN and ``uses`` is empty.
    """

    solver: str
    status: Status
    objective: float
    bound: float
    power_w: float
    uses: tuple[Use, ...]
    seed: int

    @property
    def found(self) -> bool:
        """Whether there is a solution to use."""
        return self.status in (Status.OPTIMAL, Status.FEASIBLE)

    @property
    def gap(self) -> float:
        """Distance of objective and bound, relative to the objective."""
        if not self.found:
            return float("inf")
        return max(0.0, abs(self.objective - self.bound)) / max(abs(self.objective), 1e-12)


def power_of(model: PlanningModel, uses: tuple[Use, ...]) -> float:
    """Expected power of the fleet, watts: parked GPUs, loaded groups, and the energy of requests."""
    total = model.parked_w
    for use in uses:
        total += use.count * use.configuration.standing_w
        for hosting, rate in zip(use.configuration.hostings, use.rates_rps, strict=True):
            total += rate * hosting.energy_j
    return total


def served_rps(uses: tuple[Use, ...], service: str) -> float:
    """Rate at which a solution carries a service."""
    return sum(
        rate
        for use in uses
        for hosting, rate in zip(use.configuration.hostings, use.rates_rps, strict=True)
        if hosting.service == service
    )
