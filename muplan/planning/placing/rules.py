"""The rules of placement: what a deployment as a whole must keep, beyond what each group must be.

They are the limits that a workload sets on its fleet and services. Solver, packing, the moves of a search
and baselines all ask here; the names of what is broken are those of the constraints that ``muplan
verify`` recomputes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from muplan.plan import Deployment, Group
from muplan.planning.placing.peak import PeakPower
from muplan.problem.problem import Problem

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of the fleet: the GPUs that a plan may use of all, and what all draw parked and may draw."""

    name: str
    pool: str
    num_gpus: int
    gpus: tuple[str, ...]
    parked_w: float
    power_cap_w: float

    @property
    def spare_w(self) -> float:
        """What its cap leaves above all its GPUs parked."""
        return self.power_cap_w - self.parked_w


class PlacementRules:
    """The limits of a workload on where groups stand and what they draw together."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.peak = PeakPower(problem)
        self.nodes = {node.name: node for pool in problem.pools for node in _nodes(problem, pool.name)}
        services = [service.spec for service in problem.services]
        self.apart = frozenset(spec.name for spec in services if spec.anti_affinity)
        self.least = {spec.name: spec.min_replicas for spec in services if spec.min_replicas > 1}
        self.homes = {
            spec.name: frozenset(node for node in self.nodes if spec.may_use(node))
            for spec in services
            if spec.pinned_to
        }
        self.clocks_mhz = {pool.name: frozenset(problem.clocks_mhz(pool.name)) for pool in problem.pools}
        fleet_cap_w = problem.workload.fleet.power_cap_w
        parked_w = sum(node.parked_w for node in self.nodes.values())
        self.spare_w = math.inf if fleet_cap_w is None else fleet_cap_w - parked_w
        self.caps_w = {
            pool.name: min(pool.power_cap_w or math.inf, problem.devices[pool.name].power_cap_w)
            for pool in problem.pools
        }

    @property
    def is_capped(self) -> bool:
        """Whether peak power is limited anywhere but by the devices themselves."""
        pools = self.problem.pools
        return math.isfinite(self.spare_w) or any(
            pool.power_cap_w is not None or pool.node_power_cap_w is not None for pool in pools
        )

    @property
    def caps_sums(self) -> bool:
        """Whether the peak power of several groups together is limited."""
        return math.isfinite(self.spare_w) or any(
            pool.node_power_cap_w is not None for pool in self.problem.pools
        )

    @property
    def is_free(self) -> bool:
        """Whether a group may host whatever its memory holds, wherever it stands."""
        return not (self.is_capped or self.apart or self.homes)

    def num_homes(self, service: str) -> int:
        """Nodes with a GPU that a service may use."""
        return sum(bool(self.nodes[name].gpus) for name in self.homes.get(service, self.nodes))

    def allows(self, deployment: Deployment) -> bool:
        """Whether a deployment keeps all of them."""
        return not self.broken(deployment)

    def broken(self, deployment: Deployment) -> tuple[str, ...]:
        """Names of the constraints that a deployment breaks."""
        found = dict.fromkeys(name for group in deployment.groups for name in self.broken_by_group(group))
        occupancy = Occupancy(self, deployment.groups)
        found |= dict.fromkeys(occupancy.broken(self.nodes))
        replicas = Counter(item.service for group in deployment.groups for item in group.replicas)
        if any(replicas[service] < number for service, number in self.least.items()):
            found["min_replicas"] = None
        return tuple(found)

    def broken_by_group(self, group: Group) -> list[str]:
        """Names of the constraints that a group breaks by itself."""
        found = []
        nodes = nodes_of(group)
        if any(gpu not in self.nodes[node_of(gpu)].gpus for gpu in group.gpus):
            found.append("reserved_gpus")
        if any(not nodes <= self.homes.get(item.service, nodes) for item in group.replicas):
            found.append("pinned")
        if not self.clocks_mhz[group.pool].issuperset(stage.clock_mhz for stage in group.stages):
            found.append("clocks_allowed")
        elif self.is_capped and max(self.peak.of_group(group)) > self.caps_w[group.pool] * (1 + _ROUNDING):
            found.append("power_cap")
        return found

    def peak_w(self, deployment: Deployment) -> float:
        """Power of the fleet with every placed GPU at its peak and the others parked."""
        parked = {pool: device.parked_w for pool, device in self.problem.devices.items()}
        return sum(node.parked_w for node in self.nodes.values()) + sum(
            len(stage.gpus) * (peak_w - parked[group.pool])
            for group in deployment.groups
            for stage, peak_w in zip(group.stages, self.peak.of_group(group), strict=True)
        )

    def above_parked_w(self, group: Group) -> Mapping[str, float]:
        """Peak power of a group's GPUs above that of parked ones, by node."""
        found: dict[str, float] = {}
        if self.caps_sums:
            parked_w = self.problem.devices[group.pool].parked_w
            for stage, peak_w in zip(group.stages, self.peak.of_group(group), strict=True):
                for gpu in stage.gpus:
                    found[node_of(gpu)] = found.get(node_of(gpu), 0.0) + peak_w - parked_w
        return found


class Occupancy:
    """What groups take of nodes and of the fleet's power, kept while groups come and go."""

    def __init__(self, rules: PlacementRules, groups: Iterable[Group] = ()) -> None:
        self._rules = rules
        self._is_free = rules.is_free
        self._above_w: dict[str, float] = dict.fromkeys(rules.nodes, 0.0)
        self._total_w = 0.0
        self._hosted: Counter[tuple[str, str]] = Counter()
        for group in () if self._is_free else groups:
            self._count(group, 1)

    def broken(self, nodes: Iterable[str]) -> list[str]:
        """Names of the constraints that are broken on some of the nodes, or by the fleet."""
        found = []
        if any(self._hosted[node, service] > 1 for service in self._rules.apart for node in nodes):
            found.append("anti_affinity")
        if any(self._above_w[node] > _slack(self._rules.nodes[node].spare_w) for node in nodes):
            found.append("node_power_cap")
        if self._total_w > _slack(self._rules.spare_w):
            found.append("power_cap")
        return found

    def exchange(self, old: Group, new: Group) -> bool:
        """Put one group in the place of another on its GPUs where that breaks nothing; whether it did."""
        if self._is_free:
            return True
        self._count(old, -1)
        self._count(new, 1)
        if not self._rules.broken_by_group(new) and not self.broken(nodes_of(new)):
            return True
        self._count(new, -1)
        self._count(old, 1)
        return False

    def _count(self, group: Group, times: int) -> None:
        for node, above_w in self._rules.above_parked_w(group).items():
            self._above_w[node] += times * above_w
            self._total_w += times * above_w
        for replica in group.replicas:
            if replica.service in self._rules.apart:
                self._hosted.update({(node, replica.service): times for node in nodes_of(group)})


def node_of(gpu: str) -> str:
    """The node of a GPU, by name."""
    return gpu.rpartition("/")[0]


def nodes_of(group: Group) -> set[str]:
    """The nodes that a group stands on."""
    return {node_of(gpu) for gpu in group.gpus}


def _slack(limit_w: float) -> float:
    return limit_w + _ROUNDING * abs(limit_w) if math.isfinite(limit_w) else limit_w


def _nodes(problem: Problem, name: str) -> list[Node]:
    pool, parked_w = problem.pool(name), problem.devices[name].parked_w
    sizes = Counter(node_of(gpu) for gpu in pool.gpu_ids())
    return [
        Node(
            name=node,
            pool=name,
            num_gpus=sizes[node],
            gpus=gpus,
            parked_w=sizes[node] * parked_w,
            power_cap_w=math.inf if pool.node_power_cap_w is None else pool.node_power_cap_w,
        )
        for node, gpus in zip(pool.node_ids(), pool.free_gpus(), strict=True)
    ]
