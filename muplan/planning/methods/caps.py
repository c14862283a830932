"""Caps: whether a deployment could draw more than its fleet may.

Candidates of the stated model keep the caps by themselves; a placement that knows no power may not.
"""

from __future__ import annotations

from collections.abc import Iterator

from muplan.plan import Deployment, Group, Reason, Replica
from muplan.planning.estimates.clusters import cluster_table
from muplan.problem.problem import Problem
from muplan.profile import Phase


def cap_faults(problem: Problem, deployment: Deployment) -> tuple[Reason, ...]:
    """What is drawn above a cap with every placed GPU at its peak and the rest parked."""
    cap_w = problem.workload.fleet.power_cap_w
    if cap_w is None:
        return ()
    peak_w = sum(_group_peak_w(problem, group) for group in deployment.groups)
    placed = set(deployment.placed_gpus)
    for pool in problem.pools:
        peak_w += sum(gpu not in placed for gpu in pool.gpu_ids()) * problem.devices[pool.name].parked_w
    if peak_w <= cap_w * (1 + 1e-9):
        return ()
    text = f"the fleet could draw {peak_w:.0f} W, its cap is {cap_w:g} W (modelled)."
    return (Reason(subject="fleet", text=text),)


def _group_peak_w(problem: Problem, group: Group) -> float:
    return sum(
        group.tensor_parallel
        * max(_stage_peak_w(problem, group, replica, stage) for replica in group.replicas)
        for stage in range(len(group.stages))
    )


def _stage_peak_w(problem: Problem, group: Group, replica: Replica, stage: int) -> float:
    """Highest power of one GPU over all that a replica's stage may compute."""
    service = problem.service(replica.service)
    profile = service.profiles[group.pool]
    clock = profile.clocks_mhz.index(group.stages[stage].clock_mhz)
    own = [index for start, stop in replica.stage_clusters[stage] for index in range(start, stop)]
    return max(
        float(
            cluster_table(
                profile,
                phase,
                tensor_parallel=group.tensor_parallel,
                batch=batch,
                tokens=tokens,
                num_stages=len(group.stages),
            )
            .power_w[own, clock]
            .max()
        )
        for phase, batch, tokens in _points(problem, group, replica)
    )


def _points(problem: Problem, group: Group, replica: Replica) -> Iterator[tuple[Phase, float, float]]:
    """Operating points that a replica may run at."""
    service = problem.service(replica.service)
    for grid in service.profiles[group.pool].phases:
        limit = grid.batches[-1]
        if grid.phase is not Phase.PREFILL:
            limit = min(limit, replica.max_batch)
        batches = [batch for batch in grid.batches if batch < limit] + [limit]
        for tokens in [service.input_tokens] if grid.phase is Phase.FORWARD else grid.tokens:
            for batch in batches:
                yield grid.phase, batch, tokens
