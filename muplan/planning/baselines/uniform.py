"""One clock for the whole fleet: the best deployment under it, which a plan has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from muplan.plan import Deployment
from muplan.planning.baselines.placement import fewest_gpus_placement
from muplan.planning.guard.levels import GuardState
from muplan.planning.search.descent import descend
from muplan.planning.search.evaluation import Evaluation
from muplan.planning.search.search import Search
from muplan.planning.search.tuning import Trial, make_model, merit, tune
from muplan.planning.solvers.greedy import solve_greedy
from muplan.planning.stated.candidates import KeepClocks
from muplan.planning.stated.model import Solution
from muplan.workload import Goal

_ROUNDS_PER_CLOCK, _ROUNDS_IF_PART = 2, 5
"""Of solving and simulating; more where part of the demand may go unserved, as each admits other shares."""
_CLOCKS_TUNED = 3
"""Uniform clocks that are searched in full: those with the least modelled power."""


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
    ranked: list[tuple[tuple[float, ...], int]] = []
    clocks = sorted({clock for pool in _clocks(search) for clock in pool})
    for number, clock in enumerate(clocks, start=1):
        search.tell("comparing clocks", number=number, total=len(clocks))
        model = make_model(search.problem, search.builder, guard, _only(clock))
        solution = solve_greedy(model, time_limit_s=search.time_limit_s, seed=search.seed)
        if solution.found:
            ranked.append((_merit(solution), clock))
    chosen = [clock for _, clock in sorted(ranked)[:_CLOCKS_TUNED]] or clocks[-_CLOCKS_TUNED:]
    found = [
        uniform
        for clock in chosen
        if (uniform := _tuned(search.within(f"{clock} MHz"), guard, clock)) is not None
    ]
    return min(found, key=lambda uniform: merit(uniform.evaluation, search.goals), default=None)


def _tuned(search: Search, guard: GuardState, clock: int) -> Uniform | None:
    """The better of the tuned solution and the placement on the fewest GPUs."""
    rounds = _ROUNDS_IF_PART if search.problem.workload.admits_part else _ROUNDS_PER_CLOCK
    trial = tune(search, guard=guard, rounds=rounds, keep=_only(clock)).best(search.goals)
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
    if not search.problem.workload.admits_part:
        placed = fewest_gpus_placement(search.problem, search.builder, search.judge, clock)
        if placed is not None and search.builder.rules.allows(placed[0]):
            found.append(Uniform(clock_mhz=clock, trial=None, deployment=placed[0], evaluation=placed[1]))
    return min(found, key=lambda uniform: merit(uniform.evaluation, search.goals), default=None)


def _merit(solution: Solution) -> tuple[float, ...]:
    """What is minimised, by goals in order."""
    return tuple(
        -round(item.value, 6) if item.goal is Goal.GOODPUT else item.value for item in solution.achieved
    )


def _only(clock: int) -> KeepClocks:
    def keep(clocks_mhz: tuple[int, ...]) -> bool:
        return set(clocks_mhz) == {clock}

    return keep


def _clocks(search: Search) -> list[set[int]]:
    """Clocks of every pool; a fleet of several device types shares only the clocks they have in common."""
    return [
        {
            clock
            for service in search.problem.services
            if service.may_use_pool(pool.name)
            for clock in service.profiles[pool.name].clocks_mhz
        }
        & set(search.problem.clocks_mhz(pool.name))
        for pool in search.problem.pools
    ]
