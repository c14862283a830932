"""Every constraint on a deployment, recomputed from workload and plan; one function each.

Nothing here comes from the planner. A constraint has the same name here, in docs/mathematics.md and
in the LP file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from muplan.plan import Deployment, Group, Plan, Replica
from muplan.problem.problem import Problem
from muplan.profile import Phase
from muplan.verify.limits import anti_affinity, clocks_allowed, min_replicas, pinned, reserved_gpus
from muplan.verify.violation import ARITHMETIC_TOLERANCE, Violation


def check_deployment(problem: Problem, plan: Plan) -> Iterator[Violation]:
    """Recompute every constraint on groups, stages, clocks, memory and power."""
    broken = list(check_placement(problem, plan.deployment))
    yield from broken
    yield from _parked_known(problem, plan)
    if any(violation.constraint == "names_known" for violation in broken):
        return
    yield from gpu_used_once(problem, plan)
    yield from demand_served(problem, plan.deployment)
    yield from anti_affinity(problem, plan.deployment)
    yield from min_replicas(problem, plan.deployment)
    if _elsewhere(problem, plan.deployment):
        return
    for group in plan.deployment.groups:
        yield from pinned(problem, group)
    if not any(violation.constraint in _NEEDED_FOR_POWER for violation in broken):
        yield from power_cap(problem, plan.deployment)
        yield from node_power_cap(problem, plan.deployment)


_NEEDED_FOR_POWER = frozenset(
    {"every_cluster_once", "tensor_parallel_profiled", "clock_supported", "batch_profiled"}
)


def check_placement(problem: Problem, deployment: Deployment) -> Iterator[Violation]:
    """The constraints on each group alone, which a baseline keeps as the plan does; and all names."""
    known = [*_check_names(problem, deployment)] or _elsewhere(problem, deployment)
    yield from known
    if known:
        return
    for group in deployment.groups:
        unknown = [*every_cluster_once(problem, group), *tensor_parallel_profiled(problem, group)]
        yield from unknown
        yield from clock_supported(problem, group)
        yield from clocks_allowed(problem, group)
        yield from reserved_gpus(problem, group)
        yield from batch_profiled(problem, group)
        yield from cut_as_measured(problem, group)
        yield from service_hosted_once_per_group(group)
        yield from tensor_parallel_on_one_node(group)
        yield from group_within_limit(problem, group)
        yield from generate_hosted_alone(problem, group)
        if not unknown:
            yield from memory_fits(problem, group)


def _check_names(problem: Problem, deployment: Deployment) -> Iterator[Violation]:
    pools = {pool.name: set(pool.gpu_ids()) for pool in problem.pools}
    services = {service.name for service in problem.services}
    names = Counter(group.name for group in deployment.groups)
    for name in sorted(name for name, count in names.items() if count > 1):
        yield Violation(constraint="names_known", subject=name, message="names more than one group")
    for name in sorted(set(deployment.admitted) - services):
        yield Violation(
            constraint="names_known",
            subject=name,
            message="is admitted, but the workload has no such service",
        )
    for group in deployment.groups:
        if group.pool not in pools:
            yield Violation(
                constraint="names_known", subject=group.name, message=f"no pool named {group.pool!r}"
            )
            continue
        for gpu in group.gpus:
            if gpu not in pools[group.pool]:
                message = f"pool {group.pool!r} has no GPU {gpu!r}"
                yield Violation(constraint="names_known", subject=group.name, message=message)
        for replica in group.replicas:
            if replica.service not in services:
                message = f"the workload has no service {replica.service!r}"
                yield Violation(constraint="names_known", subject=group.name, message=message)


def _elsewhere(problem: Problem, deployment: Deployment) -> list[Violation]:
    """Services on pools that they may not use at all, and for which they have no profile."""
    return [
        violation
        for group in deployment.groups
        if any(group.pool not in problem.service(item.service).profiles for item in group.replicas)
        for violation in pinned(problem, group)
    ]


def _parked_known(problem: Problem, plan: Plan) -> Iterator[Violation]:
    fleet = {gpu for pool in problem.pools for gpu in pool.gpu_ids()}
    for gpu in plan.parked:
        if gpu not in fleet:
            yield Violation(
                constraint="names_known", subject=gpu, message="is parked, but the fleet has no such GPU"
            )


def gpu_used_once(problem: Problem, plan: Plan) -> Iterator[Violation]:
    """Every GPU belongs to one stage or is parked."""
    uses = Counter(plan.deployment.placed_gpus) + Counter(plan.parked)
    for pool in problem.pools:
        for gpu in pool.gpu_ids():
            if uses[gpu] != 1:
                message = "is used in more than one place" if uses[gpu] else "is neither placed nor parked"
                yield Violation(constraint="gpu_used_once", subject=gpu, message=message)


def tensor_parallel_on_one_node(group: Group) -> Iterator[Violation]:
    """The GPUs of a stage share a node."""
    for index, stage in enumerate(group.stages):
        nodes = sorted({gpu.rsplit("/", 1)[0] for gpu in stage.gpus})
        if len(nodes) > 1:
            message = f"stage {index} spreads its tensor-parallel GPUs over nodes {', '.join(nodes)}"
            yield Violation(constraint="tensor_parallel_on_one_node", subject=group.name, message=message)


def clock_supported(problem: Problem, group: Group) -> Iterator[Violation]:
    """Every clock stands on the device's list, in its usable band and in the profiles' range."""
    device = problem.devices[group.pool]
    for index, stage in enumerate(group.stages):
        place = f"stage {index}"
        if stage.clock_mhz not in device.supported_clocks_mhz:
            message = f"{place}: {stage.clock_mhz} MHz is not on the clock list of {device.name}"
            yield Violation(constraint="clock_supported", subject=group.name, message=message)
        elif stage.clock_mhz not in device.usable_clocks_mhz:
            low, high = device.usable_clocks_mhz[0], device.usable_clocks_mhz[-1]
            message = f"{place}: {stage.clock_mhz} MHz is outside the usable band {low}–{high} MHz"
            yield Violation(constraint="clock_supported", subject=group.name, message=message)
        for replica in group.replicas:
            profile = problem.service(replica.service).profiles[group.pool]
            if stage.clock_mhz not in profile.clocks_mhz:
                message = f"{place}: {stage.clock_mhz} MHz is not a clock of the profile of {profile.model}"
                yield Violation(constraint="clock_supported", subject=group.name, message=message)


def tensor_parallel_profiled(problem: Problem, group: Group) -> Iterator[Violation]:
    """The profiles of the hosted services cover the group's tensor parallelism (and number of stages)."""
    for replica in group.replicas:
        profile = problem.service(replica.service).profiles[group.pool]
        if group.tensor_parallel in profile.tensor_parallel and not profile.covers(
            group.tensor_parallel, len(group.stages)
        ):
            message = (
                f"{replica.service}: no pipeline of tensor parallelism {group.tensor_parallel}"
                f" × {len(group.stages)} stages was measured"
            )
            yield Violation(constraint="tensor_parallel_profiled", subject=group.name, message=message)
        elif group.tensor_parallel not in profile.tensor_parallel:
            message = f"{replica.service}: tensor parallelism {group.tensor_parallel} is not profiled"
            yield Violation(constraint="tensor_parallel_profiled", subject=group.name, message=message)


def cut_as_measured(problem: Problem, group: Group) -> Iterator[Violation]:
    """A profile of measured pipelines is cut where they were; an uncovered one is a fault elsewhere."""
    width, count = group.tensor_parallel, len(group.stages)
    for replica in group.replicas:
        profile = problem.service(replica.service).profiles[group.pool]
        stops = profile.measured_cuts(width, count) if profile.covers(width, count) else None
        if stops is None:
            continue
        if replica.stage_clusters != tuple(((start, stop),) for start, stop in pairwise((0, *stops))):
            message = f"{replica.service}: its stages are not those that were measured, cut at {stops}"
            yield Violation(constraint="cut_as_measured", subject=group.name, message=message)


def batch_profiled(problem: Problem, group: Group) -> Iterator[Violation]:
    """The profiles of the hosted services cover the batch limits."""
    for replica in group.replicas:
        profile = problem.service(replica.service).profiles[group.pool]
        largest = profile.phases[-1].batches[-1]  # forward, or decode
        if replica.max_batch > largest:
            message = f"{replica.service}: batches of {replica.max_batch}; profiled are up to {largest}"
            yield Violation(constraint="batch_profiled", subject=group.name, message=message)


def every_cluster_once(problem: Problem, group: Group) -> Iterator[Violation]:
    """The stages of a replica compute every cluster of its model, each once."""
    for replica in group.replicas:
        profile = problem.service(replica.service).profiles[group.pool]
        count = len(profile.clusters)
        ranges = [pair for stage in replica.stage_clusters for pair in stage]
        impossible = [f"{start}–{stop}" for start, stop in ranges if not 0 <= start < stop <= count]
        if impossible:
            message = f"{replica.service}: no clusters {', '.join(impossible[:6])} among its {count}"
            yield Violation(constraint="every_cluster_once", subject=group.name, message=message)
            continue
        computed = Counter(cluster for start, stop in ranges for cluster in range(start, stop))
        wrong = [index for index in range(count) if computed[index] != 1]
        if wrong:
            message = f"{replica.service}: clusters {_list(wrong)} are not computed exactly once"
            yield Violation(constraint="every_cluster_once", subject=group.name, message=message)


def service_hosted_once_per_group(group: Group) -> Iterator[Violation]:
    """A group hosts a service as one replica, whose batches are those of the whole group."""
    hosted = Counter(replica.service for replica in group.replicas)
    for service in sorted(name for name, count in hosted.items() if count > 1):
        message = f"hosts {service!r} {hosted[service]} times"
        yield Violation(constraint="service_hosted_once_per_group", subject=group.name, message=message)


def group_within_limit(problem: Problem, group: Group) -> Iterator[Violation]:
    """A group has no more GPUs than the workload allows."""
    most = problem.workload.serving.max_group_gpus
    if len(group.gpus) > most:
        message = f"has {len(group.gpus)} GPUs; serving.max_group_gpus allows {most}"
        yield Violation(constraint="group_within_limit", subject=group.name, message=message)


def generate_hosted_alone(problem: Problem, group: Group) -> Iterator[Violation]:
    """A group that hosts a generate service hosts nothing else; its memory is the KV cache."""
    kinds = {problem.service(replica.service).request_kind for replica in group.replicas}
    if "generate" in kinds and len(group.replicas) > 1:
        message = "hosts a generate service beside another service"
        yield Violation(constraint="generate_hosted_alone", subject=group.name, message=message)


def memory_fits(problem: Problem, group: Group) -> Iterator[Violation]:
    """Weights, activations and one longest request's KV cache fit each GPU of a stage."""
    usable = problem.devices[group.pool].usable_memory_bytes
    for index in range(len(group.stages)):
        need = stage_memory_bytes(problem, group, index)
        if need > usable:
            message = (
                f"stage {index} needs {need / 1e9:.2f} GB on each GPU, which has {usable / 1e9:.2f} GB usable"
            )
            yield Violation(constraint="memory_fits", subject=group.name, message=message)


def stage_memory_bytes(problem: Problem, group: Group, stage: int) -> int:
    """Memory of each GPU of a stage: all weights, the largest working set, one longest request's KV cache."""
    weights = 0
    working = 0.0
    for replica in group.replicas:
        service = problem.service(replica.service)
        profile = service.profiles[group.pool]
        width = profile.tensor_parallel_index(group.tensor_parallel, len(group.stages))
        kinds = [profile.cluster_types[profile.clusters[index].type] for index in _clusters(replica, stage)]
        weights += sum(kind.weight_bytes_per_gpu[width] for kind in kinds)
        activation = max((kind.activation_bytes_per_token_per_gpu[width] for kind in kinds), default=0)
        if service.request_kind == "generate":
            cache = sum(kind.kv_bytes_per_token_per_gpu[width] for kind in kinds)
            working = max(working, (activation + cache) * service.max_context)
        else:
            working = max(working, activation * service.input_tokens * replica.max_batch)
    return weights + math.ceil(working)


def demand_served(problem: Problem, deployment: Deployment) -> Iterator[Violation]:
    """Every service is placed, and its replicas' shares make up what is admitted of its demand."""
    shares = dict.fromkeys((service.name for service in problem.services), 0.0)
    for group in deployment.groups:
        for replica in group.replicas:
            shares[replica.service] += replica.share
    for service in problem.services:
        admitted = deployment.admitted.get(service.name, 1.0)
        share = shares[service.name]
        if not 0 <= admitted <= 1:
            message = f"admitted is {admitted:g}, which is no share of its demand"
            yield Violation(constraint="demand_served", subject=service.name, message=message)
        elif admitted < 1 and not problem.workload.admits_part:
            goal = problem.workload.objective[0].value
            message = (
                f"only {admitted:.1%} of its demand is admitted; the objective {goal!r} serves all of it"
            )
            yield Violation(constraint="demand_served", subject=service.name, message=message)
        if share == 0 and admitted > 0:
            yield Violation(constraint="demand_served", subject=service.name, message="is hosted nowhere")
        elif abs(share - admitted) > ARITHMETIC_TOLERANCE:
            message = f"its replicas' shares sum to {share:.6f}, not to {admitted:.6f}"
            yield Violation(constraint="demand_served", subject=service.name, message=message)


def power_cap(problem: Problem, deployment: Deployment) -> Iterator[Violation]:
    """With every placed GPU busy at its peak and the rest parked, no cap is exceeded."""
    total = 0.0
    placed: Counter[str] = Counter()
    for group in deployment.groups:
        pool = problem.pool(group.pool)
        device = problem.devices[group.pool]
        cap = min(pool.power_cap_w or math.inf, device.power_cap_w)
        placed[pool.name] += len(group.gpus)
        for index, stage in enumerate(group.stages):
            peak = _peak_power_w(problem, group, index)
            total += peak * len(stage.gpus)
            if peak > cap * (1 + ARITHMETIC_TOLERANCE):
                message = f"stage {index} peaks at {peak:.1f} W a GPU, over the cap of {cap:.1f} W"
                yield Violation(constraint="power_cap", subject=group.name, message=message)
    for pool in problem.pools:
        total += (pool.num_gpus - placed[pool.name]) * problem.devices[pool.name].parked_w
    fleet_cap = problem.workload.fleet.power_cap_w
    if fleet_cap is not None and total > fleet_cap * (1 + ARITHMETIC_TOLERANCE):
        message = f"peaks at {total:.1f} W, over its cap of {fleet_cap:.1f} W"
        yield Violation(constraint="power_cap", subject="fleet", message=message)


def node_power_cap(problem: Problem, deployment: Deployment) -> Iterator[Violation]:
    """With every placed GPU of a node busy at its peak and its others parked, its cap is not exceeded."""
    for pool in problem.pools:
        cap = pool.node_power_cap_w
        if cap is None:
            continue
        sizes = Counter(gpu.rsplit("/", 1)[0] for gpu in pool.gpu_ids())
        parked = problem.devices[pool.name].parked_w
        drawn = {node: size * parked for node, size in sizes.items()}
        for group in deployment.groups:
            for index, stage in enumerate(group.stages if group.pool == pool.name else ()):
                peak = _peak_power_w(problem, group, index)
                for gpu in stage.gpus:
                    drawn[gpu.rsplit("/", 1)[0]] += peak - parked
        for node, total in drawn.items():
            if total > cap * (1 + ARITHMETIC_TOLERANCE):
                message = f"peaks at {total:.1f} W, over its cap of {cap:.1f} W"
                yield Violation(constraint="node_power_cap", subject=node, message=message)


def _peak_power_w(problem: Problem, group: Group, stage: int) -> float:
    """Highest power of one GPU of a stage over everything it may compute."""
    peak = 0.0
    for replica in group.replicas:
        service = problem.service(replica.service)
        profile = service.profiles[group.pool]
        kinds = sorted({profile.clusters[index].type for index in _clusters(replica, stage)})
        if not kinds:
            continue
        clock = profile.clocks_mhz.index(group.stages[stage].clock_mhz)
        for grid in profile.phases:
            for batch in _batches(grid.batches, replica.max_batch, grid.phase):
                for tokens in grid.tokens if grid.phase is not Phase.FORWARD else [service.input_tokens]:
                    power = profile.power_w(
                        grid.phase,
                        tensor_parallel=group.tensor_parallel,
                        num_stages=len(group.stages),
                        batch=batch,
                        tokens=tokens,
                    )
                    peak = max(peak, float(power[kinds, clock].max()))
    return peak


def _batches(profiled: tuple[int, ...], max_batch: int, phase: Phase) -> list[int]:
    if phase is Phase.PREFILL:
        return list(profiled)
    return [batch for batch in profiled if batch < max_batch] + [min(max_batch, profiled[-1])]


def _clusters(replica: Replica, stage: int) -> list[int]:
    return [index for start, stop in replica.stage_clusters[stage] for index in range(start, stop)]


def _list(indices: list[int]) -> str:
    shown = ", ".join(map(str, sorted(indices)[:6]))
    return shown + (f" and {len(indices) - 6} more" if len(indices) > 6 else "")
