"""Zones: nodes of a pool that the same services may use.

A service that is pinned to nodes makes them differ. To the stated model each zone is a pool of its own, so
pinned services get their nodes by its own constraints. Without such services a pool is one zone.
"""

from __future__ import annotations

from dataclasses import dataclass

from muplan.planning.placing.rules import Node, PlacementRules
from muplan.planning.stated.model import PoolSupply
from muplan.problem.problem import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """Nodes of a pool, and the services that may use them; named as the pool, or after its first node."""

    name: str
    pool: str
    nodes: tuple[Node, ...]
    services: frozenset[str]


def zones_of(rules: PlacementRules) -> tuple[Zone, ...]:
    """The zones of every pool, in order."""
    names = [service.name for service in rules.problem.services]
    zones: list[Zone] = []
    for pool in rules.problem.pools:
        alike: dict[frozenset[str], list[Node]] = {}
        for name in pool.node_ids():
            services = frozenset(item for item in names if name in rules.homes.get(item, rules.nodes))
            alike.setdefault(services, []).append(rules.nodes[name])
        zones += [
            Zone(
                name=pool.name if len(alike) == 1 else nodes[0].name,
                pool=pool.name,
                nodes=tuple(nodes),
                services=services,
            )
            for services, nodes in alike.items()
        ]
    return tuple(zones)


def supply_of(problem: Problem, name: str, nodes: tuple[Node, ...]) -> PoolSupply:
    """The supply of nodes of one pool, under a name."""
    pool = problem.pool(nodes[0].pool)
    return PoolSupply(
        name=name,
        num_gpus=sum(node.num_gpus for node in nodes),
        gpus_per_node=pool.gpus_per_node,
        free_per_node=tuple(len(node.gpus) for node in nodes),
        parked_w=problem.devices[pool.name].parked_w,
        node_power_cap_w=nodes[0].power_cap_w,
        clocks_mhz=problem.clocks_mhz(pool.name),
    )
