"""The baseline panel: what every plan is held against, under the same simulator and traces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from muplan.plan import Baseline, Deployment, Prediction
from muplan.planning.baselines.oracle import oracle_power_w
from muplan.planning.baselines.placement import (
    fewest_gpus_placement,
    model_parallel_placement,
    selective_replication,
)
from muplan.planning.guard.levels import GuardState
from muplan.planning.search.descent import descend
from muplan.planning.search.evaluation import Evaluation, Judge
from muplan.planning.search.search import Search
from muplan.planning.search.tuning import Trial, make_model, merit, tune
from muplan.planning.solvers.greedy import solve_greedy
from muplan.planning.stated.candidates import KeepClocks
from muplan.planning.stated.model import Solution
from muplan.problem.problem import Problem
from muplan.workload import Goal

_ROUNDS_PER_CLOCK = 2
_CLOCKS_TUNED = 3
"""Uniform clocks that are searched in full: those with the least modelled power."""


def baseline_panel(
    search: Search, deployment: Deployment, prediction: Prediction, uniform: Uniform | None
) -> tuple[Baseline, ...]:
    """The five rows: maximum clock twice, best uniform clock, the per-operator oracle, and the plan."""
    problem, judge = search.problem, search.judge
    admitted = {service.name: deployment.admitted.get(service.name, 1.0) for service in problem.services}
    parallel = model_parallel_placement(problem, search.builder, judge, admitted)
    replicated = selective_replication(problem, search.builder, judge, admitted)
    plan_w = prediction.power_w.mean
    clock = f": {uniform.clock_mhz} MHz" if uniform else ""
    return (
        _row(
            "max-clock",
            "AlpaServe-style placement at maximum clock: the group shape that attains most; every GPU loaded",
            judge,
            parallel[0] if parallel else None,
            plan_w,
        ),
        _row(
            "max-clock-replication",
            "selective replication at maximum clock: no model parallelism where a GPU holds the model;"
            " every GPU loaded",
            judge,
            replicated[0] if replicated else None,
            plan_w,
        ),
        _row(
            "uniform-clock",
            f"the same planner with one clock for the whole fleet, parking allowed{clock}",
            judge,
            uniform.deployment if uniform else None,
            plan_w,
        ),
        _oracle_row(problem, admitted, plan_w),
        _plan_row(judge, deployment, prediction),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """The best deployment under one clock, and the trial it comes from (none: a placement)."""

    clock_mhz: int
    trial: Trial | None
    deployment: Deployment
    evaluation: Evaluation


def best_uniform_clock(search: Search, guard: GuardState) -> Uniform | None:
    """The deployment of least power that runs the whole fleet at one clock; None where none holds.

    Parameters
    ----------
    guard
        Where to start: what simulation has taught so far.
    """
    ranked: list[tuple[float, float, int]] = []
    clocks = sorted({clock for pool in _clocks(search) for clock in pool})
    for clock in clocks:
        model = make_model(search.problem, search.builder, guard, _only(clock))
        solution = solve_greedy(model, time_limit_s=search.time_limit_s, seed=search.seed)
        if solution.found:
            ranked.append((-_goodput(solution), solution.power_w, clock))
    chosen = [clock for _, _, clock in sorted(ranked)[:_CLOCKS_TUNED]] or clocks[-_CLOCKS_TUNED:]
    found = [uniform for clock in chosen if (uniform := _tuned(search, guard, clock)) is not None]
    return min(found, key=lambda uniform: merit(uniform.evaluation, search.goal), default=None)


def _tuned(search: Search, guard: GuardState, clock: int) -> Uniform | None:
    """The better of the tuned solution and the placement on the fewest GPUs."""
    trial = tune(search, guard=guard, rounds=_ROUNDS_PER_CLOCK, keep=_only(clock)).best(search.goal)
    found: list[Uniform] = []
    if trial is not None:
        deployment, evaluation = descend(
            search,
            trial.deployment,
            trial.evaluation,
            max_evaluations=search.max_evaluations // 4,
            lower_clocks=False,
        )
        found.append(Uniform(clock_mhz=clock, trial=trial, deployment=deployment, evaluation=evaluation))
    if search.goal is Goal.POWER and search.problem.workload.fleet.power_cap_w is None:
        placed = fewest_gpus_placement(search.problem, search.builder, search.judge, clock)
        if placed is not None:
            found.append(Uniform(clock_mhz=clock, trial=None, deployment=placed[0], evaluation=placed[1]))
    return min(found, key=lambda uniform: merit(uniform.evaluation, search.goal), default=None)


def _goodput(solution: Solution) -> float:
    return round(sum(sum(use.rates_rps) for use in solution.uses), 6)


def _only(clock: int) -> KeepClocks:
    def keep(clocks_mhz: tuple[int, ...]) -> bool:
        return set(clocks_mhz) == {clock}

    return keep


def _clocks(search: Search) -> list[set[int]]:
    """Clocks of every pool; a fleet of several device types shares only the clocks they have in common."""
    return [
        {clock for service in search.problem.services for clock in service.profiles[pool.name].clocks_mhz}
        & set(search.problem.devices[pool.name].usable_clocks_mhz)
        for pool in search.problem.pools
    ]


def _row(name: str, description: str, judge: Judge, deployment: Deployment | None, plan_w: float) -> Baseline:
    if deployment is None:
        return Baseline(name=name, description=f"{description} (finds no deployment)", meets_targets=False)
    prediction = judge.predict(deployment)
    row = _plan_row(judge, deployment, prediction)
    saving = prediction.power_w.mean / plan_w
    return row.model_copy(
        update={"name": name, "description": description, "saving": saving, "deployment": deployment}
    )


def _plan_row(judge: Judge, deployment: Deployment, prediction: Prediction) -> Baseline:
    return Baseline(
        name="plan",
        description="this plan",
        power_w=prediction.power_w.mean,
        attainment=min(item.attainment.mean for item in prediction.services),
        meets_targets=judge.meets_targets(deployment, prediction),
        energy_per_request_j=prediction.energy_per_request_j,
        saving=1.0,
    )


def _oracle_row(problem: Problem, admitted: Mapping[str, float], plan_w: float) -> Baseline:
    rates = {service.name: service.rate_rps * admitted[service.name] for service in problem.services}
    scaled = replace(
        problem,
        services=tuple(replace(service, rate_rps=rates[service.name]) for service in problem.services),
    )
    power_w = oracle_power_w(scaled)
    total = sum(rates.values())
    return Baseline(
        name="per-operator-oracle",
        description="a bound, modelled, not a deployment: every operator cluster at its own best clock and"
        " batch, no idle power beyond parked GPUs",
        power_w=power_w,
        energy_per_request_j=power_w / total if total else None,
        saving=power_w / plan_w,
        is_bound=True,
    )
