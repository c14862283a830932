"""Tuning: solve, simulate on training traces, correct the guard, solve again.

A service that falls short gets less utilisation, one with room more, each by bisection on its
correction. The best deployment that holds with confidence is then lowered step by step under
simulation (`muplan.planning.search.descent`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from muplan.plan import Deployment, Interval, Status
from muplan.planning.deploy import deploy
from muplan.planning.guard.levels import GuardState
from muplan.planning.search.evaluation import Evaluation
from muplan.planning.search.search import Search
from muplan.planning.search.widening import thinned, widen
from muplan.planning.stated.candidates import CandidateBuilder, KeepClocks
from muplan.planning.stated.model import PlanningModel, Solution
from muplan.planning.stated.rates import spread_rates
from muplan.problem.problem import Problem
from muplan.workload import Goal, Routing

_FIRST_UTILISATION = 0.5
_FIRST_STEP = 1.35
_LAST_STEP = 1.03
_MOST_POOLED = 16.0
"""GPUs over which requests count as pooled at most: those that many services share pool less."""
_POOLING_ROUNDS, _SETTLING_ROUNDS = 3, 2
"""Rounds in which the guard follows the pooling of the solutions, and last rounds in which it settles."""

_PLACINGS, _LESS_POWER = 6, 0.05
"""Attempts at an assignment of GPUs, and what each takes away of the power that the caps of nodes leave."""

_CORRECTIONS = (0.02, 40.0)
_COMFORT = 0.25
"""Part of the allowed misses that must be left over before a service's utilisation is raised."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A deployment that was simulated, and where it came from."""

    deployment: Deployment
    evaluation: Evaluation
    solution: Solution
    model: PlanningModel
    guard: GuardState


@dataclass(slots=True, kw_only=True)
class Tuning:
    """All trials of one search, in the order in which they were made."""

    last_guard: GuardState
    trials: list[Trial] = field(default_factory=list)
    unsolved: Solution | None = None
    """The last answer of a solver that found nothing."""
    unplaced: bool = False
    """Whether a solution was found that no assignment of GPUs carries out."""

    def best(self, goals: Sequence[Goal]) -> Trial | None:
        """The best trial that holds with confidence, by goals in order."""
        holding = [trial for trial in self.trials if trial.evaluation.holds()]
        return min(holding, key=lambda trial: merit(trial.evaluation, goals), default=None)

    def learnt(self, goals: Sequence[Goal]) -> GuardState:
        """The guard state of the best trial, or the last one."""
        best = self.best(goals)
        return self.last_guard if best is None else best.guard


def merit(evaluation: Evaluation, goals: Sequence[Goal]) -> tuple[float, ...]:
    """What is minimised among deployments that hold, by goals in order; goodput counts to a thousandth."""
    figures = {
        Goal.POWER: evaluation.power_w,
        Goal.GOODPUT: -float(f"{evaluation.goodput_rps:.3g}"),
        Goal.ENERGY_PER_REQUEST: evaluation.energy_per_request_j,
    }
    return tuple(figures[goal] for goal in goals)


def make_model(
    problem: Problem, builder: CandidateBuilder, guard: GuardState, keep: KeepClocks | None = None
) -> PlanningModel:
    """The planning model of a problem under a guard state, restricted to the clocks to ``keep``."""
    rules, cap_w = builder.rules, problem.workload.fleet.power_cap_w
    return PlanningModel(
        rates_rps={service.name: service.rate_rps for service in problem.services},
        pools=builder.zone_supplies,
        group_types=builder.group_types(guard, capped=rules.caps_sums, keep=keep),
        power_cap_w=math.inf if cap_w is None else cap_w,
        goals=tuple(goal for goal in problem.workload.goals if goal is not Goal.RATE),
        min_replicas=rules.least,
        max_replicas={name: rules.num_homes(name) for name in sorted(rules.apart)},
    )


def first_guard(problem: Problem, builder: CandidateBuilder) -> GuardState:
    """The guard before any simulation: closed forms as they are, pooled over the GPUs a plan may need."""
    fleet = float(problem.workload.fleet.num_gpus)
    num_gpus = min(fleet, _MOST_POOLED, max(1.0, builder.offered_gpus() / _FIRST_UTILISATION))
    return GuardState(
        corrections={service.name: 1.0 for service in problem.services},
        pooled_gpus={service.name: num_gpus for service in problem.services},
    )


def tune(search: Search, *, guard: GuardState, rounds: int, keep: KeepClocks | None = None) -> Tuning:
    """Solve and simulate in turn, at most ``rounds`` times.

    Parameters
    ----------
    guard
        Where to start.
    keep
        Which clocks to offer; all where absent.
    """
    tuning = Tuning(last_guard=guard)
    brackets = {service.name: _Bracket() for service in search.problem.services}
    for number in range(rounds):
        tuning.last_guard = guard
        model = make_model(search.problem, search.builder, guard, keep)
        solution = search.solved(model, number=number + 1, total=rounds)
        if not solution.found:
            tuning.unsolved = solution
            raised = _raised(guard, brackets)
            if raised is None:
                break
            guard = raised
            continue
        placed = place(search, model, solution)
        if placed is None:
            tuning.unplaced = True
            break
        search.tell("simulating", number=number + 1, total=rounds)
        trial = _simulated(search, model, placed, guard)
        tuning.trials.append(trial)
        settling = number >= rounds - _SETTLING_ROUNDS
        pooling = number < _POOLING_ROUNDS and not settling
        found = _corrected(search.problem, trial, brackets, pooling=pooling, settling=settling)
        if found == guard:
            break
        guard = found
    return tuning


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A solution with the deployment that carries it out."""

    solution: Solution
    deployment: Deployment


def place(search: Search, model: PlanningModel, solution: Solution) -> Placed | None:
    """Deploy a solution; None where no assignment of GPUs is found.

    The stated model keeps the limits of nodes only in sum. Where no assignment carries a solution out, the
    model is solved again with less, a few times. Bounds stay those of the model as it is stated.
    """
    found, tighter = solution, model
    for _ in range(_PLACINGS):
        spread = replace(found, uses=spread_rates(tighter, thinned(found.uses, model.min_replicas)))
        deployment = deploy(search.problem, spread, search.builder.rules)
        if deployment is not None:
            return Placed(solution=_bounded_by(solution, found), deployment=deployment)
        tighter = tightened(tighter)
        found = search.solved(tighter)
        if not found.found:
            break
    return None


def tightened(model: PlanningModel) -> PlanningModel:
    """The model with less of what nodes limit: power under a cap on nodes, and else a GPU of every pool."""
    taken = dict(model.taken)
    for pool in model.pools:
        is_capped = math.isfinite(pool.node_power_cap_w)
        name = f"node_power_cap_{pool.name}" if is_capped else f"gpus_available_{pool.name}_1"
        taken[name] = taken.get(name, 0.0) + (_LESS_POWER * pool.spare_node_power_w if is_capped else 1.0)
    return replace(model, taken=taken)


def _bounded_by(stated: Solution, found: Solution) -> Solution:
    """A solution of a tighter model as one of the model that is stated, whose first bound it takes over."""
    if found is stated:
        return found
    first = replace(found.achieved[0], bound=stated.achieved[0].bound)
    return replace(found, status=Status.FEASIBLE, achieved=(first,))


def _simulated(search: Search, model: PlanningModel, placed: Placed, guard: GuardState) -> Trial:
    """Simulate the deployment of a solution, widened, on the training traces."""
    deployment, solution = placed.deployment, placed.solution
    if search.problem.workload.serving.routing is not Routing.ROUND_ROBIN:  # which sends by shares alone
        for service in search.problem.services:
            deployment = widen(search.problem, search.builder, deployment, service.name) or deployment
    return Trial(
        deployment=deployment,
        evaluation=search.judge.evaluate(deployment),
        solution=solution,
        model=model,
        guard=guard,
    )


def _corrected(
    problem: Problem, trial: Trial, brackets: Mapping[str, _Bracket], *, pooling: bool, settling: bool
) -> GuardState:
    """The guard state after a trial.

    ``pooling`` follows that of the trial. ``settling`` lets no service have more while some fall short: what
    one is given, those that share its groups lose.
    """
    before = trial.guard
    now = pooled_gpus(problem, trial.deployment)
    corrections = {
        service.name: brackets[service.name].next(
            before.corrections[service.name],
            trial.evaluation.margins[service.name],
            1.0 - service.attainment,
        )
        for service in problem.services
    }
    if settling and any(margin.low < 0.0 for margin in trial.evaluation.margins.values()):
        corrections = {name: min(value, before.corrections[name]) for name, value in corrections.items()}
    pooled = {
        name: math.sqrt(now[name] * gpus) if pooling else gpus for name, gpus in before.pooled_gpus.items()
    }
    return GuardState(corrections=corrections, pooled_gpus=pooled)


def pooled_gpus(problem: Problem, deployment: Deployment) -> dict[str, float]:
    """GPUs whose groups host each service; at least one, at most `_MOST_POOLED`."""
    pooled = {service.name: 0.0 for service in problem.services}
    for group in deployment.groups:
        for replica in group.replicas:
            pooled[replica.service] += len(group.gpus)
    return {name: min(max(1.0, num_gpus), _MOST_POOLED) for name, num_gpus in pooled.items()}


@dataclass(slots=True)
class _Bracket:
    """The corrections of one service between which the right one lies, and the present step."""

    good: float = 0.0
    short: float = math.inf
    step: float = _FIRST_STEP

    def next(self, correction: float, margin: Interval, allowed_misses: float) -> float:
        """The next correction to try, given how a service fared under this one."""
        if margin.low < 0.0:
            self.short = correction
            if self.good >= correction:
                self.good = 0.0
            severe = margin.mean < -3.0 * allowed_misses
            return self._between(correction, 1.0 / (self.step**2 if severe else self.step))
        self.good = max(self.good, correction)
        if self.short <= correction:
            self.short = math.inf
        if margin.low < _COMFORT * allowed_misses:
            return correction
        return self._between(correction, self.step)

    def _between(self, correction: float, factor: float) -> float:
        if self.good > 0.0 and self.short < math.inf:
            self.step = max(math.sqrt(self.step), _LAST_STEP)
            return math.sqrt(self.good * self.short)
        return min(max(correction * factor, _CORRECTIONS[0]), _CORRECTIONS[1])


def _raised(guard: GuardState, brackets: Mapping[str, _Bracket]) -> GuardState | None:
    """All corrections raised after a solver found nothing; None at the top.

    Where some service is known to fall short, raising again would lead back there.
    """
    if all(value >= _CORRECTIONS[1] for value in guard.corrections.values()):
        return None
    corrections = {
        name: (
            math.sqrt(value * brackets[name].short)
            if brackets[name].short < math.inf
            else min(value * _FIRST_STEP**3, _CORRECTIONS[1])
        )
        for name, value in guard.corrections.items()
    }
    return GuardState(corrections=corrections, pooled_gpus=guard.pooled_gpus)
