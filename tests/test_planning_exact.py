"""The solvers against brute force."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from muplan.plan import Status
from muplan.planning.explain.feasibility import Answer, can_serve
from muplan.planning.solvers.exact import solve_exact
from muplan.planning.solvers.greedy import solve_greedy
from muplan.planning.solvers.restricted import program_text
from muplan.planning.stated.model import (
    Form,
    GroupType,
    Hosting,
    PlanningModel,
    PoolSupply,
    Solution,
    power_of,
    served_rps,
)
from muplan.workload import Goal
from tests.tiny_models import KINDS, brute_force_power, every_configuration, model_of_kind, random_model

SEEDS = range(350)


def check(model: PlanningModel, solution: Solution) -> None:
    """Every constraint of the stated model holds, recomputed from its definition."""
    for use in solution.uses:
        needed = sum(
            rate * hosting.occupancy_s / use.configuration.utilisation
            for hosting, rate in zip(use.configuration.hostings, use.rates_rps, strict=True)
        )
        assert needed <= use.count * (1 + 1e-6)
        assert min(use.rates_rps) >= 0
    for name, rate in model.rates_rps.items():
        served = served_rps(solution.uses, name)
        if model.goal is Goal.POWER:
            assert served == pytest.approx(rate, rel=1e-6)
        else:
            assert served <= rate * (1 + 1e-6)
    peak_w = model.parked_w
    for pool in model.pools:
        mine = [use for use in solution.uses if use.configuration.pool == pool.name]
        assert sum(use.count * use.configuration.num_gpus for use in mine) <= pool.num_gpus
        above_w = sum(
            use.count * (use.configuration.peak_w - use.configuration.num_gpus * pool.parked_w)
            for use in mine
        )
        assert pool.num_gpus * pool.parked_w + above_w <= pool.node_power_cap_w * (1 + 1e-9)
        peak_w += above_w
    assert peak_w <= model.power_cap_w * (1 + 1e-9)
    for service, least in model.min_replicas.items():
        assert sum(use.count for use in solution.uses if service in use.configuration.services) >= least
    for service, most in model.max_replicas.items():
        assert sum(use.count for use in solution.uses if service in use.configuration.services) <= most
    assert solution.power_w == pytest.approx(power_of(model, solution.uses))


@pytest.mark.parametrize("seed", SEEDS)
def test_exact_equals_brute_force(seed: int) -> None:
    """If it fails, the programme is not the stated model, or its solution is no optimum of it.

    And if the question of feasibility alone has another answer, conflicts are not those of the model.
    """
    _, model = model_of_kind(seed)
    expected = brute_force_power(model)
    solution = solve_exact(model, time_limit_s=60, seed=0)
    if math.isinf(expected):
        assert solution.status is Status.INFEASIBLE
        assert can_serve(model) is Answer.INFEASIBLE
        return
    assert solution.status is Status.OPTIMAL
    assert solution.objective == pytest.approx(expected, rel=2e-4)
    assert solution.bound <= expected * (1 + 1e-9)
    check(model, solution)
    assert can_serve(model) is Answer.FEASIBLE


def test_brute_force_sees_both_answers_of_every_kind() -> None:
    """If it fails, the comparison above proves nothing about feasible, or about infeasible, models."""
    answers: dict[str, set[bool]] = {kind: set() for kind in KINDS}
    for seed in SEEDS[:70]:
        kind, model = model_of_kind(seed)
        answers[kind].add(math.isinf(brute_force_power(model)))
    assert all(seen == {True, False} for seen in answers.values()), answers


@pytest.mark.parametrize("seed", range(20))
def test_greedy_is_feasible_and_not_below_the_optimum(seed: int) -> None:
    """If it fails, the greedy solver breaks a constraint or its bound is none."""
    model = random_model(seed, capped=seed % 3 == 0)
    greedy = solve_greedy(model, time_limit_s=60, seed=0)
    exact = solve_exact(model, time_limit_s=60, seed=0)
    if not greedy.found:
        return
    assert exact.found
    check(model, greedy)
    assert greedy.objective >= exact.objective * (1 - 2e-4)
    assert greedy.bound <= exact.objective * (1 + 1e-9)


def test_greedy_finds_most_of_what_exists_and_is_near_it() -> None:
    """If it fails, the greedy solver is no use as a first incumbent."""
    gaps = []
    missed = 0
    for seed in range(25):
        model = random_model(seed)
        exact = solve_exact(model, time_limit_s=60, seed=0)
        greedy = solve_greedy(model, time_limit_s=60, seed=0)
        if exact.found and greedy.found:
            gaps.append(greedy.objective / exact.objective - 1)
        elif exact.found:
            missed += 1
    assert missed <= 1
    assert np.mean(gaps) <= 0.01


@pytest.mark.parametrize("seed", range(10))
def test_goodput_serves_as_much_as_any_power_plan_under_the_cap(seed: int) -> None:
    """If it fails, goodput under a cap is not maximised, or costs more power than it needs."""
    model = random_model(seed, goal=Goal.GOODPUT, capped=True)
    solution = solve_exact(model, time_limit_s=60, seed=0)
    assert solution.status is Status.OPTIMAL
    check(model, solution)
    total = sum(model.rates_rps.values())
    power = solve_exact(replace(model, goals=(Goal.POWER,)), time_limit_s=60, seed=0)
    if power.found:
        assert solution.objective == pytest.approx(total, rel=2e-4)
        assert solution.power_w == pytest.approx(power.objective, rel=2e-3)
    else:
        assert solution.objective < total
        assert solution.bound < total * (1 + 1e-9)


def test_equal_seeds_give_equal_solutions() -> None:
    """If it fails, plans cannot be reproduced."""
    model = random_model(2)
    first, second = (solve_exact(model, time_limit_s=60, seed=7) for _ in range(2))
    assert first.found
    assert first == second


def test_highs_and_cbc_agree() -> None:
    """If it fails, one back end reads the programme differently."""
    for seed in range(6):
        model = random_model(seed)
        highs = solve_exact(model, time_limit_s=60, seed=0)
        cbc = solve_exact(model, time_limit_s=60, seed=0, backend="cbc")
        assert highs.status is cbc.status
        if highs.found:
            assert cbc.objective == pytest.approx(highs.objective, rel=3e-4)


def tiny_model(**changes: object) -> PlanningModel:
    """One pool of four GPUs, one service on one or on two GPUs: small enough to read its LP file."""

    def group_type(stages: int) -> GroupType:
        hosting = Hosting(
            service="alpha",
            max_batch=1,
            stage_clusters=(((0, 1),),) * stages,
            occupancy_s=0.25 / stages,
            energy_j=50.0,
            latency_s=0.25,
            weight_bytes=(1.0,) * stages,
            working_bytes=(0.0,) * stages,
            peak_w=(200.0,) * stages,
        )
        form = Form(
            pool="pool",
            tensor_parallel=1,
            clocks_mhz=(900,) * stages,
            standing_w=10.0 * stages,
            usable_bytes=1.0,
            hostings=(hosting,),
        )
        return GroupType(form=form, members=np.array([0]), utilisation=0.5)

    pool = PoolSupply(
        name="pool",
        num_gpus=4,
        gpus_per_node=4,
        free_per_node=(4,),
        parked_w=25.0,
        node_power_cap_w=500.0,
    )
    model = PlanningModel(
        rates_rps={"alpha": 3.0},
        pools=(pool,),
        group_types=(group_type(1), group_type(2)),
        power_cap_w=600.0,
        goals=(Goal.POWER,),
        min_replicas={"alpha": 2},
        max_replicas={"alpha": 3},
        goodput_floor_rps=0.5,
    )
    return replace(model, **changes)  # type: ignore[arg-type]


def tiny_text(**changes: object) -> str:
    """The LP file of the tiny model over all its configurations."""
    model = tiny_model(**changes)
    return program_text(model, every_configuration(model))


GOLDEN = {
    "demand_served": "demand_served_0_alpha: y_0_alpha + y_1_alpha <= 3\n"
    "demand_served_0_alpha_least: y_0_alpha + y_1_alpha >= 0.03",
    "goodput_kept": "goodput_kept: y_0_alpha + y_1_alpha >= 0.5",
    "rate_within_demand": "rate_within_demand_1_alpha: - 3 n_1 + y_1_alpha <= 0",
    "node_power_cap": "node_power_cap_pool: 175 n_0 + 350 n_1 <= 400\n"
    "node_power_cap_pool_1: n_1 <= 1\nnode_power_cap_pool_2: n_0 + n_1 <= 2\n"
    "node_power_cap_pool_3: n_0 + n_1 <= 3",
    "min_replicas": "min_replicas_alpha: n_0 + n_1 >= 2",
    "anti_affinity": "anti_affinity_alpha: n_0 + n_1 <= 3",
    "capacity": "capacity_0: - n_0 + 0.5 y_0_alpha <= 0\ncapacity_1: - n_1 + 0.25 y_1_alpha <= 0",
    "gpus_available": "gpus_available_pool_1: n_0 + 2 n_1 <= 4\ngpus_available_pool_2: n_1 <= 2",
    "power_cap": "power_cap: 175 n_0 + 350 n_1 <= 500",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_lp(name: str) -> None:
    """If it fails, a constraint no longer says what the mathematics page says."""
    text = tiny_text()
    rows = [line.strip() for line in text.splitlines() if line.strip().startswith(f"{name}")]
    assert "\n".join(rows) == GOLDEN[name]


def test_every_constraint_has_a_golden_row() -> None:
    """If it fails, a constraint was added that no test reads."""
    from muplan.planning.stated.constraints import CONSTRAINTS

    assert {constraint.__name__ for constraint in CONSTRAINTS} == set(GOLDEN)


def test_goodput_lets_demand_go_unserved() -> None:
    """If it fails, goodput is planned as if all demand had to be served."""
    text = tiny_text(goals=(Goal.GOODPUT,), goodput_floor_rps=0.0)
    assert "demand_served_0_alpha: y_0_alpha + y_1_alpha <= 3" in text
    assert "demand_served_0_alpha_least: y_0_alpha + y_1_alpha >= 0.03" in text
    assert text.startswith("\\* muplan *\\\nMaximize\n")


def test_no_candidates_is_infeasible() -> None:
    """If it fails, a problem without candidates crashes in a solver."""
    empty = tiny_model(group_types=())
    assert solve_exact(empty, time_limit_s=60, seed=0).status is Status.INFEASIBLE
    assert solve_greedy(empty, time_limit_s=60, seed=0).status is Status.INFEASIBLE
