"""Predictions of a deployment: replications of its simulation, with t-intervals."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from muplan.errors import InputError
from muplan.plan import Deployment, Interval, Prediction, ServicePrediction
from muplan.problem.problem import Problem
from muplan.serving.metrics import Metrics, ServiceMetrics, measure
from muplan.serving.simulator import Simulator
from muplan.traces.generate import Purpose, generate_trace, trace_rng
from muplan.traces.trace import Trace
from muplan.workload import Simulation

CONFIDENCE = 0.95

_HELD_REQUESTS = 8_000_000
"""Requests that simulations side by side may hold; each takes some 250 bytes."""


def replicate(
    problem: Problem,
    deployment: Deployment,
    *,
    seed: int,
    purpose: Purpose | str = Purpose.JUDGING,
    simulation: Simulation | None = None,
) -> tuple[Metrics, ...]:
    """Simulate a deployment on independent traces; one `Metrics` for each replication.

    Parameters
    ----------
    seed, purpose
        Which traces: equal for all deployments, so that comparisons share their requests.
    simulation
        Duration, warm-up, cool-down and number of replications; the workload's where absent.
    """
    simulation = simulation or problem.workload.simulation
    rngs = [trace_rng(seed, number, purpose) for number in range(simulation.replications)]
    traces = [generate_trace(problem.services, duration_s=simulation.duration_s, rng=rng) for rng in rngs]
    return simulate_each(
        problem,
        deployment,
        traces,
        rngs=rngs,
        warm_up_s=simulation.warm_up_s,
        cool_down_s=simulation.cool_down_s,
    )


def simulate_each(
    problem: Problem,
    deployment: Deployment,
    traces: Sequence[Trace],
    *,
    rngs: Sequence[np.random.Generator],
    warm_up_s: float | None = None,
    cool_down_s: float | None = None,
) -> tuple[Metrics, ...]:
    """Simulate a deployment on several traces, side by side on the machine's cores.

    Parameters
    ----------
    rngs
        One generator for each trace, as `simulate` uses it.
    warm_up_s, cool_down_s
        As `simulate`.
    """
    simulator = Simulator(problem, deployment)

    def run(trace: Trace, rng: np.random.Generator) -> Metrics:
        records = simulator.run(trace, rng=rng, warm_up_s=warm_up_s, cool_down_s=cool_down_s, num_samples=1)
        return measure(records, problem)

    longest = max((len(trace) for trace in traces), default=1)
    beside = max(1, min(len(traces), os.cpu_count() or 1, _HELD_REQUESTS // max(longest, 1)))
    with ThreadPoolExecutor(max_workers=beside) as pool:
        return tuple(pool.map(run, traces, rngs))


def predict(
    problem: Problem,
    deployment: Deployment,
    *,
    seed: int,
    purpose: Purpose | str = Purpose.JUDGING,
    simulation: Simulation | None = None,
) -> Prediction:
    """Predict what a deployment brings, from replications of its simulation.

    Parameters
    ----------
    seed, purpose, simulation
        As `replicate`.

    Raises
    ------
    InputError
        Nothing is served at all.
    """
    simulation = simulation or problem.workload.simulation
    replications = replicate(problem, deployment, seed=seed, purpose=purpose, simulation=simulation)
    return summarise(replications, seed=seed, duration_s=simulation.duration_s)


def summarise(replications: Sequence[Metrics], *, seed: int, duration_s: float) -> Prediction:
    """Summarise replications as a prediction: means with t-intervals, percentiles averaged.

    A service that is not served at all has no latencies to predict, which is refused.
    """
    return Prediction(
        seed=seed,
        duration_s=duration_s,
        replications=len(replications),
        power_w=interval([metrics.power_w for metrics in replications]),
        energy_per_request_j=_energy_per_request_j(replications),
        goodput_rps=interval([metrics.goodput_rps for metrics in replications], lowest=0.0),
        services=tuple(
            _service_prediction([metrics.services[number] for metrics in replications])
            for number in range(len(replications[0].services))
        ),
    )


def _service_prediction(replications: Sequence[ServiceMetrics]) -> ServicePrediction:
    served = [one for one in replications if one.num_requests > one.num_rejected]
    if not served:
        raise InputError(
            f"No request of {replications[0].service!r} was served in any replication.",
            "Host the service, admit some of its requests, or simulate longer.",
        )
    latency_s = [one.latency.mean_s for one in served]
    return ServicePrediction(
        service=served[0].service,
        rate_rps=_mean([one.rate_rps for one in replications]),
        attainment=interval([one.attainment for one in replications], lowest=0.0, highest=1.0),
        target=served[0].target,
        latency_mean_s=interval(latency_s, lowest=0.0),
        latency_p50_s=_mean([one.latency.p50_s for one in served]),
        latency_p99_s=_mean([one.latency.p99_s for one in served]),
        ttft_p99_s=_known_mean([one.ttft.p99_s for one in served if one.ttft]),
        tpot_p99_s=_known_mean([one.tpot.p99_s for one in served if one.tpot]),
    )


def interval(values: Sequence[float], *, lowest: float = -np.inf, highest: float = np.inf) -> Interval:
    """The mean with its 95 % t-interval over independent replications, cut to ``lowest..highest``."""
    sample = np.asarray(values, dtype=np.float64)
    mean = float(sample.mean())
    half = 0.0
    if len(sample) > 1:
        error = float(sample.std(ddof=1)) / float(np.sqrt(len(sample)))
        half = t_quantile(len(sample) - 1, 0.5 + CONFIDENCE / 2) * error
    return Interval(mean=mean, low=max(mean - half, lowest), high=min(mean + half, highest))


def t_quantile(degrees_of_freedom: int, probability: float) -> float:
    """The quantile of Student's t distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees_of_freedom, probability))


def _energy_per_request_j(replications: Sequence[Metrics]) -> float:
    """Mean over the replications that served anything."""
    energies_j = [metrics.energy_per_request_j for metrics in replications]
    known = _known_mean(energies_j)
    if known is None:
        raise InputError(
            "No request was served in any replication.",
            "Host the services, admit some of their requests, or simulate longer.",
        )
    return known


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _known_mean(values: Sequence[float]) -> float | None:
    """The mean of the values that are there (not NaN); None where none is."""
    known = [value for value in values if not np.isnan(value)]
    return _mean(known) if known else None
