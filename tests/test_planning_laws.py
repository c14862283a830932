"""Laws of the optimum: whoever asks for less, or is given more, never draws more power.

They hold for the stated model under a fixed guard. The planner as a whole adds what simulation finds,
and a guard that pools requests over the fleet; it promises no such law.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest

from muplan.planning.solvers.exact import solve_exact
from muplan.planning.stated.model import PlanningModel
from tests.tiny_models import built_model, model_of_kind

SEEDS = range(21)
"""Three of every kind."""

Ease = Callable[[PlanningModel], PlanningModel]


def more_gpus(model: PlanningModel) -> PlanningModel:
    """One GPU more on the first pool; parked, it draws nothing, so that only the plan's own power counts."""
    first, *others = model.pools
    total = first.num_gpus + 1
    larger = replace(
        first,
        num_gpus=total,
        free_per_node=(total,),
        parked_w=first.parked_w * first.num_gpus / total,
    )
    return replace(model, pools=(larger, *others))


def looser_guard(model: PlanningModel) -> PlanningModel:
    """Every group may be used further."""
    types = tuple(replace(item, utilisation=1.2 * item.utilisation) for item in model.group_types)
    return replace(model, group_types=types)


def less_demand(model: PlanningModel) -> PlanningModel:
    """Four fifths of the first service's demand."""
    first = next(iter(model.rates_rps))
    return replace(model, rates_rps={**model.rates_rps, first: 0.8 * model.rates_rps[first]})


def higher_caps(model: PlanningModel) -> PlanningModel:
    """Caps a tenth higher."""
    pools = tuple(replace(pool, node_power_cap_w=1.1 * pool.node_power_cap_w) for pool in model.pools)
    return replace(model, pools=pools, power_cap_w=1.1 * model.power_cap_w)


def fewer_limits(model: PlanningModel) -> PlanningModel:
    """No caps, no least or most numbers of replicas."""
    pools = tuple(replace(pool, node_power_cap_w=math.inf) for pool in model.pools)
    return replace(model, pools=pools, power_cap_w=math.inf, min_replicas={}, max_replicas={})


@pytest.mark.parametrize("ease", [more_gpus, looser_guard, less_demand, higher_caps, fewer_limits])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_easier_never_costs_power(seed: int, ease: Ease) -> None:
    """If it fails, a constraint or a price points the wrong way, or an optimum is none."""
    _, model = model_of_kind(seed)
    before = solve_exact(model, time_limit_s=60, seed=0)
    after = solve_exact(ease(model), time_limit_s=60, seed=0)
    if before.found:
        assert after.found
        assert after.objective <= before.objective * (1 + 2e-4)


@pytest.mark.parametrize("seed", range(12))
def test_longer_limits_never_cost_power(seed: int) -> None:
    """If it fails, candidates or guard punish a looser latency objective.

    Under a guard state that is the same for both.
    """
    tight = solve_exact(built_model(seed, most_types=999), time_limit_s=60, seed=0)
    loose = solve_exact(built_model(seed, slack=1.3, most_types=999), time_limit_s=60, seed=0)
    if tight.found:
        assert loose.found
        assert loose.objective <= tight.objective * (1 + 2e-4)
