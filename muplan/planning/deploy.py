"""From a solution to a deployment: groups get GPUs by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from muplan.plan import Deployment, Group, Replica, Stage
from muplan.planning.placing.assignment import Sized, assign_gpus
from muplan.planning.placing.rules import PlacementRules
from muplan.planning.placing.zones import zones_of
from muplan.planning.stated.model import Solution, Use, served_rps
from muplan.problem.problem import Problem

_SMALLEST_SHARE = 1e-6
_FULLY_ADMITTED = 1 - 1e-6


def deploy(problem: Problem, solution: Solution, rules: PlacementRules) -> Deployment | None:
    """Name the GPUs of every group of a solution and split the demand over the groups.

    All groups of a configuration carry the same share; a service that a group would not carry is not
    hosted there, unless it has a least number of replicas: then all that the solution hosts share alike.

    Returns
    -------
    Deployment or None
        None where the groups find no GPUs within the rules of placement.
    """
    carried = {service.name: served_rps(solution.uses, service.name) for service in problem.services}
    hosted = [
        (use.configuration, replicas)
        for use in solution.uses
        for replicas in [_replicas(problem, use, carried, _standby(solution, rules))]
        for _ in range(use.count)
        if replicas
    ]
    groups: list[Group] = []
    for zone in zones_of(rules):
        mine = [item for item in hosted if item[0].pool == zone.name]
        mine.sort(key=lambda item: -item[0].num_gpus)
        sized = [
            Sized(tensor_parallel=one.tensor_parallel, clocks_mhz=one.clocks_mhz, replicas=replicas)
            for one, replicas in mine
        ]
        places = assign_gpus(rules, zone, sized)
        if places is None:
            return None
        for group, gpus in zip(sized, places, strict=True):
            groups.append(_group(f"group-{len(groups)}", zone.pool, group, gpus))
    return Deployment(
        groups=tuple(groups),
        admitted=_admitted(problem, carried),
        serving=problem.workload.serving,
    )


def _standby(solution: Solution, rules: PlacementRules) -> dict[str, int]:
    """Groups that host each service of which too few would carry anything, by name."""
    working, hosting = Counter[str](), Counter[str]()
    for use in solution.uses:
        for item, rate in zip(use.configuration.hostings, use.rates_rps, strict=True):
            hosting[item.service] += use.count
            working[item.service] += use.count if rate > 0 else 0
    return {name: hosting[name] for name, least in rules.least.items() if working[name] < least}


def parked_gpus(problem: Problem, deployment: Deployment) -> tuple[str, ...]:
    """GPUs of the fleet that host nothing."""
    placed = set(deployment.placed_gpus)
    return tuple(gpu for pool in problem.pools for gpu in pool.gpu_ids() if gpu not in placed)


def _admitted(problem: Problem, carried: dict[str, float]) -> dict[str, float]:
    if not problem.workload.admits_part:
        return {}
    shares = {service.name: carried[service.name] / service.rate_rps for service in problem.services}
    return {name: share for name, share in shares.items() if share < _FULLY_ADMITTED}


def _replicas(
    problem: Problem, use: Use, carried: dict[str, float], standby: dict[str, int]
) -> tuple[Replica, ...]:
    replicas = []
    for hosting, rate in zip(use.configuration.hostings, use.rates_rps, strict=True):
        demand = problem.service(hosting.service).rate_rps
        served = min(carried[hosting.service], demand)
        # Shares add up to what is admitted, to the last digit that the solver left uncertain.
        admitted = served / demand
        if not problem.workload.admits_part or admitted >= _FULLY_ADMITTED:
            admitted = 1.0
        share = admitted * rate / carried[hosting.service] / use.count if rate > 0 else 0.0
        if hosting.service in standby:
            share = admitted / standby[hosting.service]
        if share >= _SMALLEST_SHARE:
            replicas.append(
                Replica(
                    service=hosting.service,
                    share=share,
                    max_batch=hosting.max_batch,
                    stage_clusters=hosting.stage_clusters,
                )
            )
    return tuple(replicas)


def _group(name: str, pool: str, group: Sized, gpus: Sequence[str]) -> Group:
    width = group.tensor_parallel
    stages = tuple(
        Stage(gpus=tuple(gpus[index * width : (index + 1) * width]), clock_mhz=clock)
        for index, clock in enumerate(group.clocks_mhz)
    )
    return Group(name=name, pool=pool, stages=stages, replicas=group.replicas)
