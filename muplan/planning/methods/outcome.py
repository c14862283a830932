"""What a planning method makes of a search: a deployment that meets every target, or how near it came."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from muplan.plan import UNITS, Deployment, GoalSummary, Prediction, Reason, SolutionSummary, Status
from muplan.planning.baselines.oracle import oracle_energy_j, oracle_power_w
from muplan.planning.baselines.uniform import Uniform
from muplan.planning.guard.levels import GuardState
from muplan.planning.methods.name import MethodName
from muplan.planning.search.evaluation import Evaluation
from muplan.planning.search.search import Search
from muplan.planning.search.tuning import Tuning
from muplan.planning.solvers.solver import Solver
from muplan.planning.stated.model import PlanningModel
from muplan.workload import Goal


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A deployment that meets every target on the judging traces.

    Parameters
    ----------
    model
        The stated model to explain it by.
    notes
        What the method has to say of its choice.
    uniform
        The best deployment under one clock, where the method looked for it.
    guard
        What simulation taught the guard of the stated model, where there is one.
    """

    deployment: Deployment
    evaluation: Evaluation
    prediction: Prediction
    model: PlanningModel
    summary: SolutionSummary
    notes: tuple[Reason, ...] = ()
    uniform: Uniform | None = None
    guard: GuardState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A judged deployment that is no plan."""

    deployment: Deployment
    prediction: Prediction


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed:
    """No deployment that meets every target.

    Parameters
    ----------
    status
        INFEASIBLE, or TIME_LIMIT where the solver ran out of time.
    tuning
        What was tried under the stated model.
    nearest
        The deployment of a method that has only one; it falls short.
    faults
        Why that is no plan.
    """

    status: Status
    tuning: Tuning
    nearest: Attempt | None = None
    faults: tuple[Reason, ...] = ()

    @property
    def deployment(self) -> Deployment | None:
        """What falls short."""
        return self.nearest.deployment if self.nearest is not None else None

    @property
    def prediction(self) -> Prediction | None:
        """What that is expected to bring."""
        return self.nearest.prediction if self.nearest is not None else None


Outcome = Found | Missed


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A planning method: the solver of its stated models, and how it chooses a deployment."""

    solver: Solver
    choose: Callable[[Search], Outcome]


def simulated_summary(
    search: Search, solver: MethodName | str, evaluation: Evaluation, guard_rounds: int = 0
) -> SolutionSummary:
    """The summary of a deployment that solves no stated model: simulated, against `weakest_bound`."""
    figures = {
        Goal.POWER: evaluation.power_w,
        Goal.GOODPUT: evaluation.goodput_rps,
        Goal.ENERGY_PER_REQUEST: evaluation.energy_per_request_j,
    }
    return SolutionSummary(
        solver=str(solver),
        status=Status.FEASIBLE,
        achieved=tuple(
            goal_summary(goal, figures[goal], weakest_bound(search, goal)) for goal in search.goals
        ),
        seed=search.seed,
        guard_rounds=guard_rounds,
    )


def goal_summary(goal: Goal, value: float, bound: float) -> GoalSummary:
    """Value and bound of a goal, with their gap."""
    gap = abs(value - bound) / max(abs(value), 1e-12)
    return GoalSummary(goal=goal, value=value, unit=UNITS[goal], bound=bound, gap=gap)


def weakest_bound(search: Search, goal: Goal) -> float:
    """A bound that holds whatever a method found: the per-operator oracle's, or all of the demand.

    Where part of the demand may go unserved, no GPU needs to do more than be parked for the part that is.
    """
    problem = search.problem
    demand_rps = sum(service.rate_rps for service in problem.services)
    if goal is Goal.GOODPUT:
        return demand_rps
    if goal is Goal.POWER and not problem.workload.admits_part:
        return oracle_power_w(problem)
    parked_w = sum(pool.num_gpus * problem.devices[pool.name].parked_w for pool in problem.pools)
    if goal is Goal.POWER:
        return parked_w
    return parked_w / demand_rps + min(oracle_energy_j(problem, service) for service in problem.services)
