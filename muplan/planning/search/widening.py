"""Widening: host a service on more groups, wherever memory and the passes of the others allow.

Requests wait less where more groups can take them, and a replica costs nothing but memory until it
works. The planning model gives no credit for that beyond the guard's pooling; simulation does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from muplan.plan import Deployment, Group, Replica
from muplan.planning.estimates.estimate import Estimate, Shape
from muplan.planning.placing.rules import Occupancy
from muplan.planning.stated.candidates import CandidateBuilder, memory_fits
from muplan.planning.stated.model import Use
from muplan.problem.problem import Problem

_WIDE_ENOUGH = 32
"""Groups over which requests are pooled so well that more bring nothing; each would cost routing time."""


def thinned(uses: Sequence[Use], min_replicas: Mapping[str, int]) -> tuple[Use, ...]:
    """The uses without hostings that carry nothing, of services that are on groups enough without them."""
    enough = {service: max(number, _WIDE_ENOUGH) for service, number in min_replicas.items()}
    places: dict[str, int] = {}
    for use in uses:
        for hosting, rate in zip(use.configuration.hostings, use.rates_rps, strict=True):
            if rate > 0:
                places[hosting.service] = places.get(hosting.service, 0) + use.count
    found = []
    for use in uses:
        kept = []
        for hosting, rate in zip(use.configuration.hostings, use.rates_rps, strict=True):
            if rate > 0 or places.get(hosting.service, 0) < enough.get(hosting.service, _WIDE_ENOUGH):
                kept.append((hosting, rate))
                if rate <= 0:
                    places[hosting.service] = places.get(hosting.service, 0) + use.count
        configuration = replace(use.configuration, hostings=tuple(hosting for hosting, _ in kept))
        found.append(replace(use, configuration=configuration, rates_rps=tuple(rate for _, rate in kept)))
    return tuple(found)


def widen(
    problem: Problem, builder: CandidateBuilder, deployment: Deployment, service: str
) -> Deployment | None:
    """The deployment with ``service`` on every group that can host it too; None where none can.

    A group can where memory holds one more model, where every service of the group, the new one
    included, can wait for the longest pass of the others and still be in time, and where that breaks no
    rule of placement. A service on `_WIDE_ENOUGH` groups goes on no more. All its replicas then carry
    equal shares.
    """
    places = sum(item.service == service for group in deployment.groups for item in group.replicas)
    before, groups = places, []
    occupancy = Occupancy(builder.rules, deployment.groups if places < _WIDE_ENOUGH else ())
    joins: dict[tuple[object, ...], Estimate | None] = {}  # by kind of group: a large fleet has many alike
    for group in deployment.groups if places < _WIDE_ENOUGH else ():
        hosted = tuple(replica.service for replica in group.replicas)
        estimate = None
        if places < _WIDE_ENOUGH and service not in hosted:
            kind = (
                group.pool,
                group.tensor_parallel,
                tuple(stage.clock_mhz for stage in group.stages),
                hosted,
            )
            if kind not in joins:
                joins[kind] = _joining(problem, builder, group, service)
            estimate = joins[kind]
        wider = group if estimate is None else _with_replica(group, estimate)
        is_allowed = wider is not group and occupancy.exchange(group, wider)
        groups.append(wider if is_allowed else group)
        places += is_allowed
    if places == before:
        return None
    total = sum(
        item.share for group in deployment.groups for item in group.replicas if item.service == service
    )
    shared = tuple(_with_share(group, service, total / places) for group in groups)
    return deployment.model_copy(update={"groups": shared})


def _joining(problem: Problem, builder: CandidateBuilder, group: Group, service: str) -> Estimate | None:
    """The estimate under which a service can join those on a group; None where it cannot."""
    estimate = _estimate(builder, group, service)
    hosted = [_estimate(builder, group, replica.service) for replica in group.replicas]
    return estimate if estimate is not None and can_join(problem, estimate, hosted) else None


def _with_replica(group: Group, estimate: Estimate) -> Group:
    replica = Replica(
        service=estimate.service,
        share=1.0,
        max_batch=estimate.max_batch,
        stage_clusters=estimate.stage_clusters,
    )
    return group.model_copy(update={"replicas": (*group.replicas, replica)})


def _estimate(builder: CandidateBuilder, group: Group, service: str) -> Estimate | None:
    shape = Shape(pool=group.pool, tensor_parallel=group.tensor_parallel, num_stages=len(group.stages))
    return builder.forward_estimate(shape, tuple(stage.clock_mhz for stage in group.stages), service)


def can_join(problem: Problem, estimate: Estimate, hosted: Sequence[Estimate | None]) -> bool:
    """Whether a group that hosts ``hosted`` can host one more service, as `widen` says."""
    known = [item for item in hosted if item is not None]
    if len(known) < len(hosted) or not known:
        return False
    usable = problem.devices[estimate.shape.pool].usable_memory_bytes
    longest = max(item.bottleneck_s for item in (*known, estimate))
    in_time = all(
        problem.service(item.service).limits.latency_s - item.latency_s >= longest
        for item in (*known, estimate)
    )
    return in_time and memory_fits(usable, [*known, estimate])


def _with_share(group: Group, service: str, share: float) -> Group:
    if all(item.service != service for item in group.replicas):
        return group
    replicas = tuple(
        item.model_copy(update={"share": share}) if item.service == service else item
        for item in group.replicas
    )
    return group.model_copy(update={"replicas": replicas})
