"""Planning methods by name: each does what its line says."""

from __future__ import annotations

import pytest

from muplan.plan import Deployment
from muplan.planning.baselines.sensitivity import PlacementForm, SensitivityPlacement
from muplan.planning.methods.catalog import METHODS
from muplan.planning.methods.name import DESCRIPTIONS, MethodName
from muplan.planning.search.progress import Step
from muplan.planning.solve import Planned, Refused, solve
from muplan.planning.stated.candidates import CandidateBuilder
from muplan.problem.problem import Problem
from muplan.verify.constraints import check_placement, demand_served, power_cap
from muplan.workload import Goal, Serving
from tests.synthetic import ClusterShape, forward_problem, forward_profile, forward_service
from tests.test_planning_solve import QUICK, two_services

HELD_AGAINST = (MethodName.UNIFORM_CLOCK, MethodName.MU_SERVE, MethodName.ALPASERVE, MethodName.REPLICATE)


def services_of_sensitivities(values: list[float], *, num_gpus: int = 4) -> Problem:
    """Services alike but for their sensitivity, which keep 1.3 GPUs busy at maximum clock."""
    services = [
        forward_service(
            f"s{number}",
            profile=forward_profile(f"m{number}", (ClusterShape(latency_s=0.005, sensitivity=value),)),
            rate_rps=1.3 / 0.02 / len(values),
            limit_s=0.3,
        )
        for number, value in enumerate(values)
    ]
    return forward_problem(services, num_gpus=num_gpus, serving=Serving(max_batch=4), simulation=QUICK)


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


def test_like_sensitivities_share_groups() -> None:
    """If it fails, μ-Serve-style placement mixes what a clock slows differently, though it need not."""
    problem = services_of_sensitivities([0.9, 0.1, 0.85, 0.15], num_gpus=2)
    placement = SensitivityPlacement(problem, CandidateBuilder(problem))
    form = PlacementForm(tensor_parallel=1, num_stages=1, is_grouped=False)
    deployment = placement.place(form, 0)
    assert deployment is not None
    hosted = [{replica.service for replica in group.replicas} for group in deployment.groups]
    assert hosted == [{"s1", "s3"}, {"s0", "s2"}]
    assert list(demand_served(problem, deployment)) == []


def test_a_service_spreads_to_the_nearest_groups_first() -> None:
    """If it fails, replicas are added where sensitivities differ most."""
    problem = services_of_sensitivities([0.9, 0.1, 0.85, 0.15])
    placement = SensitivityPlacement(problem, CandidateBuilder(problem))
    form = PlacementForm(tensor_parallel=1, num_stages=1, is_grouped=False)
    alone, near, far = (placement.place(form, reach) for reach in (0, 1, 4))
    assert alone is not None
    assert near is not None
    assert far is not None
    numbers = [sum(len(group.replicas) for group in item.groups) for item in (alone, near, far)]
    assert numbers[0] < numbers[1] < numbers[2] == 16
    assert list(demand_served(problem, far)) == []


def test_the_least_sensitive_gpus_are_clocked_lowest() -> None:
    """If it fails, μ-Serve-style clocks are not lowered in the order of sensitivities."""
    plan = planned(services_of_sensitivities([0.95, 0.05]), MethodName.MU_SERVE)
    assert plan.parked == ()
    clock = {
        replica.service: stage.clock_mhz
        for group in plan.deployment.groups
        if len(group.replicas) == 1
        for stage in group.stages
        for replica in group.replicas
    }
    assert clock.get("s1", 0) <= clock.get("s0", 9999)


def test_a_placement_that_breaks_a_cap_is_no_plan() -> None:
    """If it fails, a placement that knows no power is sold as a plan under a cap that it breaks."""
    result = solve(two_services(power_cap_w=900.0), solver=MethodName.REPLICATE)
    assert isinstance(result, Refused)
    assert "its cap is 900 W" in result.conflict.sets[0].demands[0].text
    plan = planned(two_services(power_cap_w=900.0), MethodName.MU_SERVE)
    assert list(power_cap(two_services(power_cap_w=900.0), plan.deployment)) == []


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
    assert power_w[MethodName.MU_SERVE] < power_w[MethodName.ALPASERVE]


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
