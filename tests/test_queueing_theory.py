"""The simulator against closed forms of queueing theory.

Replications with t-intervals must contain the closed form, at about the rate that 95 % intervals do.
If these fail, waiting times are biased, and every attainment with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from muplan.plan import Deployment, Interval
from muplan.problem.problem import Problem, ResolvedService
from muplan.serving.prediction import interval
from muplan.serving.records import Records
from muplan.serving.simulator import simulate
from muplan.traces.trace import Trace
from muplan.workload import QueueOrder, Serving
from tests import serving_cases as cases

NUM_REPLICATIONS = 30


def poisson_trace(
    services: Sequence[ResolvedService], rng: np.random.Generator, duration_s: float, mean_tokens: float = 0.0
) -> Trace:
    """Poisson arrivals of each service at its rate; geometric output lengths where a mean is given."""
    columns = []
    for number, service in enumerate(services):
        count = rng.poisson(service.rate_rps * duration_s)
        columns.append(np.stack([rng.uniform(0, duration_s, count), np.full(count, number)]))
    arrivals, kinds = np.concatenate(columns, axis=1)
    order = np.argsort(arrivals, kind="stable")
    count = len(arrivals)
    return cases.trace(
        services,
        arrivals[order],
        kinds[order],
        duration_s=duration_s,
        input_tokens=np.ones(count),
        output_tokens=rng.geometric(1 / mean_tokens, count) if mean_tokens else None,
    )


def replicate(
    services: Sequence[ResolvedService],
    deployment: Deployment,
    statistic: Callable[[Records], float],
    *,
    duration_s: float,
    warm_up_s: float,
    mean_tokens: float = 0.0,
    replications: int = NUM_REPLICATIONS,
    seed: int = 0,
) -> Interval:
    """A 95 % t-interval of a statistic over independent replications."""
    problem = cases.problem(services, warm_up_s=warm_up_s)
    values = []
    for child in np.random.default_rng(seed).spawn(replications):
        trace = poisson_trace(services, child, duration_s, mean_tokens)
        records = simulate(problem, deployment, trace, rng=child, warm_up_s=warm_up_s, num_samples=1)
        values.append(statistic(records))
    return interval(values)


def mean_wait_s(number: int | None = None) -> Callable[[Records], float]:
    """Mean time from arrival to dispatch of the counted requests (of one service)."""

    def statistic(records: Records) -> float:
        mine = records.counted if number is None else records.counted & (records.service == number)
        return float((records.start_s - records.arrival_s)[mine].mean())

    return statistic


def mean_sojourn_s(records: Records) -> float:
    return float((records.completion_s - records.arrival_s)[records.counted].mean())


def contains(result: Interval, value: float) -> bool:
    return result.low <= value <= result.high


def deterministic(name: str, seconds: float, rate_rps: float, num_clusters: int = 1) -> ResolvedService:
    return cases.forward_service(name, lambda *_: seconds, rate_rps=rate_rps, num_clusters=num_clusters)


def single_group(*services: str, serving: Serving | None = None) -> Deployment:
    return cases.deployment([cases.group("g", [0], services)], serving)


@pytest.mark.parametrize("load", [0.3, 0.7, 0.85])
def test_m_d_1(load: float) -> None:
    """Mean wait of M/D/1: ρ s / 2 (1 − ρ) (Pollaczek–Khinchine)."""
    service = deterministic("a", 0.1, load / 0.1)
    result = replicate([service], single_group("a"), mean_wait_s(), duration_s=900, warm_up_s=100)
    assert contains(result, load * 0.1 / (2 * (1 - load)))


def test_intervals_cover_at_about_their_rate() -> None:
    """Of 200 intervals over 8 replications each, about 95 % contain the closed form (0.90 to 0.99)."""
    load = 0.6
    service, deployment = deterministic("a", 0.1, load / 0.1), single_group("a")
    expected = load * 0.1 / (2 * (1 - load))
    covered = [
        contains(
            replicate(
                [service], deployment, mean_wait_s(), duration_s=220, warm_up_s=20, replications=8, seed=seed
            ),
            expected,
        )
        for seed in range(200)
    ]
    assert 0.90 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize("order", [QueueOrder.FCFS, QueueOrder.SJF])
def test_m_g_1_of_two_services(order: QueueOrder) -> None:
    """Two services on one group: Pollaczek–Khinchine under FCFS, Cobham's priority formula under SJF."""
    short, long = deterministic("short", 0.05, 6.0), deterministic("long", 0.4, 1.0)
    residual_s = (6.0 * 0.05**2 + 1.0 * 0.4**2) / 2
    load_short, load = 0.3, 0.7
    if order == QueueOrder.FCFS:
        expected = [residual_s / (1 - load)] * 2
    else:
        expected = [residual_s / (1 - load_short), residual_s / ((1 - load_short) * (1 - load))]
    deployment = single_group("short", "long", serving=Serving(queue_order=order, wait_cap="none"))
    for number in range(2):
        result = replicate(
            [short, long], deployment, mean_wait_s(number), duration_s=1500, warm_up_s=100, seed=number
        )
        assert contains(result, expected[number])


@pytest.mark.parametrize(("first_s", "second_s"), [(0.1, 0.06), (0.06, 0.1), (0.1, 0.1)])
def test_tandem_of_deterministic_stages(first_s: float, second_s: float) -> None:
    """A pipeline waits as its slowest stage alone would, whatever the order (Friedman, 1965)."""
    rate_rps = 7.0

    def seconds(clock: int, _: int) -> float:
        return first_s if clock == 1530 else second_s  # the stages differ by their clocks

    service = cases.forward_service("a", seconds, rate_rps=rate_rps, num_clusters=2)
    group = cases.group("g", [0, 1], ["a"], clocks_mhz=[1530, 1200 if first_s != second_s else 1530])
    result = replicate(
        [service], cases.deployment([group]), mean_sojourn_s, duration_s=900, warm_up_s=100, seed=3
    )
    slowest_s = max(first_s, second_s)
    load = rate_rps * slowest_s
    device = cases.problem([service]).devices[cases.POOL]
    transfer_s = device.transfer_s(4096.0 * 128, True)
    expected = load * slowest_s / (2 * (1 - load)) + first_s + second_s + transfer_s
    assert contains(result, expected)


def m_d_c_mean_wait_s(rate_rps: float, seconds: float, num_servers: int) -> float:
    """Mean wait of M/D/c from the stationary law of the number in the system (Crommelin, 1932).

    Over one service time the number n becomes max(n − c, 0) + Poisson(λ s).
    """
    size = 400
    arrivals = np.exp(
        -rate_rps * seconds
        + np.arange(size) * math.log(rate_rps * seconds)
        - [math.lgamma(n + 1) for n in range(size)]
    )
    law = np.zeros(size)
    law[0] = 1.0
    for _ in range(3000):
        shifted = np.zeros(size)
        shifted[0] = law[: num_servers + 1].sum()
        shifted[1 : size - num_servers] = law[num_servers + 1 :]
        law = np.convolve(shifted, arrivals)[:size]
    waiting = np.maximum(np.arange(size) - num_servers, 0) @ law
    return float(waiting / rate_rps)


def test_m_d_c_by_routing() -> None:
    """Equal groups, deterministic requests: the shortest expected completion is the least work left, so
    the groups behave as one queue with three servers."""
    service = deterministic("a", 0.1, 24.0)
    deployment = cases.deployment([cases.group(f"g{index}", [index], ["a"]) for index in range(3)])
    result = replicate([service], deployment, mean_wait_s(), duration_s=900, warm_up_s=100, seed=4)
    assert contains(result, m_d_c_mean_wait_s(24.0, 0.1, 3))


def exponential_service(mean_tokens: float, token_s: float, rate_rps: float) -> ResolvedService:
    """One request at a time, a token in ``token_s`` whatever the context: geometric service times."""
    return cases.generate_service(
        "chat",
        prefill=lambda *_: token_s,
        decode=lambda *_: token_s,
        max_batch=1,
        max_context=40_000,
        mean_input=1.0,
        mean_output=mean_tokens,
        rate_rps=rate_rps,
    )


def test_m_m_1_from_geometric_lengths() -> None:
    """Replies of geometric length, 1,000 tokens in the mean, are exponential to 0.1 %: ρ s / (1 − ρ)."""
    mean_s, load = 0.1, 0.7
    service = exponential_service(1000.0, mean_s / 1000, load / mean_s)
    deployment = cases.deployment([cases.group("g", [0], ["chat"])])
    result = replicate(
        [service], deployment, mean_wait_s(), duration_s=1500, warm_up_s=100, mean_tokens=1000.0, seed=5
    )
    assert contains(result, load * mean_s / (1 - load))


def test_m_m_1_tail() -> None:
    """The sojourn of M/M/1 is exponential with rate μ − λ: the share beyond three means is e⁻³."""
    mean_s, load = 0.1, 0.6
    service = exponential_service(1000.0, mean_s / 1000, load / mean_s)
    limit_s = 3.0 * mean_s / (1 - load)

    def late(records: Records) -> float:
        sojourn_s = (records.completion_s - records.arrival_s)[records.counted]
        return float((sojourn_s > limit_s).mean())

    deployment = cases.deployment([cases.group("g", [0], ["chat"])])
    result = replicate(
        [service], deployment, late, duration_s=1500, warm_up_s=100, mean_tokens=1000.0, seed=6
    )
    assert contains(result, math.exp(-3.0))


def test_m_g_1_with_short_geometric_lengths() -> None:
    """Pollaczek–Khinchine with the moments of the geometric law, 4 tokens in the mean."""
    token_s, mean_tokens, rate_rps = 0.05, 4.0, 3.5
    service = exponential_service(mean_tokens, token_s, rate_rps)
    success = 1 / mean_tokens
    second_moment = token_s**2 * (2 - success) / success**2
    load = rate_rps * token_s * mean_tokens
    deployment = cases.deployment([cases.group("g", [0], ["chat"])])
    result = replicate(
        [service], deployment, mean_wait_s(), duration_s=1500, warm_up_s=100, mean_tokens=mean_tokens, seed=7
    )
    assert contains(result, rate_rps * second_moment / (2 * (1 - load)))


def test_littles_law() -> None:
    """The mean number in the system, watched at random moments, is the rate times the mean sojourn."""
    service = deterministic("a", 0.1, 8.0)
    moments = np.random.default_rng(8).uniform(100, 850, 4000)

    def difference(records: Records) -> float:
        arrived = np.searchsorted(records.arrival_s, moments, side="right")
        completed = np.searchsorted(np.sort(records.completion_s), moments, side="right")
        rate_rps = records.counted.sum() / records.measured_s
        return float((arrived - completed).mean() - rate_rps * mean_sojourn_s(records))

    result = replicate([service], single_group("a"), difference, duration_s=900, warm_up_s=100, seed=9)
    assert contains(result, 0.0)
    assert result.high - result.low < 0.2


def expected_power_w(problem: Problem, busy_share: float, busy_w: float) -> float:
    device = problem.devices[cases.POOL]
    loaded_w = float(device.loaded_power_w(device.effective_clock_mhz(1530)))
    return busy_share * busy_w + (1 - busy_share) * loaded_w + 7 * device.parked_w


def test_power_follows_utilisation() -> None:
    """A GPU is busy for ρ of the time (unbatched): its mean power is ρ busy + (1 − ρ) loaded."""
    service = deterministic("a", 0.1, 4.0)
    result = replicate(
        [service], single_group("a"), lambda records: records.power_w, duration_s=900, warm_up_s=100, seed=10
    )
    expected = expected_power_w(cases.problem([service]), 0.4, 100.0 + 1530 / 10 + 1)
    assert contains(result, expected)
    assert (result.high - result.low) / expected < 0.02
