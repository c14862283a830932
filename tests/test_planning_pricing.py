"""Pricing and bounds of the exact solver against enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from muplan.planning.solvers.exact import solve_exact
from muplan.planning.solvers.pricing import Pricer, Prices
from muplan.planning.stated.model import (
    Floats,
    Form,
    GroupType,
    Hosting,
    Integers,
    PlanningModel,
    PoolSupply,
)
from muplan.workload import Goal
from tests.test_planning_exact import check
from tests.tiny_models import brute_force_power, random_model

NUM_SERVICES = 8


def hosting(name: str, stages: int, rng: np.random.Generator) -> Hosting:
    """A service with anything that a form might say of it."""
    return Hosting(
        service=name,
        max_batch=1,
        stage_clusters=(((0, 1),),) * stages,
        occupancy_s=float(rng.uniform(0.02, 0.2)),
        energy_j=float(rng.uniform(1.0, 5.0)),
        latency_s=0.1,
        weight_bytes=tuple(rng.uniform(1.0, 4.0, stages).tolist()),
        working_bytes=tuple(rng.uniform(0.0, 1.0, stages).tolist()),
        peak_w=(200.0,) * stages,
    )


def random_types(seed: int) -> tuple[PlanningModel, Prices]:
    """Eight services, one of them in two partitions, on ten group types of one or two stages, and prices."""
    rng = np.random.default_rng(seed)
    names = [f"s{number}" for number in range(NUM_SERVICES)]
    types = []
    for number in range(10):
        stages = 1 + number % 2
        form = Form(
            pool="pool",
            tensor_parallel=1,
            clocks_mhz=(900 + 30 * number,) * stages,
            standing_w=20.0,
            usable_bytes=10.0,
            hostings=tuple(hosting(name, stages, rng) for name in (*names, names[0])),
        )
        types.append(GroupType(form=form, members=np.arange(NUM_SERVICES + 1), utilisation=0.6))
    model = PlanningModel(
        rates_rps={name: float(rng.uniform(0.5, 4.0)) for name in names},
        pools=(PoolSupply(name="pool", num_gpus=8, gpus_per_node=8, free_per_node=(8,), parked_w=25.0),),
        group_types=tuple(types),
        power_cap_w=math.inf,
        goals=(Goal.POWER,),
    )
    prices = Prices(
        service_rps=rng.uniform(0.0, 8.0, NUM_SERVICES),
        service_hosted=rng.uniform(-0.2, 0.5, NUM_SERVICES) * (seed % 2),
        group=rng.uniform(0.2, 3.0, len(types)),
        power=1.0,
    )
    return model, prices


def feasible_sets(form: Form) -> list[tuple[int, ...]]:
    """Every set that memory holds, with at most one partition of a service."""
    found = []
    for size in range(1, len(form.hostings) + 1):
        for chosen in itertools.combinations(range(len(form.hostings)), size):
            rows = list(chosen)
            names = {form.hostings[row].service for row in rows}
            held = form.weight_bytes[rows].sum(axis=0) + form.working_bytes[rows].max(axis=0)
            if len(names) == size and (held <= form.usable_bytes).all():
                found.append(chosen)
    return found


def worth(model: PlanningModel, pricer: Pricer, prices: Prices, number: int, members: Integers) -> float:
    """What a set earns: rates from the pricer, which fill a continuous knapsack."""
    form = model.group_types[number].form
    services = np.array([int(form.hostings[row].service[1:]) for row in members])
    rates: Floats = pricer.fill(number, members, prices)
    gain = prices.service_rps[services] - form.energy_j[members]
    return float(gain @ rates + prices.service_hosted[services].sum())


@pytest.mark.parametrize("seed", range(12))
def test_the_best_group_of_every_type_equals_enumeration(seed: int) -> None:
    """If it fails, column generation ends too early, and its bound is none."""
    model, prices = random_types(seed)
    pricer = Pricer(model)
    priced = pricer.best_groups(prices)
    for number, group_type in enumerate(model.group_types):
        best = max(
            worth(model, pricer, prices, number, np.array(members))
            for members in feasible_sets(group_type.form)
        )
        expected = min(0.0, prices.group[number] - best)
        assert priced.reduced_cost[number] == pytest.approx(expected, abs=1e-7)
        assert priced.lower_bound[number] <= expected + 1e-7
        if expected < -1e-6:
            assert tuple(priced.hosted[number].tolist()) in feasible_sets(group_type.form)


@pytest.mark.parametrize("seed", range(0, 12, 2))
def test_every_maximal_set_worth_more_than_the_threshold_is_listed(seed: int) -> None:
    """If it fails, an "optimal" plan may not be: a set that belongs to a better one was left out."""
    model, prices = random_types(seed)
    pricer = Pricer(model)
    below = 0.5
    listed = pricer.maximal_groups(prices, below=below, limit=10_000)
    assert listed is not None
    for number, group_type in enumerate(model.group_types):
        sets = feasible_sets(group_type.form)
        maximal = [chosen for chosen in sets if not any(set(chosen) < set(other) for other in sets)]
        expected = {
            chosen
            for chosen in maximal
            if worth(model, pricer, prices, number, np.array(chosen)) > prices.group[number] - below
        }
        assert expected == {tuple(members.tolist()) for at, members in listed if at == number}


def test_too_many_sets_are_refused_not_cut_off() -> None:
    """If it fails, a list that is not complete passes for one that is."""
    model, prices = random_types(0)
    assert Pricer(model).maximal_groups(prices, below=100.0, limit=3) is None


@pytest.mark.parametrize("seed", range(20))
def test_polishing_and_branching_keep_plan_and_bound_on_their_sides(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it fails, large models, where no list of sets settles the matter, get wrong plans or bounds."""
    monkeypatch.setattr("muplan.planning.solvers.exact._LISTED_SETS", 0)
    model = random_model(seed, capped=seed % 3 == 0)
    optimum = brute_force_power(model)
    solution = solve_exact(model, time_limit_s=60, seed=0, max_steps=8)
    if not solution.found:
        return
    check(model, solution)
    assert solution.objective >= optimum * (1 - 1e-9)
    assert solution.bound <= optimum * (1 + 1e-9)
    assert solution.objective <= optimum * 1.05
