"""Evaluation: deployments simulated on the traces that the search may see.

Every deployment is simulated on the same training traces (common random numbers); predictions come
from other traces, which no search has seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muplan.plan import Deployment, Interval, Prediction
from muplan.problem.problem import Problem
from muplan.serving.metrics import Metrics
from muplan.serving.prediction import interval, predict, simulate_each
from muplan.traces.generate import Purpose, generate_trace, trace_rng
from muplan.traces.trace import Trace

_TRAINING_REQUESTS = 300_000
_MOST_REQUESTS, _MOST_REQUESTS_PER_SERVICE = 1_000_000, 10_000
_CLUMPS_SEEN = 5.0
"""Independent misses that the training traces should hold of a service just at its target."""
_LONGEST = 4.0
"""Training traces last at most this many times as long as those of a judgement."""
_AFFORDED = 20_000_000
"""Requests that the evaluations of one descent or ascent may simulate in all."""
_SIDE_BY_SIDE = 2
"""Traces simulated before an early stop is considered; the same on every machine, as results are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What a deployment brought on the training traces.

    Parameters
    ----------
    power_w
        Mean power of the fleet.
    goodput_rps
        Requests per second within their limits.
    margins
        By service: attainment (of the admitted requests) less the target, with its 95 % interval.
    noise
        By service: standard error of the attainment over as many replications as a judgement has.
    """

    power_w: float
    goodput_rps: float
    energy_per_request_j: float
    margins: dict[str, Interval]
    noise: dict[str, float]

    def holds(self, caution: float = 1.0) -> bool:
        """Whether every service is at its target with confidence.

        The lower end of its interval is, and so is its mean less ``caution`` standard errors of a
        judgement.
        """
        return all(
            margin.low >= 0.0 and margin.mean >= caution * self.noise[name]
            for name, margin in self.margins.items()
        )

    def shortfall_of(self, service: str, caution: float = 1.0) -> float:
        """How far a service is from holding; negative or 0 where it holds."""
        margin = self.margins[service]
        return max(-margin.low, caution * self.noise[service] - margin.mean)

    def shortfall(self, caution: float = 1.0) -> float:
        """How far all services are from holding; 0 where they do."""
        return sum(max(0.0, self.shortfall_of(name, caution)) for name in self.margins)

    @property
    def worst(self) -> float:
        """The smallest mean margin."""
        return min(margin.mean for margin in self.margins.values())


class Judge:
    """Simulates deployments of a problem.

    The search has twice as many training traces as a prediction has replications, of the length that
    `training_s` gives. `see_more` adds as many again.
    """

    def __init__(self, problem: Problem, *, seed: int) -> None:
        simulation = problem.workload.simulation
        self.problem = problem
        self.seed = seed
        self.num_evaluations = 0
        self._duration_s = training_s(problem)
        # A judgement averages fewer and shorter (or longer) replications than these traces.
        self._noise_factor = math.sqrt(self._duration_s / simulation.duration_s / simulation.replications)
        self._traces: tuple[Trace, ...] = ()
        self.see_more()

    @property
    def num_traces(self) -> int:
        """Number of training traces."""
        return len(self._traces)

    def see_more(self) -> None:
        """Add training traces, as many as a judgement has replications twice over."""
        known = len(self._traces)
        self._traces += tuple(
            _training_trace(self.problem, self._duration_s, self.seed, number)
            for number in range(known, known + 2 * self.problem.workload.simulation.replications)
        )

    def affordable(self, most: int, *, least: int, part: float = 1.0) -> int:
        """How many evaluations to spend where ``most`` are wanted: fewer, the more requests each takes.

        ``part`` of what a descent may spend.
        """
        requests = sum(len(trace) for trace in self._traces)
        return max(least, min(most, int(part * _AFFORDED) // max(requests, 1)))

    def evaluate(self, deployment: Deployment, *, stop_early: bool = False) -> Evaluation:
        """Simulate on the training traces.

        Parameters
        ----------
        stop_early
            Whether to stop at the first trace on which a service misses its target by more than the
            misses that the target allows; such a deployment does not hold.
        """
        self.num_evaluations += 1
        runs: list[Metrics] = []
        step = _SIDE_BY_SIDE if stop_early else len(self._traces)
        for first in range(0, len(self._traces), step):
            traces = self._traces[first : first + step]
            rngs = [np.random.default_rng(0) for _ in traces]
            latest = simulate_each(self.problem, deployment, traces, rngs=rngs)
            runs += latest
            if stop_early and any(self._is_hopeless(deployment, run) for run in latest):
                break
        margins = {
            service.name: self._margins(deployment, service.name, runs) for service in self.problem.services
        }
        return Evaluation(
            power_w=_mean([run.power_w for run in runs]),
            goodput_rps=_mean([run.goodput_rps for run in runs]),
            energy_per_request_j=_mean([run.energy_per_request_j for run in runs]),
            margins={name: interval(values) for name, values in margins.items()},
            noise={name: self._noise(values) for name, values in margins.items()},
        )

    def predict(self, deployment: Deployment) -> Prediction:
        """Simulate on the judging traces."""
        return predict(self.problem, deployment, seed=self.seed, purpose=Purpose.JUDGING)

    def admitted_target(self, deployment: Deployment, service: str) -> float:
        """The attainment that a service must reach when rejected requests count as misses.

        None where serving sheds what it cannot serve in time: all that is in time counts.
        """
        target = self.problem.service(service).attainment
        if self.problem.workload.sheds_load:
            return 0.0
        if self.problem.workload.admits_part:
            return target * deployment.admitted.get(service, 1.0)
        return target

    def meets_targets(self, deployment: Deployment, prediction: Prediction) -> bool:
        """Whether every service reaches its target in the mean."""
        return all(
            item.attainment.mean >= self.admitted_target(deployment, item.service)
            for item in prediction.services
        )

    def _is_hopeless(self, deployment: Deployment, run: Metrics) -> bool:
        for service in self.problem.services:
            allowed = 1.0 - service.attainment
            missing = self.admitted_target(deployment, service.name) - run.service(service.name).attainment
            if missing > allowed + 3.0 / max(run.service(service.name).num_requests, 1):
                return True
        return False

    def _margins(self, deployment: Deployment, service: str, runs: Sequence[Metrics]) -> list[float]:
        target = self.admitted_target(deployment, service)
        return [run.service(service).attainment - target for run in runs]

    def _noise(self, margins: Sequence[float]) -> float:
        return float(np.std(margins, ddof=1)) * self._noise_factor if len(margins) > 1 else 0.0


def training_s(problem: Problem) -> float:
    """How long each training trace lasts, seconds.

    As long as all together hold some 300,000 requests, and of every service as many as bring five
    independent misses where it is just at its target: the misses of bursty arrivals come in clumps, of
    (1 + c²) / 2 requests on average where their number is geometric. Bounded by a million requests in
    all, or 10,000 for every service, and by four times the length of a judgement's replications.
    """
    simulation = problem.workload.simulation
    num_traces = 2 * simulation.replications
    rate_rps = sum(service.rate_rps for service in problem.services)
    needed_s = max(
        _CLUMPS_SEEN * max(1.0, (1.0 + service.cv**2) / 2.0) / service.rate_rps / (1.0 - service.attainment)
        for service in problem.services
    )
    most = max(_MOST_REQUESTS, _MOST_REQUESTS_PER_SERVICE * len(problem.services))
    measured_s = min(max(_TRAINING_REQUESTS / rate_rps, needed_s), most / rate_rps) / num_traces
    return min(simulation.warm_up_s + simulation.cool_down_s + measured_s, _LONGEST * simulation.duration_s)


def _training_trace(problem: Problem, duration_s: float, seed: int, number: int) -> Trace:
    rng = trace_rng(seed, number, Purpose.TRAINING)
    return generate_trace(problem.services, duration_s=duration_s, rng=rng)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
