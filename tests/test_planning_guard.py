"""The queueing guard against the queues whose tails are known, and its laws."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from muplan.planning.guard.levels import Level, _undominated
from muplan.planning.guard.tail import (
    MAX_UTILISATION,
    Mix,
    Queue,
    Stream,
    max_utilisation,
    merge,
    miss_probability,
)

POISSON = Mix(mean_scv=1.0, spread=1.0)


def queue(**changes: object) -> Queue:
    """An M/M/1 queue with a slack of four service times and one miss in a hundred."""
    base = Queue(slack_s=4.0, service_s=1.0, service_scv=1.0, servers=1.0, arrivals=POISSON, miss=0.01)
    return replace(base, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("utilisation", [0.2, 0.5, 0.9])
def test_one_server_is_exact_for_poisson_arrivals_and_exponential_service(utilisation: float) -> None:
    """If it fails, the tail is not P(W > t) = ρ exp(−(1 − ρ) t / s) where that is exact (M/M/1)."""
    found = miss_probability(
        slack_s=np.array(3.0),
        service_s=np.array(1.0),
        scv=np.array(2.0),
        servers=np.array(1.0),
        utilisation=np.array(utilisation),
    )
    assert float(found) == pytest.approx(utilisation * math.exp(-3.0 * (1.0 - utilisation)))


@pytest.mark.parametrize(("servers", "utilisation"), [(2, 0.5), (4, 0.7), (16, 0.8), (32, 0.9)])
def test_delay_probability_is_near_erlang_c(servers: int, utilisation: float) -> None:
    """If it fails, pooling over several groups is credited with too much or too little."""
    offered = servers * utilisation
    terms = [offered**k / math.factorial(k) for k in range(servers)]
    last = offered**servers / math.factorial(servers) / (1 - utilisation)
    erlang_c = last / (sum(terms) + last)
    found = miss_probability(
        slack_s=np.array(0.0),
        service_s=np.array(1.0),
        scv=np.array(2.0),
        servers=np.array(float(servers)),
        utilisation=np.array(utilisation),
    )
    assert float(found) == pytest.approx(erlang_c, abs=0.05)


def test_utilisation_meets_the_tail_exactly() -> None:
    """If it fails, the bisection stops away from the utilisation at which the allowance is used up."""
    reach = max_utilisation(queue())
    assert reach * math.exp(-4.0 * (1.0 - reach)) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "looser"),
    [
        ({"slack_s": 4.0}, {"slack_s": 8.0}),
        ({"miss": 0.01}, {"miss": 0.05}),
        ({"servers": 1.0}, {"servers": 4.0}),
        ({"service_s": 1.0}, {"service_s": 0.5}),
        ({"service_scv": 1.0}, {"service_scv": 0.0}),
        ({"arrivals": Mix(mean_scv=16.0, spread=1.0)}, {"arrivals": POISSON}),
        ({"arrivals": Mix(mean_scv=16.0, spread=1.0)}, {"arrivals": Mix(mean_scv=16.0, spread=6.0)}),
    ],
)
def test_whatever_eases_waiting_allows_more(change: dict[str, object], looser: dict[str, object]) -> None:
    """If it fails, the guard moves the wrong way with slack, target, pooling, size or variation."""
    assert max_utilisation(queue(**looser)) > max_utilisation(queue(**change))


def test_no_slack_allows_nothing_and_much_slack_is_capped() -> None:
    """If it fails, a service that is late without any queue is hosted, or a group planned to the brim."""
    assert max_utilisation(queue(slack_s=-1e-9)) == 0.0
    assert max_utilisation(queue(slack_s=1e6)) == MAX_UTILISATION


def test_merging_equal_poisson_streams_is_poisson() -> None:
    """If it fails, the superposition of Poisson streams is given another variation."""
    mix = merge([Stream(rate_rps=2.0, scv=1.0)] * 5)
    assert mix.mean_scv == pytest.approx(1.0)
    assert mix.spread == pytest.approx(5.0)
    assert max_utilisation(queue(arrivals=mix)) == pytest.approx(max_utilisation(queue()))


@pytest.mark.parametrize("seed", range(20))
def test_every_level_left_out_is_replaced_by_one_that_is_kept(seed: int) -> None:
    """If it fails, pruning loses group types that a plan may need, or keeps one twice."""
    rng = np.random.default_rng(seed)
    levels = [
        Level(members=np.flatnonzero(rng.random(5) < 0.6), utilisation=float(rng.choice([0.4, 0.6, 0.8])))
        for _ in range(12)
    ]
    kept = _undominated(levels, 5)
    for level in levels:
        covering = [
            other
            for other in kept
            if set(level.members) <= set(other.members) and other.utilisation >= level.utilisation
        ]
        assert covering
        if level in kept:
            assert covering == [level]
