"""From a solution to a deployment: groups get GPUs by name."""

from __future__ import annotations

from collections.abc import Sequence

from muplan.errors import SolverError
from muplan.plan import Deployment, Group, Replica, Stage
from muplan.planning.stated.model import Configuration, PoolSupply, Solution, Use, served_rps
from muplan.planning.stated.packing import FreeGpus
from muplan.problem.problem import Problem

_SMALLEST_SHARE = 1e-6
_FULLY_ADMITTED = 1 - 1e-6


def deploy(problem: Problem, solution: Solution, supplies: Sequence[PoolSupply]) -> Deployment:
    """Name the GPUs of every group of a solution and split the demand over the groups.

    All groups of a configuration carry the same share; a service that a group would not carry is not
    hosted there.
    """
    carried = {service.name: served_rps(solution.uses, service.name) for service in problem.services}
    hosted = [
        (use.configuration, replicas)
        for use in solution.uses
        for _ in range(use.count)
        if (replicas := _replicas(problem, use, carried))
    ]
    groups: list[Group] = []
    for supply in supplies:
        mine = [item for item in hosted if item[0].pool == supply.name]
        mine.sort(key=lambda item: -item[0].num_gpus)
        places = _places(problem, supply, [configuration for configuration, _ in mine])
        for (configuration, replicas), gpus in zip(mine, places, strict=True):
            groups.append(_group(f"group-{len(groups)}", configuration, gpus, replicas))
    return Deployment(
        groups=tuple(groups),
        admitted=_admitted(problem, carried),
        serving=problem.workload.serving,
    )


def parked_gpus(problem: Problem, deployment: Deployment) -> tuple[str, ...]:
    """GPUs of the fleet that host nothing."""
    placed = set(deployment.placed_gpus)
    return tuple(gpu for pool in problem.pools for gpu in pool.gpu_ids() if gpu not in placed)


def free_gpus(problem: Problem, supply: PoolSupply) -> FreeGpus:
    """All GPUs of a pool that may be used, node by node."""
    ids, size = problem.pool(supply.name).gpu_ids(), supply.gpus_per_node
    return FreeGpus(supply, [ids[start : start + size] for start in range(0, len(ids), size)])


def _admitted(problem: Problem, carried: dict[str, float]) -> dict[str, float]:
    if not problem.workload.admits_part:
        return {}
    shares = {service.name: carried[service.name] / service.rate_rps for service in problem.services}
    return {name: share for name, share in shares.items() if share < _FULLY_ADMITTED}


def _replicas(problem: Problem, use: Use, carried: dict[str, float]) -> tuple[Replica, ...]:
    replicas = []
    for hosting, rate in zip(use.configuration.hostings, use.rates_rps, strict=True):
        demand = problem.service(hosting.service).rate_rps
        served = min(carried[hosting.service], demand)
        # Shares add up to what is admitted, to the last digit that the solver left uncertain.
        admitted = served / demand
        if not problem.workload.admits_part or admitted >= _FULLY_ADMITTED:
            admitted = 1.0
        share = admitted * rate / carried[hosting.service] / use.count if rate > 0 else 0.0
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


def _group(
    name: str, configuration: Configuration, gpus: Sequence[str], replicas: tuple[Replica, ...]
) -> Group:
    width = configuration.tensor_parallel
    stages = tuple(
        Stage(gpus=tuple(gpus[index * width : (index + 1) * width]), clock_mhz=clock)
        for index, clock in enumerate(configuration.clocks_mhz)
    )
    return Group(name=name, pool=configuration.pool, stages=stages, replicas=replicas)


def _places(
    problem: Problem, supply: PoolSupply, configurations: Sequence[Configuration]
) -> list[tuple[str, ...]]:
    """GPUs of a pool for every group."""
    places = free_gpus(problem, supply).pack(
        [supply.parts(item.num_gpus, item.tensor_parallel) for item in configurations]
    )
    for configuration, gpus in zip(configurations, places, strict=True):
        if not gpus:
            raise SolverError(
                f"A group of {configuration.num_gpus} GPUs finds no place in the pool {supply.name!r}.",
                "This is a fault of muplan; report the workload.",
            )
    return places
