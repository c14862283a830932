"""Demands: what a workload asks for that could be left out, each as one member of a conflict.

A demand is a service with its latency limit and target, or a limit on the plan: a cap, say. Given by
the fleet, and no demand, is how many GPUs there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from muplan.hardware.fleet import Pool
from muplan.problem.problem import Problem, ResolvedService
from muplan.workload import Service, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Something a workload asks for.

    Parameters
    ----------
    subject
        The service's name, or ``fleet``, or the pool.
    text
        What it asks, in words that go on after the subject: "asks for …".
    is_service
        Whether it is a service rather than a limit.
    without
        The problem without it.
    """

    subject: str
    text: str
    is_service: bool
    without: Callable[[Problem], Problem]


def demands_of(problem: Problem) -> tuple[Demand, ...]:
    """All that could be left out of a problem: its limits, then its services."""
    return (*_limits(problem.workload), *(_service(service) for service in problem.services))


def without(problem: Problem, demands: Iterable[Demand]) -> Problem:
    """The problem without some of its demands."""
    for demand in demands:
        problem = demand.without(problem)
    return problem


def changed(problem: Problem, workload: Workload) -> Problem:
    """The problem with another fleet or other rules, its services resolved as they are."""
    return replace(problem, workload=workload)


def with_services(problem: Problem, services: Iterable[ResolvedService]) -> Problem:
    """The problem with other services in place of its own."""
    kept = tuple(services)
    workload = problem.workload.model_copy(update={"services": tuple(service.spec for service in kept)})
    return replace(problem, workload=workload, services=kept)


def _service(service: ResolvedService) -> Demand:
    limits = service.limits
    limit = (
        f"{limits.latency_s:.4g} s"
        if service.request_kind == "forward"
        else f"{limits.ttft_s:.4g} s to the first token and {limits.tpot_s:.4g} s per token"
    )

    def drop(problem: Problem) -> Problem:
        return with_services(problem, (item for item in problem.services if item.name != service.name))

    return Demand(
        subject=service.name,
        text=f"asks for {service.rate_rps:.4g} requests/s, {100 * service.attainment:.4g} % within {limit}",
        is_service=True,
        without=drop,
    )


def _limits(workload: Workload) -> list[Demand]:
    """The limits that a workload sets beside its services."""
    found = []
    fleet = workload.fleet
    if fleet.power_cap_w is not None:
        found.append(_limit("fleet", f"may draw {fleet.power_cap_w:g} W", _without_fleet_cap))
    for pool in fleet.pools:
        if pool.power_cap_w is not None:
            text = f"may draw {pool.power_cap_w:g} W on each GPU"
            found.append(_limit(pool.name, text, _pool_without(pool.name, "power_cap_w")))
        found += _pool_limits(pool)
    return [*found, *(limit for service in workload.services for limit in _service_limits(service))]


def _pool_limits(pool: Pool) -> Iterator[Demand]:
    """What a pool forbids a plan beside the power of its GPUs."""
    if pool.node_power_cap_w is not None:
        text = f"may draw {pool.node_power_cap_w:g} W on each node"
        yield _limit(pool.name, text, _pool_without(pool.name, "node_power_cap_w"))
    if pool.reserved_gpus:
        text = f"keeps {len(pool.reserved_gpus)} of its GPUs in reserve"
        yield _limit(pool.name, text, _pool_without(pool.name, "reserved_gpus", ()))
    if pool.min_clock_mhz is not None:
        text = f"runs at {pool.min_clock_mhz} MHz at least"
        yield _limit(pool.name, text, _pool_without(pool.name, "min_clock_mhz"))
    if pool.max_clock_mhz is not None:
        text = f"runs at {pool.max_clock_mhz} MHz at most"
        yield _limit(pool.name, text, _pool_without(pool.name, "max_clock_mhz"))


def _service_limits(service: Service) -> Iterator[Demand]:
    """What a service asks of where its replicas stand."""
    if service.pinned_to:
        yield _asked_by(service.name, f"is pinned to {', '.join(service.pinned_to)}", "pinned_to", ())
    if service.anti_affinity:
        yield _asked_by(service.name, "has its replicas on different nodes", "anti_affinity", False)
    if service.min_replicas > 1:
        yield _asked_by(service.name, f"has {service.min_replicas} replicas or more", "min_replicas", 1)


def _asked_by(service: str, text: str, field: str, default: object) -> Demand:
    def drop(problem: Problem) -> Problem:
        return with_services(
            problem,
            (
                replace(item, spec=item.spec.model_copy(update={field: default}))
                if item.name == service
                else item
                for item in problem.services
            ),
        )

    return Demand(subject=service, text=text, is_service=False, without=drop)


def _limit(subject: str, text: str, change: Callable[[Workload], Workload]) -> Demand:
    return Demand(
        subject=subject,
        text=text,
        is_service=False,
        without=lambda problem: changed(problem, change(problem.workload)),
    )


def _without_fleet_cap(workload: Workload) -> Workload:
    return workload.model_copy(update={"fleet": workload.fleet.model_copy(update={"power_cap_w": None})})


def _pool_without(name: str, field: str, default: object = None) -> Callable[[Workload], Workload]:
    """A change that takes a field off one pool."""

    def change(workload: Workload) -> Workload:
        pools = tuple(
            pool.model_copy(update={field: default}) if pool.name == name else pool
            for pool in workload.fleet.pools
        )
        return workload.model_copy(update={"fleet": workload.fleet.model_copy(update={"pools": pools})})

    return change
