"""Placements that use the whole fleet at one clock: AlpaServe's, and selective replication alone.

They know neither clocks nor parking; what AlpaServe's search finds is judged under the workload's rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from muplan.plan import Deployment
from muplan.planning.baselines.alpaserve import (
    TRAINING_REQUESTS,
    Ranked,
    alpaserve_rules,
    cut_pool,
    search_alpaserve,
)
from muplan.planning.baselines.replication import estimated_need, replicate, simulated_need
from muplan.planning.estimates.estimate import Estimate, Shape
from muplan.planning.search.evaluation import Evaluation, Judge
from muplan.planning.search.placement import Host, Menu, Placement, Site
from muplan.planning.search.scoring import CountingScorer, Scorer, Training
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.planning.stated.model import PoolSupply
from muplan.problem.problem import Problem

_JUDGED = 6
"""Of AlpaServe's placements, how many are simulated under the workload's rules."""

Form = tuple[int, int]
"""Tensor parallelism and stages."""


def model_parallel_placement(
    problem: Problem, builder: CandidateBuilder, judge: Judge, admitted: Mapping[str, float]
) -> tuple[Deployment, Evaluation] | None:
    """AlpaServe's placement at maximum clock, on all GPUs; None where a service finds no place.

    Where the goal is goodput with rejection, which AlpaServe is made for, it is the best by its own score;
    elsewhere that of its best few which attains most under the workload's rules.
    """
    site = Site(problem, builder.supplies, max_clock_menu(problem, builder))
    ranked = search_alpaserve(site, alpaserve_scorer(site, judge.seed, admitted))
    return _best(site, judge, ranked[: 1 if problem.workload.sheds_load else _JUDGED], admitted)


def selective_replication(
    problem: Problem, builder: CandidateBuilder, judge: Judge, admitted: Mapping[str, float]
) -> tuple[Deployment, Evaluation] | None:
    """Replicas on single GPUs (or the fewest that hold a model), at maximum clock, on all GPUs."""
    site = Site(problem, builder.supplies, max_clock_menu(problem, builder))
    placement = _replicas(site, alpaserve_scorer(site, judge.seed, admitted), (1, 1))
    return _best(site, judge, [] if placement is None else [placement], admitted)


def fewest_gpus_placement(
    problem: Problem, builder: CandidateBuilder, judge: Judge, clock_mhz: int
) -> tuple[Deployment, Evaluation] | None:
    """Selective replication at one clock on the fewest GPUs that hold every target; None where none do.

    Bisection: fewer GPUs of the same placement attain less. Groups are single GPUs; where
    there are generate services, pairs are tried too.
    """
    menu = {
        shape: {item.service: item for item in items if set(item.clocks_mhz) == {clock_mhz}}
        for shape, items in _by_shape(problem, builder).items()
    }
    menu = {shape: by_name for shape, by_name in menu.items() if by_name}
    if not menu:
        return None
    scorer = alpaserve_scorer(Site(problem, builder.supplies, menu), judge.seed, {})
    best: tuple[Deployment, Evaluation] | None = None
    generates = any(service.request_kind == "generate" for service in problem.services)
    for form in ((1, 1), (2, 1)) if generates else ((1, 1),):
        low, high = 0, problem.workload.fleet.num_gpus + 1
        while high - low > 1:
            middle = (low + high) // 2 if low or high <= problem.workload.fleet.num_gpus else high - 1
            site = Site(problem, _part(builder.supplies, middle), menu)
            placement = _replicas(site, scorer, form)
            deployment = None if placement is None else _deployment(site, placement, {})
            evaluation = None if deployment is None else judge.evaluate(deployment, stop_early=True)
            if deployment is None or evaluation is None or not evaluation.holds():
                low = middle
                continue
            high = middle
            if best is None or evaluation.power_w < best[1].power_w:
                best = deployment, evaluation
    return best


def max_clock_menu(problem: Problem, builder: CandidateBuilder) -> Menu:
    """Estimates of every service on every shape, all stages at the highest clock that it can have."""
    return _menu(_by_shape(problem, builder), math.inf)


def capped_menu(problem: Problem, builder: CandidateBuilder) -> Menu:
    """Estimates at maximum clock; under caps on nodes or fleet at the highest that all GPUs may run at.

    Empty where the lowest clock exceeds a cap.
    """
    by_shape = _by_shape(problem, builder)
    clocks = {estimate.clocks_mhz[0] for items in by_shape.values() for estimate in items}
    menus = (_menu(by_shape, clock) for clock in sorted(clocks, reverse=True))
    return next((menu for menu in menus if _within_caps(problem, builder.supplies, menu)), {})


def alpaserve_scorer(site: Site, seed: int, admitted: Mapping[str, float]) -> CountingScorer | None:
    """Scores placements under AlpaServe's rules on its one training trace; None without forward services."""
    if all(site.generates):
        return None
    training = Training(seed=seed, num_traces=1, num_requests=TRAINING_REQUESTS, admitted=admitted)
    return CountingScorer(site, alpaserve_rules(site.problem.workload.serving), training)


def _menu(by_shape: Mapping[Shape, Sequence[Estimate]], highest_mhz: float) -> Menu:
    """The estimate of every service on every shape at its highest clock up to a limit."""
    allowed = {
        shape: [item for item in items if item.clocks_mhz[0] <= highest_mhz]
        for shape, items in by_shape.items()
    }
    return {
        shape: {
            name: max(
                (item for item in items if item.service == name),
                key=lambda item: (item.clocks_mhz[0], -item.bottleneck_s),
            )
            for name in sorted({item.service for item in items})
        }
        for shape, items in allowed.items()
        if items
    }


def _within_caps(problem: Problem, supplies: Sequence[PoolSupply], menu: Menu) -> bool:
    """Whether all GPUs that may be used can be at their peak at once."""
    total_w = 0.0
    for supply in supplies:
        mine = [
            item for shape, by_name in menu.items() if shape.pool == supply.name for item in by_name.values()
        ]
        peak_w = max((max(item.peak_w) for item in mine), default=supply.parked_w)
        if supply.gpus_per_node * peak_w > supply.node_power_cap_w:
            return False
        total_w += supply.num_free * peak_w + (supply.num_gpus - supply.num_free) * supply.parked_w
    cap_w = problem.workload.fleet.power_cap_w
    return cap_w is None or total_w <= cap_w


def _by_shape(problem: Problem, builder: CandidateBuilder) -> dict[Shape, list[Estimate]]:
    """Estimates under one clock, contiguous partitions, by shape."""
    pooled = {service.name: float(problem.workload.fleet.num_gpus) for service in problem.services}
    found: dict[Shape, list[Estimate]] = {}
    for estimate in (*builder.forward_estimates, *builder.generate_estimates(pooled)):
        if len(set(estimate.clocks_mhz)) == 1 and not estimate.is_grouped:
            found.setdefault(estimate.shape, []).append(estimate)
    return found


def _part(supplies: Sequence[PoolSupply], num_gpus: int) -> list[PoolSupply]:
    """``num_gpus`` of those that may be used, of every pool in proportion (rounded up), node by node."""
    total = sum(supply.num_free for supply in supplies)
    parts = []
    for supply in supplies:
        left, free = -(-supply.num_free * num_gpus // total), []
        for node in supply.free_per_node:
            free.append(min(node, left))
            left -= free[-1]
        parts.append(replace(supply, free_per_node=tuple(free)))
    return parts


def _best(
    site: Site, judge: Judge, placements: Sequence[Ranked | Placement], admitted: Mapping[str, float]
) -> tuple[Deployment, Evaluation] | None:
    """The placement that attains most on the judge's training traces; of equals that of least power."""
    best: tuple[Deployment, Evaluation] | None = None
    for item in placements:
        deployment = _deployment(site, item.placement if isinstance(item, Ranked) else item, admitted)
        if deployment is None:
            continue
        evaluation = judge.evaluate(deployment)
        if best is None or (evaluation.worst, -evaluation.power_w) > (best[1].worst, -best[1].power_w):
            best = deployment, evaluation
    return best


def _deployment(site: Site, placement: Placement, admitted: Mapping[str, float]) -> Deployment | None:
    return site.deployment(placement, admitted, site.problem.workload.serving)


def _replicas(site: Site, scorer: Scorer | None, base: Form) -> Placement | None:
    """Replicas on groups of a form, or of the smallest that a service needs; None where one finds no place.

    GPUs go to the services that need larger groups in proportion to their number, at least one group.
    """
    wanted: dict[tuple[Form, bool], list[int]] = {}
    for service in range(site.num_services):
        form = _form_of(site, service, base)
        if form is not None:
            wanted.setdefault((form, site.generates[service]), []).append(service)
    placement: list[Host] = []
    left = {supply.name: supply.num_free for supply in site.supplies}
    by_size = sorted(wanted.items(), key=lambda item: (-item[0][0][0] * item[0][0][1], item[0][1]))
    for index, ((form, generates), services) in enumerate(by_size):
        size, is_last = form[0] * form[1], index == len(by_size) - 1
        hosts: list[Host] = []
        for supply in site.supplies:
            share = max(size, int(len(services) / site.num_services * supply.num_free) // size * size)
            num_gpus = left[supply.name] if is_last else min(share, left[supply.name])
            hosts += [
                host
                for host in cut_pool(site, supply.name, num_gpus, form)
                if host.shape in _shapes(site, form)
            ]
            left[supply.name] -= num_gpus // size * size
        assess = estimated_need(site) if generates or scorer is None else simulated_need(site, scorer)
        placement += replicate(site, tuple(hosts), services, assess)
    hosted = {service for host in placement for service in host.services}
    return tuple(placement) if len(hosted) == site.num_services else None


def _shapes(site: Site, form: Form) -> set[int]:
    return {
        number
        for number, shape in enumerate(site.shapes)
        if (shape.tensor_parallel, shape.num_stages) == form
    }


def _form_of(site: Site, service: int, base: Form) -> Form | None:
    """The form of groups for a service: the base where it can be on it, else the smallest, without stages."""
    able = [
        (shape.tensor_parallel, shape.num_stages)
        for shape, estimates in zip(site.shapes, site.estimates, strict=True)
        if service in estimates
    ]
    if base in able:
        return base
    return min(able, key=lambda form: (form[1] > 1, form[0] * form[1], form[1]), default=None)
