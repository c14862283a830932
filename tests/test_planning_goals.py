"""Goals in order: energy per request, the highest common rate, and what comes after a goal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import linprog

from muplan.plan import Status
from muplan.planning.solve import Planned, solve
from muplan.planning.solvers.exact import solve_exact
from muplan.planning.solvers.goals import largest_factor
from muplan.planning.solvers.greedy import solve_greedy
from muplan.planning.stated.model import LEAST_ADMITTED, PlanningModel, served_rps
from muplan.planning.stated.rates import Groups
from muplan.workload import Goal
from tests.test_planning_solve import two_services
from tests.tiny_models import choices as every_choice
from tests.tiny_models import every_configuration, random_model

SEEDS = range(12)


def choices(model: PlanningModel) -> list[list[Groups]]:
    """Every choice of groups that fits the GPUs and the cap."""
    return [chosen for chosen in every_choice(model, every_configuration(model)) if chosen]


def programme(model: PlanningModel, chosen: Sequence[Groups]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energies, rows of the demand and rows of the capacity, over the rates of given groups."""
    columns = [(place, item) for place, (one, _) in enumerate(chosen) for item in one.hostings]
    energy = np.array([item.energy_j for _, item in columns])
    served = np.array([[float(item.service == name) for _, item in columns] for name in model.rates_rps])
    load = np.zeros((len(chosen), len(columns)))
    for column, (place, item) in enumerate(columns):
        load[place, column] = chosen[place][0].load_s(item)
    return energy, served, load


def least_ratio(model: PlanningModel, chosen: Sequence[Groups]) -> float:
    """Least energy per request on given groups: one linear programme after Charnes and Cooper (1962)."""
    energy, served, load = programme(model, chosen)
    demand = np.array(list(model.rates_rps.values()))
    counts = np.array([float(count) for _, count in chosen])
    standing_w = model.parked_w + sum(count * one.standing_w for one, count in chosen)
    num = len(energy)  # variables: rates over what is served in all, and its reciprocal t
    result = linprog(
        [*energy, standing_w],
        A_ub=np.vstack([
            np.column_stack([load, -counts]),
            np.column_stack([served, -demand]),
            np.column_stack([-served, LEAST_ADMITTED * demand]),
        ]),
        b_ub=np.zeros(len(counts) + 2 * len(demand)),
        A_eq=[[1.0] * num + [0.0]],
        b_eq=[1.0],
    )  # fmt: skip
    return math.inf if result.fun is None else float(result.fun)


def most_factor(model: PlanningModel, chosen: Sequence[Groups]) -> float:
    """The largest factor on all demands that given groups carry."""
    _, served, load = programme(model, chosen)
    demand = np.array(list(model.rates_rps.values()))
    num = load.shape[1]
    result = linprog(
        [0.0] * num + [-1.0],
        A_ub=np.column_stack([load, np.zeros(len(load))]),
        b_ub=[float(count) for _, count in chosen],
        A_eq=np.column_stack([served, -demand]),
        b_eq=np.zeros(len(demand)),
    )
    assert result.fun is not None
    return -float(result.fun)


@pytest.mark.parametrize("seed", SEEDS)
def test_energy_per_request_equals_enumeration(seed: int) -> None:
    """If it fails, Dinkelbach's iteration ends too early, or its bound is none."""
    model = random_model(seed, goal=Goal.ENERGY_PER_REQUEST, capped=seed % 3 == 0)
    expected = min(least_ratio(model, chosen) for chosen in choices(model))
    solution = solve_exact(model, time_limit_s=60, seed=0)
    (ratio,) = solution.achieved
    assert ratio.value == pytest.approx(expected, rel=3e-4)
    assert expected * (1 - 2e-3) <= ratio.bound <= expected * (1 + 1e-9)
    served = {name: served_rps(solution.uses, name) for name in model.rates_rps}
    assert ratio.value == pytest.approx(solution.power_w / sum(served.values()))
    assert all(served[name] >= LEAST_ADMITTED * rate * (1 - 1e-6) for name, rate in model.rates_rps.items())


@pytest.mark.parametrize("seed", SEEDS)
def test_highest_rate_equals_enumeration(seed: int) -> None:
    """If it fails, a fleet is said to carry more or less than it can, or its bound is none."""
    model = replace(random_model(seed, capped=seed % 3 == 0), goals=(Goal.RATE, Goal.POWER))
    expected = max((most_factor(model, chosen) for chosen in choices(model)), default=0.0)
    solution = solve_exact(model, time_limit_s=60, seed=0)
    rate, power = solution.achieved
    assert rate.value == pytest.approx(expected, rel=2e-4)
    assert expected * (1 - 1e-6) <= rate.bound <= largest_factor(model) * (1 + 1e-9)
    for name, demand in model.rates_rps.items():
        assert served_rps(solution.uses, name) == pytest.approx(rate.value * demand, rel=1e-5)
    assert power.value == pytest.approx(solution.power_w)
    assert power.bound <= power.value


@pytest.mark.parametrize("goal", [Goal.RATE, Goal.ENERGY_PER_REQUEST, Goal.GOODPUT])
def test_greedy_is_on_the_right_side_of_its_bound(goal: Goal) -> None:
    """If it fails, the greedy solver does not know a goal, or claims more than is possible."""
    for seed in range(10):
        model = replace(random_model(seed), goals=(goal,))
        exact = solve_exact(model, time_limit_s=60, seed=0)
        greedy = solve_greedy(model, time_limit_s=60, seed=0)
        sign = 1.0 if goal is Goal.ENERGY_PER_REQUEST else -1.0
        assert greedy.found
        assert sign * greedy.bound <= sign * exact.objective + 2e-4 * abs(exact.objective)
        assert sign * greedy.objective >= sign * exact.objective - 2e-4 * abs(exact.objective)


@pytest.mark.parametrize("seed", range(10))
def test_the_next_goal_is_at_the_best_of_the_one_before(seed: int) -> None:
    """If it fails, a later goal is bought with an earlier one."""
    model = replace(random_model(seed, capped=True), goals=(Goal.GOODPUT, Goal.ENERGY_PER_REQUEST))
    alone = solve_exact(replace(model, goals=(Goal.GOODPUT,)), time_limit_s=60, seed=0)
    both = solve_exact(model, time_limit_s=60, seed=0)
    most = sum(served_rps(both.uses, name) for name in model.rates_rps)
    assert most >= alone.objective * (1 - 2e-4)
    assert both.achieved[1].value == pytest.approx(both.power_w / most)


def test_no_demand_that_can_be_met_is_infeasible_for_every_goal() -> None:
    """If it fails, a goal that admits a part makes a plan of nothing."""
    model = random_model(0)
    for goal in Goal:
        empty = replace(model, group_types=(), goals=(goal,))
        assert solve_exact(empty, time_limit_s=60, seed=0).status is Status.INFEASIBLE


def test_the_highest_rate_holds_and_little_more_does_not() -> None:
    """If it fails, a rate is claimed that no simulation bears out, or one far below what the fleet can."""
    problem = two_services(num_gpus=2, objective=Goal.RATE)
    result = solve(problem, with_baselines=False)
    assert isinstance(result, Planned)
    rate, power = result.solution.achieved
    assert (rate.unit, power.unit) == ("× demand", "W")
    assert 0.8 < result.demand_factor < rate.bound * 1.2
    for item, service in zip(result.prediction.services, problem.services, strict=True):
        assert item.attainment.mean >= item.target
        assert item.rate_rps == pytest.approx(service.rate_rps * result.demand_factor, rel=0.05)
    beyond = problem.scaled(1.15 * result.demand_factor)
    assert not isinstance(solve(beyond, objective=(Goal.POWER,), with_baselines=False), Planned)


def test_least_energy_per_request_takes_less_than_serving_all() -> None:
    """If it fails, a request costs less where all are served, or the plan admits what it does not serve."""
    problem = two_services(num_gpus=4)
    least = solve(problem, objective=(Goal.ENERGY_PER_REQUEST,), with_baselines=False)
    whole = solve(problem, with_baselines=False)
    assert isinstance(least, Planned)
    assert isinstance(whole, Planned)
    assert least.prediction.energy_per_request_j <= whole.prediction.energy_per_request_j * 1.01
