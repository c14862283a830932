"""Assignment: groups get GPUs of a zone so that every node keeps its limits.

Where nodes have no limits of their own, packing by width suffices and always succeeds
(`muplan.planning.stated.packing`). With a cap on nodes, or services whose replicas must stand apart, parts
of groups are placed widest first, each where most power is left; where that leads nowhere, an integer
programme over nodes and kinds of parts settles whether there is an assignment.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from muplan.plan import Replica, Status
from muplan.planning.placing.rules import Node, PlacementRules
from muplan.planning.placing.zones import Zone, supply_of
from muplan.planning.solvers.restricted import Effort, run_highs
from muplan.planning.stated.model import PoolSupply
from muplan.planning.stated.packing import FreeGpus

_EFFORT = Effort(gap=1.0, max_nodes=5_000, time_limit_s=20.0, seed=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """A group that has no GPUs yet."""

    tensor_parallel: int
    clocks_mhz: tuple[int, ...]
    replicas: tuple[Replica, ...]

    @property
    def num_gpus(self) -> int:
        """GPUs that it needs."""
        return self.tensor_parallel * len(self.clocks_mhz)


@dataclass(frozen=True, slots=True, order=True)
class _Kind:
    """What matters of a part of a group: its GPUs, peak power above parked, services that stand apart."""

    num_gpus: int
    above_w: float
    apart: tuple[str, ...]


@dataclass(slots=True)
class _Place:
    """A node while it is filled."""

    node: Node
    free: FreeGpus
    left_w: float
    apart: set[str] = field(default_factory=set)

    def take(self, kind: _Kind) -> tuple[str, ...]:
        """GPUs for a part; none where the node cannot have it."""
        if kind.above_w > self.left_w + 1e-9 * abs(self.left_w) or not self.apart.isdisjoint(kind.apart):
            return ()
        (gpus,) = self.free.pack([(kind.num_gpus,)])
        if gpus:
            self.left_w -= kind.above_w
            self.apart.update(kind.apart)
        return gpus


def assign_gpus(rules: PlacementRules, zone: Zone, groups: Sequence[Sized]) -> list[tuple[str, ...]] | None:
    """GPUs of a zone for every group; None where there is no assignment, or none was found."""
    supply = supply_of(rules.problem, zone.name, zone.nodes)
    sizes = [supply.parts(group.num_gpus, group.tensor_parallel) for group in groups]
    apart = any(item.service in rules.apart for group in groups for item in group.replicas)
    if not apart and math.isinf(supply.node_power_cap_w):
        packed = FreeGpus(supply, [node.gpus for node in zone.nodes]).pack(sizes)
        return packed if all(packed) else None
    parts = [_parts(rules, zone, group, own) for group, own in zip(groups, sizes, strict=True)]
    kinds = [kind for own in parts for kind in own]
    found = _first_fit(supply, zone, kinds)
    if found is None:
        found = _solved(supply, zone, kinds)
    if found is None:
        return None
    gpus = iter(found)
    return [tuple(gpu for _ in own for gpu in next(gpus)) for own in parts]


def _parts(rules: PlacementRules, zone: Zone, group: Sized, sizes: Sequence[int]) -> list[_Kind]:
    """The parts of a group, in the order of its stages."""
    width = group.tensor_parallel
    parked_w = rules.problem.devices[zone.pool].parked_w
    peaks = rules.peak.of_stages(zone.pool, width, group.clocks_mhz, group.replicas)
    apart = tuple(sorted({item.service for item in group.replicas} & rules.apart))
    parts, first = [], 0
    for size in sizes:
        stages = peaks[first : first + size // width]
        first += size // width
        parts.append(_Kind(size, round(sum(width * (peak - parked_w) for peak in stages), 6), apart))
    return parts


def _places(supply: PoolSupply, zone: Zone) -> list[_Place]:
    return [_Place(node, FreeGpus(supply, [node.gpus]), node.spare_w) for node in zone.nodes]


def _widest_first(supply: PoolSupply, kinds: Sequence[_Kind]) -> list[int]:
    return sorted(
        range(len(kinds)),
        key=lambda place: (
            -supply.slot_width(kinds[place].num_gpus),
            -kinds[place].num_gpus,
            -len(kinds[place].apart),
            -kinds[place].above_w,
        ),
    )


def _first_fit(supply: PoolSupply, zone: Zone, kinds: Sequence[_Kind]) -> list[tuple[str, ...]] | None:
    """Parts widest first, each on the first node that has most power left; None where one finds no place."""
    places = _places(supply, zone)
    found: list[tuple[str, ...]] = [()] * len(kinds)
    for number in _widest_first(supply, kinds):
        for place in sorted(places, key=lambda item: -item.left_w):
            found[number] = place.take(kinds[number])
            if found[number]:
                break
        if not found[number]:
            return None
    return found


def _solved(supply: PoolSupply, zone: Zone, kinds: Sequence[_Kind]) -> list[tuple[str, ...]] | None:
    """The parts as an integer programme places them; None where it finds no assignment."""
    from pulp import LpMinimize, LpProblem, lpSum

    wanted = Counter(kinds)
    problem = LpProblem("assignment", LpMinimize)
    counts = {
        (kind, node): problem.add_variable(f"x_{number}_{node}", 0, wanted[kind], "Integer")
        for number, kind in enumerate(sorted(wanted))
        for node in range(len(zone.nodes))
    }
    problem.setObjective(lpSum([]))
    for kind, number in wanted.items():
        problem.addConstraint(lpSum(counts[kind, node] for node in range(len(zone.nodes))) == number)
    for index, node in enumerate(zone.nodes):
        for width in supply.slot_widths:
            spoiled = [
                min(-(-kind.num_gpus // width), supply.node_gpus // width) * counts[kind, index]
                for kind in wanted
                if supply.slot_width(kind.num_gpus) >= width
            ]
            problem.addConstraint(lpSum(spoiled) <= len(node.gpus) // width)
        if math.isfinite(node.spare_w):
            drawn = lpSum(kind.above_w * counts[kind, index] for kind in wanted)
            problem.addConstraint(drawn <= node.spare_w)
        for service in sorted({name for kind in wanted for name in kind.apart}):
            hosts = [counts[kind, index] for kind in wanted if service in kind.apart]
            problem.addConstraint(lpSum(hosts) <= 1)
    status, _, _ = run_highs(problem, _EFFORT, [])
    if status not in (Status.OPTIMAL, Status.FEASIBLE):
        return None
    left = {key: round(variable.varValue or 0.0) for key, variable in counts.items()}
    places = _places(supply, zone)
    found: list[tuple[str, ...]] = [()] * len(kinds)
    for number in _widest_first(supply, kinds):
        home = next(index for index in range(len(places)) if left[kinds[number], index] > 0)
        left[kinds[number], home] -= 1
        found[number] = places[home].take(kinds[number])
    return found if all(found) else None
