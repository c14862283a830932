"""Planning methods by name: each does what its line says."""

from __future__ import annotations

import pytest

from muplan.plan import Deployment
from muplan.planning.methods.catalog import METHODS
from muplan.planning.methods.name import DESCRIPTIONS, MethodName
from muplan.planning.search.progress import Step
from muplan.planning.solve import Planned, Refused, solve
from muplan.problem.problem import Problem
from muplan.verify.constraints import check_placement, demand_served
from muplan.workload import Goal
from tests.test_planning_solve import two_services

HELD_AGAINST = (MethodName.UNIFORM_CLOCK, MethodName.ALPASERVE, MethodName.REPLICATE)


def clocks_mhz(deployment: Deployment) -> set[int]:
    return {stage.clock_mhz for group in deployment.groups for stage in group.stages}


def planned(problem: Problem, method: MethodName) -> Planned:
    result = solve(problem, solver=method, with_baselines=False)
    assert isinstance(result, Planned)
    return result


@pytest.fixture(scope="module")
def plans() -> dict[MethodName, Planned]:
    """Plans of two light services by every method."""
    return {name: planned(two_services(), name) for name in METHODS}


def test_every_method_has_a_name_and_a_line() -> None:
    """If it fails, `--solver` offers what there is not, or hides what there is."""
    assert list(METHODS) == list(MethodName) == list(DESCRIPTIONS)


def test_every_plan_keeps_the_constraints_and_its_targets(plans: dict[MethodName, Planned]) -> None:
    """If it fails, some method makes plans that `verify` refuses."""
    problem = two_services()
    for name, plan in plans.items():
        broken = [*check_placement(problem, plan.deployment), *demand_served(problem, plan.deployment)]
        assert broken == [], name
        assert all(item.attainment.mean >= item.target for item in plan.prediction.services), name


def test_one_clock_is_one_clock(plans: dict[MethodName, Planned]) -> None:
    """If it fails, the honest baseline is not what it is called."""
    assert len(clocks_mhz(plans[MethodName.UNIFORM_CLOCK].deployment)) == 1


@pytest.mark.parametrize("name", [MethodName.ALPASERVE, MethodName.REPLICATE])
def test_placements_at_maximum_clock_load_every_gpu(
    plans: dict[MethodName, Planned], name: MethodName
) -> None:
    """If it fails, a baseline parks or slows GPUs, which its authors' planner cannot."""
    assert clocks_mhz(plans[name].deployment) == {1530}
    assert plans[name].parked == ()


def test_replication_cuts_no_model_that_a_gpu_holds(plans: dict[MethodName, Planned]) -> None:
    """If it fails, selective replication uses model parallelism where it need not."""
    assert all(len(group.gpus) == 1 for group in plans[MethodName.REPLICATE].deployment.groups)


def test_exact_costs_least(plans: dict[MethodName, Planned]) -> None:
    """If it fails, a method that knows less finds a cheaper deployment than the exact one.

    A tenth of a percent is left to the simulated search, which none of them drives to its end.
    """
    power_w = {name: plan.prediction.power_w.mean for name, plan in plans.items()}
    for name in (MethodName.GREEDY, *HELD_AGAINST):
        assert power_w[MethodName.EXACT] <= 1.001 * power_w[name], name
    assert power_w[MethodName.UNIFORM_CLOCK] < power_w[MethodName.ALPASERVE]


@pytest.mark.parametrize("name", HELD_AGAINST)
def test_a_method_without_a_model_is_held_against_the_oracle(
    plans: dict[MethodName, Planned], name: MethodName
) -> None:
    """If it fails, a simulated power is sold as the optimum of a model, or without a bound."""
    solution = plans[name].solution
    (power,) = solution.achieved
    assert solution.solver == name
    assert power.bound < power.value
    assert power.gap == pytest.approx((power.value - power.bound) / power.value)


def test_whoever_watches_changes_nothing(plans: dict[MethodName, Planned]) -> None:
    """If it fails, a terminal shows nothing, counts past its totals, or a plan depends on being watched."""
    steps: list[Step] = []
    assert solve(two_services(), with_baselines=False, report=steps.append) == plans[MethodName.EXACT]
    phases = [step.phase for step in steps]
    assert phases[:3] == ["building candidates", "solving", "solving"]
    assert {"simulating", "lowering", "judging", "explaining"} <= set(phases)
    assert all(0 <= step.number <= step.total for step in steps)
    known = [step.solver for step in steps if step.solver is not None]
    assert known
    assert all(progress.bound <= progress.incumbent * (1 + 1e-9) for progress in known)


def test_a_method_that_falls_short_says_by_how_much() -> None:
    """If it fails, a placement that misses its targets is sold as a plan, or refused without a reason."""
    result = solve(two_services(num_gpus=2, scale=1.9), solver=MethodName.REPLICATE)
    assert isinstance(result, Refused)
    assert "in the deployment of replicate, its target is 99.00%" in result.conflict.sets[0].demands[0].text
    assert result.conflict.sets[0].text == "Let another method plan: --solver exact."


def test_placements_admit_what_holds() -> None:
    """If it fails, a placement of an overloaded fleet serves everybody late instead of some in time."""
    plan = planned(two_services(num_gpus=2, scale=4.0, objective=Goal.GOODPUT), MethodName.REPLICATE)
    shares = set(plan.deployment.admitted.values())
    assert len(shares) == 1
    assert 0.1 < shares.pop() < 0.9
    assert plan.solution.achieved[0].bound == pytest.approx(4.0 * (20.0 + 25.0))
