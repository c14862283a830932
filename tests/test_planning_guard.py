"""The queueing guard against the queues whose tails are known, and its laws."""

from __future__ import annotations

import heapq
import math
from dataclasses import replace

import numpy as np
import pytest

from muplan.planning.guard.levels import Level, _undominated, _utilisation_levels
from muplan.planning.guard.tail import (
    MAX_UTILISATION,
    Queue,
    burstiness,
    delay_probability,
    max_utilisation,
)
from validation.guard import cases, closed_form, simulated


def queue(**changes: object) -> Queue:
    """An M/M/1 queue with a slack of four service times and one miss in a hundred."""
    base = Queue(slack_s=4.0, service_s=1.0, service_scv=1.0, servers=1.0, burstiness=1.0, miss=0.01)
    return replace(base, **changes)  # type: ignore[arg-type]


def simulated_miss(case: Queue, utilisation: float, num_requests: int = 250_000) -> float:
    """Share of late requests where Gamma arrivals go to the server that is free first; unit passes."""
    rng = np.random.default_rng(0)
    shape = 1.0 / case.burstiness
    arrivals = np.cumsum(rng.standard_gamma(shape, num_requests)) / (shape * utilisation * case.servers)
    free = [0.0] * int(case.servers)
    late = 0
    for arrival in arrivals.tolist():
        start = max(arrival, free[0])
        heapq.heapreplace(free, start + 1.0)
        late += start - arrival > case.slack_s
    return late / num_requests


@pytest.mark.parametrize("slack", [2.0, 4.0, 20.0])
def test_one_server_is_exact_for_poisson_arrivals_and_exponential_service(slack: float) -> None:
    """If it fails, the tail is not P(W > t) = ρ exp(−(1 − ρ) t / s) where that is exact (M/M/1)."""
    reach = max_utilisation(queue(slack_s=slack))
    assert reach * math.exp(-slack * (1.0 - reach)) == pytest.approx(0.01, rel=1e-4)


@pytest.mark.parametrize(("servers", "utilisation"), [(2, 0.5), (4, 0.7), (16, 0.8), (32, 0.9)])
def test_delay_probability_is_near_erlang_c(servers: int, utilisation: float) -> None:
    """If it fails, pooling over several groups is credited with too much or too little."""
    offered = servers * utilisation
    terms = [offered**k / math.factorial(k) for k in range(servers)]
    last = offered**servers / math.factorial(servers) / (1 - utilisation)
    erlang_c = last / (sum(terms) + last)
    found = delay_probability(
        utilisation=np.array(utilisation), servers=np.array(float(servers)), bursts=np.array(1.0)
    )
    assert float(found) == pytest.approx(erlang_c, abs=0.05)


@pytest.mark.parametrize(
    ("scv", "servers", "slack"),
    [(1, 1, 3), (1, 8, 8), (4, 2, 8), (4, 8, 3), (16, 4, 8), (16, 16, 3), (16, 16, 8), (100, 16, 8)],
)
def test_allowed_utilisation_is_near_where_simulated_waits_use_up_the_misses(
    scv: float, servers: float, slack: float
) -> None:
    """If it fails, plans start far from what holds: too bold or too timid, most of all under bursts."""
    case = queue(slack_s=slack, service_scv=0.0, servers=servers, burstiness=scv, miss=0.01)
    reach = max_utilisation(case)
    assert simulated_miss(case, reach) <= 0.02
    assert simulated_miss(case, min(0.5 * (1.0 + reach), 1.6 * reach)) > 0.005


@pytest.mark.parametrize(
    ("name", "groups"),
    [("four services, CV 4", 16), ("one service, CV 1, batches to 8", 4), ("long and short, sjf", 4)],
)
def test_groups_are_not_used_further_than_the_simulator_finds_them_good_for(name: str, groups: int) -> None:
    """If it fails, plans with several services, batches or another queue order start from broken promises."""
    case = next(item for item in cases() if item.name == name and item.num_groups == groups)
    allowed, found = closed_form(case), simulated(case)
    assert 0.5 * found < allowed < found + 0.05


@pytest.mark.parametrize(
    ("change", "looser"),
    [
        ({"slack_s": 4.0}, {"slack_s": 8.0}),
        ({"miss": 0.01}, {"miss": 0.05}),
        ({"servers": 1.0}, {"servers": 4.0}),
        ({"service_s": 1.0}, {"service_s": 0.5}),
        ({"service_scv": 1.0}, {"service_scv": 0.0}),
        ({"burstiness": 16.0}, {"burstiness": 1.0}),
    ],
)
def test_whatever_eases_waiting_allows_more(change: dict[str, object], looser: dict[str, object]) -> None:
    """If it fails, the guard moves the wrong way with slack, target, pooling, size or variation."""
    assert max_utilisation(queue(**looser)) > max_utilisation(queue(**change))


def test_no_slack_allows_nothing_and_much_slack_is_capped() -> None:
    """If it fails, a service that is late without any queue is hosted, or a group planned to the brim."""
    assert max_utilisation(queue(slack_s=-1e-9)) == 0.0
    assert max_utilisation(queue(slack_s=1e6)) == MAX_UTILISATION


def test_bursts_seem_smaller_the_shorter_the_window() -> None:
    """If it fails, a short wait is blamed for bursts that take far longer, or a long one spared them."""
    seen = burstiness(np.array(16.0), np.array([1e-9, 1e-3, 1e-1, 1e3]))
    assert (np.diff(seen) > 0).all()
    assert seen[0] < 3.0
    assert seen[-1] == 16.0
    assert float(burstiness(np.array(1.0), np.array(2.0))) == 1.0
    assert float(burstiness(np.array(0.25), np.array(2.0))) == 1.0


@pytest.mark.parametrize("seed", range(20))
def test_levels_take_little_from_what_services_allow(seed: int) -> None:
    """If it fails, services of unlike limits on one form are planned far below what each allows."""
    allowed = np.random.default_rng(seed).uniform(0.3, 0.98, 60)
    levels = np.array(_utilisation_levels(allowed))
    reached = np.array([levels[levels <= most].max() for most in allowed])
    assert (reached >= 0.97 * allowed).all()


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
