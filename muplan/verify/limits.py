"""Limits that a workload sets on placement, recomputed from workload and plan; one function each.

As in `muplan.verify.constraints`, nothing here comes from the planner.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from muplan.plan import Deployment, Group
from muplan.problem.problem import Problem
from muplan.verify.violation import Violation


def reserved_gpus(problem: Problem, group: Group) -> Iterator[Violation]:
    """No group uses a reserved GPU."""
    reserved = set(problem.pool(group.pool).reserved_gpus)
    for gpu in group.gpus:
        if gpu in reserved:
            yield Violation(
                constraint="reserved_gpus", subject=group.name, message=f"uses {gpu}, a reserved GPU"
            )


def clocks_allowed(problem: Problem, group: Group) -> Iterator[Violation]:
    """Every clock lies between the lowest and the highest that its pool allows."""
    pool = problem.pool(group.pool)
    lowest, highest = pool.min_clock_mhz or 0, pool.max_clock_mhz or math.inf
    for index, stage in enumerate(group.stages):
        if not lowest <= stage.clock_mhz <= highest:
            message = f"stage {index}: {stage.clock_mhz} MHz; its pool allows {lowest:g} to {highest:g} MHz"
            yield Violation(constraint="clocks_allowed", subject=group.name, message=message)


def pinned(problem: Problem, group: Group) -> Iterator[Violation]:
    """A pinned service is hosted on its pools and nodes alone."""
    for replica in group.replicas:
        places = problem.service(replica.service).spec.pinned_to
        for node in sorted(_nodes(group)):
            if places and node not in places and group.pool not in places:
                message = f"hosts {replica.service!r} on {node}; it is pinned to {', '.join(places)}"
                yield Violation(constraint="pinned", subject=group.name, message=message)


def anti_affinity(problem: Problem, deployment: Deployment) -> Iterator[Violation]:
    """Replicas of a service that asks for it stand on different nodes."""
    for service in problem.services:
        if not service.spec.anti_affinity:
            continue
        hosts = Counter(node for group in _hosts(deployment, service.name) for node in _nodes(group))
        for node, number in sorted(hosts.items()):
            if number > 1:
                message = f"has {number} replicas on {node}; they must stand on different nodes"
                yield Violation(constraint="anti_affinity", subject=service.name, message=message)


def min_replicas(problem: Problem, deployment: Deployment) -> Iterator[Violation]:
    """Every service is hosted by as many groups as it must be."""
    for service in problem.services:
        number, least = len(_hosts(deployment, service.name)), service.spec.min_replicas
        if number < least:
            message = f"has {number} replicas; it must have {least} or more"
            yield Violation(constraint="min_replicas", subject=service.name, message=message)


def _hosts(deployment: Deployment, service: str) -> list[Group]:
    return [group for group in deployment.groups if any(item.service == service for item in group.replicas)]


def _nodes(group: Group) -> set[str]:
    return {gpu.rsplit("/", 1)[0] for gpu in group.gpus}
