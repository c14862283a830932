"""The planning model: types of groups, how many groups of which services, and the rates they carry.

GPUs of a pool are interchangeable, so the model names none of them. A *form* is a shape of group at
given clocks with all that it could host; a *group type* is a form used up to a utilisation, which some
services allow; a *configuration* is a group type with the services it hosts, as many as memory holds,
and an integer counts such groups. ``docs/mathematics.md`` states the model;
`muplan.planning.stated.constraints` writes it, one function for each constraint.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from muplan.plan import ClusterRange, Status
from muplan.workload import Goal

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LEAST_ADMITTED = 0.01
"""Part of every service's demand that a plan for goodput admits at least."""

StageClusters = tuple[tuple[ClusterRange, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """A service on a form of group, in one partition.

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
    weight_bytes, working_bytes
        Memory of each GPU, for every stage: weights, which add up over services; the working set with
        the caches it must hold, where services take turns.
    peak_w
        Highest power of one GPU, for every stage.
    """

    service: str
    max_batch: int
    stage_clusters: StageClusters
    occupancy_s: float
    energy_j: float
    latency_s: float
    weight_bytes: tuple[float, ...]
    working_bytes: tuple[float, ...]
    peak_w: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Form:
    """A shape of group at given clocks, and all that it could host.

    Parameters
    ----------
    pool
        Name of the pool its GPUs come from.
    tensor_parallel
        GPUs of each stage.
    clocks_mhz
        Clock of every stage.
    standing_w
        Power of the group while it is loaded and carries nothing, above that of parked GPUs.
    usable_bytes
        Memory of each GPU.
    hostings
        What can be hosted; a service stands here once for every partition worth offering.
    """

    pool: str
    tensor_parallel: int
    clocks_mhz: tuple[int, ...]
    standing_w: float
    usable_bytes: float
    hostings: tuple[Hosting, ...]

    @property
    def num_stages(self) -> int:
        """Stages of the pipeline."""
        return len(self.clocks_mhz)

    @property
    def num_gpus(self) -> int:
        """GPUs of one group."""
        return self.tensor_parallel * len(self.clocks_mhz)

    @cached_property
    def occupancy_s(self) -> Floats:
        """Occupancy of every hosting; shape (hostings,)."""
        return np.array([item.occupancy_s for item in self.hostings])

    @cached_property
    def energy_j(self) -> Floats:
        """Energy of a request of every hosting; shape (hostings,)."""
        return np.array([item.energy_j for item in self.hostings])

    @cached_property
    def weight_bytes(self) -> Floats:
        """Weights of every hosting on each GPU of a stage; shape (hostings, stages)."""
        return np.array([item.weight_bytes for item in self.hostings])

    @cached_property
    def working_bytes(self) -> Floats:
        """Working set of every hosting on each GPU of a stage; shape (hostings, stages)."""
        return np.array([item.working_bytes for item in self.hostings])

    @cached_property
    def peak_w(self) -> Floats:
        """Peak power of every hosting on each GPU of a stage; shape (hostings, stages)."""
        return np.array([item.peak_w for item in self.hostings])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupType:
    """A form used up to a utilisation, and the services that allow it.

    Parameters
    ----------
    form
        Shape, clocks, and all that could be hosted.
    members
        Indices of the form's hostings that are within their limits at this utilisation, beside the
        longest pass of any of them; ascending.
    utilisation
        Highest utilisation of the bottleneck stage at which the queueing guard sees every member within
        its limits, in time at batch 1 (so above 1 where batches gain much).
    """

    form: Form
    members: Integers
    utilisation: float

    @property
    def peak_w(self) -> float:
        """Power of a group while every GPU draws the most that any member lets it draw."""
        return float(self.form.tensor_parallel * self.form.peak_w[self.members].max(axis=0).sum())

    def configuration(self, chosen: Sequence[int]) -> Configuration:
        """The group type hosting ``chosen`` of the form's hostings."""
        form = self.form
        hostings = tuple(sorted((form.hostings[index] for index in chosen), key=lambda item: item.service))
        return Configuration(
            pool=form.pool,
            tensor_parallel=form.tensor_parallel,
            clocks_mhz=form.clocks_mhz,
            hostings=hostings,
            utilisation=self.utilisation,
            standing_w=form.standing_w,
            peak_w=self.peak_w,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """How a group is built: a group type with the services that it hosts.

    Parameters
    ----------
    pool, tensor_parallel, clocks_mhz, utilisation, standing_w
        As `Form` and `GroupType`.
    hostings
        The services it hosts, by name.
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


@dataclass(frozen=True, kw_only=True)
class PoolSupply:
    """GPUs of a pool: how many, on nodes of which size, and what they draw when parked.

    Parameters
    ----------
    num_gpus
        GPUs of the pool, those included that the planner may not use.
    free_per_node
        GPUs of every node that it may use.
    parked_w
        Power of a parked GPU.
    node_power_cap_w
        Cap on the peak power of a node; infinite where there is none.
    clocks_mhz
        Clocks that a plan may use, for those who make candidates.
    """

    name: str
    num_gpus: int
    gpus_per_node: int
    free_per_node: tuple[int, ...]
    parked_w: float
    node_power_cap_w: float = math.inf
    clocks_mhz: tuple[int, ...] = ()

    @property
    def num_free(self) -> int:
        """GPUs that may be used."""
        return sum(self.free_per_node)

    @property
    def spare_node_power_w(self) -> float:
        """What the caps of all nodes together leave above the pool's GPUs parked."""
        return len(self.free_per_node) * self.node_power_cap_w - self.num_gpus * self.parked_w

    @property
    def power_levels(self) -> range:
        """Numbers of groups on a node from which `is_heavy` keeps further ones; none without a cap."""
        return range(1, self.node_gpus) if math.isfinite(self.node_power_cap_w) else range(0)

    def is_heavy(self, above_w: float, num_gpus: int, tensor_parallel: int, level: int) -> bool:
        """Whether no node's cap holds more than ``level`` groups on one node that draw so much above parked.

        Then all nodes together hold at most ``level`` times as many: what the caps of all nodes together
        leave would let a group stand partly on one node and partly on another.
        """
        smallest = self.num_gpus - (len(self.free_per_node) - 1) * self.gpus_per_node
        spare_w = self.node_power_cap_w - smallest * self.parked_w
        return len(self.parts(num_gpus, tensor_parallel)) == 1 and above_w * (level + 1) > spare_w

    def num_slots(self, width: int) -> int:
        """How many sets of ``width`` GPUs can be cut from the nodes, none across two nodes."""
        return sum(free // width for free in self.free_per_node)

    @cached_property
    def node_gpus(self) -> int:
        """GPUs of the largest node that may be used; 1 where there is none."""
        return max((1, *self.free_per_node))

    @property
    def slot_widths(self) -> tuple[int, ...]:
        """Every width of a slot, ascending: the powers of two that are smaller than a node, and a node."""
        powers = (1 << power for power in range(self.node_gpus.bit_length()))
        return (*(width for width in powers if width < self.node_gpus), self.node_gpus)

    def slot_width(self, num_gpus: int) -> int:
        """GPUs of the slot that a part of a group is cut from: a power of two that holds it, or a node."""
        return min(1 << (num_gpus - 1).bit_length(), self.node_gpus)

    def stages_per_node(self, tensor_parallel: int) -> int:
        """Stages of a group that one node holds."""
        return self.node_gpus // tensor_parallel

    def parts(self, num_gpus: int, tensor_parallel: int) -> tuple[int, ...]:
        """GPUs that a group takes of every node: as many whole stages as a node holds, then the rest."""
        most = self.stages_per_node(tensor_parallel) * tensor_parallel
        full, rest = divmod(num_gpus, most)
        return (most,) * full + ((rest,) if rest else ())

    def slots_taken(self, num_gpus: int, tensor_parallel: int, width: int) -> int:
        """Slots of ``width`` GPUs that those parts of a group spoil which are at least that wide.

        `muplan.planning.stated.packing` says why groups can be packed that spoil no more than there are.
        """
        return sum(
            min(-(-part // width), self.node_gpus // width)
            for part in self.parts(num_gpus, tensor_parallel)
            if self.slot_width(part) >= width
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanningModel:
    """One instance of the stated model.

    Parameters
    ----------
    rates_rps
        Demand of every service by name, requests per second.
    pools
        The supply of GPUs.
    group_types
        The candidates; each meets ``slo_met`` by construction.
    power_cap_w
        Cap on the fleet's power while every placed GPU is busy and the rest are parked; infinite
        where there is none.
    goals
        What is optimised, in order; each at the best of those before. See `goal`.
    min_replicas
        Groups that must host a service, by name, where more than one.
    max_replicas
        Groups that may host a service, by name, where bounded (anti-affinity: the nodes).
    goodput_floor_rps
        Requests per second that must be carried at least in all (0: no such row).
    request_worth_j
        What a served request is worth where energy per request is minimised: the energy that the best
        known plan spends on one (Dinkelbach, 1967).
    taken
        What groups that are settled already take of each row, by its name.
    """

    rates_rps: Mapping[str, float]
    pools: tuple[PoolSupply, ...]
    group_types: tuple[GroupType, ...]
    power_cap_w: float
    goals: tuple[Goal, ...]
    min_replicas: Mapping[str, int] = field(default_factory=dict)
    max_replicas: Mapping[str, int] = field(default_factory=dict)
    goodput_floor_rps: float = 0.0
    request_worth_j: float = 0.0
    taken: Mapping[str, float] = field(default_factory=dict)

    @property
    def parked_w(self) -> float:
        """Power of the fleet with every GPU parked."""
        return sum(pool.num_gpus * pool.parked_w for pool in self.pools)

    @property
    def goal(self) -> Goal:
        """What is minimised (power, energy) or maximised (goodput, rate) at present.

        A rate is one factor on all demands, at most 1.
        """
        return self.goals[0]

    @property
    def admits_part(self) -> bool:
        """Whether part of the demand may go unserved."""
        return self.goal is not Goal.POWER or self.goodput_floor_rps > 0

    @property
    def watt_cost(self) -> float:
        """What a watt counts in the minimised objective."""
        return 1.0 if self.goal in (Goal.POWER, Goal.ENERGY_PER_REQUEST) else 0.0

    @property
    def request_worth(self) -> float:
        """What a served request per second takes from the minimised objective."""
        return {Goal.GOODPUT: 1.0, Goal.ENERGY_PER_REQUEST: self.request_worth_j}.get(self.goal, 0.0)

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
class Achieved:
    """What was reached of one goal, and what cannot be exceeded, in the unit of the goal.

    The bound is below (power, W; energy, J a request) or above (goodput, requests/s; rate, a factor on
    the demand).
    """

    goal: Goal
    value: float
    bound: float

    @property
    def gap(self) -> float:
        """Distance of value and bound, relative to the value."""
        return abs(self.value - self.bound) / max(abs(self.value), 1e-12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """What a solver found for a planning model: one entry of ``achieved`` for each goal, in order.

    ``objective``, ``bound`` and ``gap`` are those of the first. Without a solution ``achieved`` and
    ``uses`` are empty.
    """

    solver: str
    status: Status
    achieved: tuple[Achieved, ...]
    power_w: float
    uses: tuple[Use, ...]
    seed: int

    @property
    def found(self) -> bool:
        """Whether there is a solution to use."""
        return self.status in (Status.OPTIMAL, Status.FEASIBLE)

    @property
    def objective(self) -> float:
        """Value of the first goal; NaN where nothing was found."""
        return self.achieved[0].value if self.achieved else math.nan

    @property
    def bound(self) -> float:
        """Bound of the first goal; NaN where nothing was found."""
        return self.achieved[0].bound if self.achieved else math.nan

    @property
    def gap(self) -> float:
        """Gap of the first goal; infinite where nothing was found."""
        return self.achieved[0].gap if self.achieved else math.inf


def power_of(model: PlanningModel, uses: Iterable[Use]) -> float:
    """Expected power of the fleet, watts: parked GPUs, loaded groups, and the energy of requests."""
    total = model.parked_w
    for use in uses:
        total += use.count * use.configuration.standing_w
        for hosting, rate in zip(use.configuration.hostings, use.rates_rps, strict=True):
            total += rate * hosting.energy_j
    return total


def served_rps(uses: Iterable[Use], service: str) -> float:
    """Rate at which a solution carries a service."""
    return sum(
        rate
        for use in uses
        for hosting, rate in zip(use.configuration.hostings, use.rates_rps, strict=True)
        if hosting.service == service
    )
