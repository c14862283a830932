"""The solvers against brute force, and the laws that every optimum obeys."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from muplan.plan import Status
from muplan.planning.solvers.exact import solve_exact
from muplan.planning.solvers.greedy import solve_greedy
from muplan.planning.solvers.restricted import program_text
from muplan.planning.stated.model import (
    Configuration,
    Form,
    GroupType,
    Hosting,
    PlanningModel,
    PoolSupply,
    Solution,
    power_of,
    served_rps,
)
from muplan.planning.stated.rates import Groups
from muplan.workload import Goal

CLOCKS_MHZ = (900, 1200, 1500)
SEEDS = range(300)


def random_model(seed: int, *, goal: Goal = Goal.POWER, capped: bool = False) -> PlanningModel:
    """Two services, three GPUs, three clocks: every set of services on one GPU, and pairs as pipelines."""
    rng = np.random.default_rng(seed)
    names = ("alpha", "beta")
    time_s = {name: float(rng.uniform(0.02, 0.2)) for name in names}
    weight = {name: float(rng.uniform(0.3, 0.6)) for name in names}
    sensitivity = {name: float(rng.uniform(0.3, 1.0)) for name in names}
    group_types = []
    for clock, stages in itertools.product(CLOCKS_MHZ, (1, 2)):
        ratio = CLOCKS_MHZ[-1] / clock
        hostings = {
            name: Hosting(
                service=name,
                max_batch=1,
                stage_clusters=(((0, 1),),) * stages,
                occupancy_s=time_s[name]
                * (1 + sensitivity[name] * (ratio - 1))
                / stages
                * (1.05 if stages > 1 else 1),
                energy_j=time_s[name] * (1 + sensitivity[name] * (ratio - 1)) * (60 + 180 * ratio**-2.5),
                latency_s=time_s[name],
                weight_bytes=(weight[name],) * stages,
                working_bytes=(0.0,) * stages,
                peak_w=(80 + 200 * ratio**-2.5,) * stages,
            )
            for name in names
        }
        form = Form(
            pool="pool",
            tensor_parallel=1,
            clocks_mhz=(clock,) * stages,
            standing_w=stages * 12.0,
            usable_bytes=1.0,
            hostings=tuple(hostings.values()),
        )
        group_types += [
            GroupType(form=form, members=np.array(members), utilisation=float(rng.uniform(0.3, 0.9)))
            for members in ((0,), (1,), (0, 1))
        ]
    pool = PoolSupply(name="pool", num_gpus=3, gpus_per_node=8, free_per_node=(3,), parked_w=25.0)
    return PlanningModel(
        rates_rps={name: float(rng.uniform(0.2, 1.2)) / time_s[name] for name in names},
        pools=(pool,),
        group_types=tuple(group_types),
        power_cap_w=float(rng.uniform(250, 800)) if capped else math.inf,
        goals=(goal, Goal.POWER) if goal is Goal.GOODPUT else (goal,),
    )


def every_configuration(model: PlanningModel) -> list[Configuration]:
    """Every set of members that fits the memory, of every group type."""
    return [
        group_type.configuration(chosen)
        for group_type in model.group_types
        for size in range(1, len(group_type.members) + 1)
        for chosen in itertools.combinations(group_type.members.tolist(), size)
        if (group_type.form.weight_bytes[list(chosen)].sum(axis=0) <= group_type.form.usable_bytes).all()
    ]


def brute_force_power(model: PlanningModel) -> float:
    """Least power over every choice of groups, infinite where none serves the demand.

    Rates of two services on given groups are a transport problem whose optimum is at a vertex: it is
    found by enumerating the share of the first service on every group's configuration at its corners.
    """
    best = math.inf
    configurations = every_configuration(model)
    for chosen in _choices(model, configurations):
        standing = sum(count * item.standing_w for item, count in chosen)
        if model.parked_w + standing + _least_conceivable(model, chosen) < best:
            best = min(best, model.parked_w + standing + _least_energy(model, chosen))
    return best


def _least_conceivable(model: PlanningModel, chosen: list[Groups]) -> float:
    """Energy if every request went where it costs least, whatever the capacity: spares hopeless choices."""
    total = 0.0
    for name, rate in model.rates_rps.items():
        energies = [
            hosting.energy_j
            for configuration, _ in chosen
            for hosting in configuration.hostings
            if hosting.service == name
        ]
        total += rate * min(energies, default=math.inf)
    return total


def _choices(model: PlanningModel, configurations: list[Configuration]) -> list[list[Groups]]:
    """Every multiset of configurations that fits the GPUs and the cap."""
    found: list[list[Groups]] = []

    def grow(index: int, gpus: int, peak_w: float, chosen: list[Groups]) -> None:
        found.append(chosen)
        for place in range(index, len(configurations)):
            configuration = configurations[place]
            above_w = configuration.peak_w - configuration.num_gpus * 25.0
            for count in range(1, gpus // configuration.num_gpus + 1):
                if peak_w + count * above_w > model.power_cap_w:
                    break
                left = gpus - count * configuration.num_gpus
                grow(place + 1, left, peak_w + count * above_w, [*chosen, (configuration, count)])

    grow(0, 3, model.parked_w, [])
    return found


def _least_energy(model: PlanningModel, chosen: list[Groups]) -> float:
    """Least energy of serving the demand on chosen groups, by enumerating the vertices of the programme.

    Unknowns are the rates; a vertex makes as many of ``rate = 0`` and ``capacity used up`` tight as
    there are unknowns beside the two demand equations.
    """
    unknowns = [
        (place, hosting)
        for place, (configuration, _) in enumerate(chosen)
        for hosting in configuration.hostings
    ]
    names = list(model.rates_rps)
    if {hosting.service for _, hosting in unknowns} != set(names):
        return math.inf
    num = len(unknowns)
    equalities = np.array([[float(hosting.service == name) for _, hosting in unknowns] for name in names])
    demand = np.array(list(model.rates_rps.values()))
    capacity = np.zeros((len(chosen), num))
    for column, (place, hosting) in enumerate(unknowns):
        capacity[place, column] = hosting.occupancy_s / chosen[place][0].utilisation
    limits = np.array([float(count) for _, count in chosen])
    energy = np.array([hosting.energy_j for _, hosting in unknowns])
    rows = np.vstack([np.eye(num), capacity])
    right = np.concatenate([np.zeros(num), limits])
    tight = np.array(list(itertools.combinations(range(len(rows)), num - len(names))), dtype=int)
    matrices = np.concatenate(
        [np.broadcast_to(equalities, (len(tight), *equalities.shape)), rows[tight]], axis=1
    )
    rights = np.concatenate([np.broadcast_to(demand, (len(tight), len(demand))), right[tight]], axis=1)
    regular = np.abs(np.linalg.det(matrices)) > 1e-12
    if not regular.any():
        return math.inf
    rates = np.linalg.solve(matrices[regular], rights[regular][..., None])[..., 0]
    feasible = (rates >= -1e-9).all(axis=1) & (rates @ capacity.T <= limits + 1e-9).all(axis=1)
    return float((rates[feasible] @ energy).min()) if feasible.any() else math.inf


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
    assert sum(use.count * use.configuration.num_gpus for use in solution.uses) <= 3
    peak = model.parked_w + sum(
        use.count * (use.configuration.peak_w - use.configuration.num_gpus * 25.0) for use in solution.uses
    )
    assert peak <= model.power_cap_w * (1 + 1e-9)
    assert solution.power_w == pytest.approx(power_of(model, solution.uses))


@pytest.mark.parametrize("seed", SEEDS)
def test_exact_equals_brute_force(seed: int) -> None:
    """If it fails, the programme is not the stated model, or its solution is no optimum of it."""
    model = random_model(seed, capped=seed % 3 == 0)
    expected = brute_force_power(model)
    solution = solve_exact(model, time_limit_s=60, seed=0)
    if math.isinf(expected):
        assert solution.status is Status.INFEASIBLE
        return
    assert solution.status is Status.OPTIMAL
    assert solution.objective == pytest.approx(expected, rel=2e-4)
    assert solution.bound <= expected * (1 + 1e-9)
    check(model, solution)


def test_brute_force_sees_both_answers() -> None:
    """If it fails, the comparison above proves nothing about feasible, or about infeasible, models."""
    answers = [math.isinf(brute_force_power(random_model(seed, capped=seed % 3 == 0))) for seed in range(20)]
    assert 2 <= sum(answers) <= 18


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
def test_more_gpus_never_cost_power(seed: int) -> None:
    """If it fails, spare GPUs are charged for something other than being parked."""
    model = random_model(seed)
    pool = model.pools[0]
    # The added GPUs are parked for free, so that only the plan's own power is compared.
    larger = replace(
        model, pools=(replace(pool, num_gpus=4, free_per_node=(4,), parked_w=pool.parked_w * 3 / 4),)
    )
    small = solve_exact(model, time_limit_s=60, seed=0)
    large = solve_exact(larger, time_limit_s=60, seed=0)
    if small.found:
        assert large.found
        assert large.objective <= small.objective * (1 + 2e-4)


@pytest.mark.parametrize("seed", range(10))
def test_looser_guards_never_cost_power(seed: int) -> None:
    """If it fails, a looser latency objective can make the optimum worse."""
    model = random_model(seed)
    looser = replace(
        model,
        group_types=tuple(
            replace(item, utilisation=min(0.98, item.utilisation * 1.2)) for item in model.group_types
        ),
    )
    tight, loose = (solve_exact(item, time_limit_s=60, seed=0) for item in (model, looser))
    if tight.found:
        assert loose.objective <= tight.objective * (1 + 2e-4)


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
    "node_power_cap": "node_power_cap_pool: 175 n_0 + 350 n_1 <= 400",
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
