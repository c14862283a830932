"""Scores of placements: requests in time on training traces, the same for all (common random numbers)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from muplan.plan import Group
from muplan.planning.search.placement import Host, Placement, Site
from muplan.problem.problem import Problem
from muplan.serving import policies
from muplan.serving.in_time import PassBook, is_countable
from muplan.serving.in_time_kernel import Offered
from muplan.serving.layout import Floats, Integers
from muplan.serving.metrics import measure
from muplan.serving.simulator import Simulator
from muplan.traces.generate import Purpose, generate_trace, trace_rng
from muplan.traces.trace import Trace
from muplan.workload import Serving

_CUT = 0.02
"""Part of a trace at either end that is not counted, at least what its queues need to fill and empty."""
_CUT_LIMITS = 5.0
"""The same, in multiples of the longest latency limit."""
_FULL_COST = 10
"""How much longer the full simulator takes for a request than the counts alone, about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Counted requests by service, those in time, and requests served by group, over some traces.

    ``share_by_trace`` is the share in time of each trace.
    """

    offered: Integers
    in_time: Integers
    served: Integers
    share_by_trace: Floats

    @property
    def share(self) -> float:
        """Share of all counted requests that are in time."""
        return float(self.in_time.sum() / max(int(self.offered.sum()), 1))

    @property
    def missed(self) -> Integers:
        """Counted requests that are not in time, by service."""
        return self.offered - self.in_time


def sum_scores(scores: Sequence[Score]) -> Score:
    """The score over the traces of several."""
    return Score(
        offered=np.sum([one.offered for one in scores], axis=0),
        in_time=np.sum([one.in_time for one in scores], axis=0),
        served=np.sum([one.served for one in scores], axis=0),
        share_by_trace=np.concatenate([one.share_by_trace for one in scores]),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Traces to score placements on; ``num_requests`` is the mean number counted of each.

    ``admitted`` is the share of a service's demand that is let in, where it is not all; ``first`` is the
    number of the first trace, so that others than another search's can be drawn.
    """

    seed: int
    num_traces: int
    num_requests: float
    admitted: Mapping[str, float]
    first: int = 0

    def draw(self, problem: Problem) -> list[Sample]:
        """Draw the traces."""
        services = problem.services
        rate_rps = sum(service.rate_rps for service in services)
        limits_s = [min(service.limits.latency_s, service.limits.ttft_s) for service in services]
        duration_s = self.num_requests / rate_rps
        cut_s = max(_CUT * duration_s, _CUT_LIMITS * max(limits_s))
        shares = np.array([self.admitted.get(service.name, 1.0) for service in services])
        samples = []
        for number in range(self.first, self.first + self.num_traces):
            rng = trace_rng(self.seed, number, Purpose.TRAINING)
            trace = generate_trace(services, duration_s=duration_s + 2 * cut_s, rng=rng)
            samples.append(Sample(trace=_let_in(trace, shares), cut_s=cut_s))
        return samples


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A training trace, of which ``cut_s`` at either end are not counted."""

    trace: Trace
    cut_s: float

    def offered(self, num_services: int) -> Integers:
        """Counted requests by service."""
        arrival_s, service = self.trace.arrival_s, self.trace.service
        counted = (arrival_s >= self.cut_s) & (arrival_s < self.trace.duration_s - self.cut_s)
        return np.bincount(service[counted], minlength=num_services)


class Scorer(Protocol):
    """Scores placements; counts the requests it has simulated."""

    num_simulated: int

    @property
    def num_traces(self) -> int:
        """Number of training traces."""

    def score(self, placement: Placement, traces: Sequence[int] | None = None) -> Score:
        """Simulate a placement on some of the traces, or on all."""

    def on(self, training: Training) -> Scorer:
        """The same scorer on other traces."""


def make_scorer(site: Site, training: Training) -> Scorer:
    """The scorer of a workload's own rules: counts alone where they tell, else the full simulator."""
    batches = max(estimate.max_batch for each in site.estimates for estimate in each.values())
    if batches == 1 and not any(site.generates) and is_countable(site.problem.workload.serving):
        return CountingScorer(site, site.problem.workload.serving, training)
    return SimulatingScorer(site, training)


class CountingScorer:
    """Scores placements of forward services in batches of one by `muplan.serving.in_time`.

    Parameters
    ----------
    serving
        The rules; `is_countable` must hold of them.
    """

    def __init__(self, site: Site, serving: Serving, training: Training) -> None:
        self._site, self._book = site, PassBook(site.problem, _kinds(site), serving)
        self._draw(training)

    def _draw(self, training: Training) -> None:
        samples = training.draw(self._site.problem)
        self._offered = [sample.offered(self._site.num_services) for sample in samples]
        self._traces = [
            self._book.offered(
                sample.trace, sample.trace.service.astype(np.int64), sample.cut_s, sample.cut_s
            )
            for sample in samples
        ]
        self.num_simulated = 0

    def on(self, training: Training) -> CountingScorer:
        """The same scorer on other traces."""
        other = copy(self)
        other._draw(training)
        return other

    @property
    def num_traces(self) -> int:
        """Number of training traces."""
        return len(self._traces)

    def only(self, services: Sequence[int]) -> CountingScorer:
        """The same traces without the requests of other services."""
        part = copy(self)
        part._traces = [_only(offered, services) for offered in self._traces]
        others = np.ones(len(self._offered[0]), dtype=np.int64)
        others[list(services)] = 0
        part._offered = [np.where(others, 0, offered) for offered in self._offered]
        return part

    def score(self, placement: Placement, traces: Sequence[int] | None = None) -> Score:
        """Simulate a placement on some of the traces, or on all."""
        placed = self._book.placed([host.shape for host in placement], [host.services for host in placement])
        scores = []
        for number in range(self.num_traces) if traces is None else traces:
            counts = self._book.count(placed, self._traces[number])
            self.num_simulated += len(self._traces[number].arrival_s)
            scores.append(_score(self._offered[number], counts.in_time, counts.served))
        return sum_scores(scores)


class SimulatingScorer:
    """Scores placements by the full simulator, under the workload's rules.

    Its requests count `_FULL_COST` times, so that a budget of requests means about as much time.
    """

    def __init__(self, site: Site, training: Training) -> None:
        self._site, self._samples = site, training.draw(site.problem)
        self.num_simulated = 0

    @property
    def num_traces(self) -> int:
        """Number of training traces."""
        return len(self._samples)

    def on(self, training: Training) -> SimulatingScorer:
        """The same scorer on other traces."""
        return SimulatingScorer(self._site, training)

    def score(self, placement: Placement, traces: Sequence[int] | None = None) -> Score:
        """Simulate a placement on some of the traces, or on all; one that finds no room serves nothing."""
        problem, chosen = self._site.problem, range(self.num_traces) if traces is None else traces
        deployment = self._site.deployment(placement, {}, problem.workload.serving)
        simulator = None if deployment is None else Simulator(problem, deployment)
        hosting = [place for place, host in enumerate(placement) if host.services]
        scores = []
        for sample in (self._samples[number] for number in chosen):
            self.num_simulated += _FULL_COST * len(sample.trace)
            in_time, served = np.zeros(len(problem.services), np.int64), np.zeros(len(placement), np.int64)
            if simulator is not None:
                rng = np.random.default_rng(0)
                records = simulator.run(
                    sample.trace, rng=rng, warm_up_s=sample.cut_s, cool_down_s=sample.cut_s, num_samples=1
                )
                in_time[:] = [one.num_within for one in measure(records, problem).services]
                served[hosting] = np.bincount(records.group[~records.rejected], minlength=len(hosting))
            scores.append(_score(sample.offered(len(problem.services)), in_time, served))
        return sum_scores(scores)


def _score(offered: Integers, in_time: Integers, served: Integers) -> Score:
    share = np.array([in_time.sum() / max(int(offered.sum()), 1)])
    return Score(offered=offered, in_time=in_time, served=served, share_by_trace=share)


def _only(offered: Offered, services: Sequence[int]) -> Offered:
    """The requests of some services."""
    kept = np.isin(offered.service, list(services))
    return offered._replace(arrival_s=offered.arrival_s[kept], service=offered.service[kept])


def _let_in(trace: Trace, shares: Floats) -> Trace:
    """The part of a trace that a deployment admits."""
    if (shares >= 1.0).all():
        return trace
    kept = policies.admitted(trace.service.astype(np.int64), shares)
    return replace(
        trace,
        arrival_s=trace.arrival_s[kept],
        service=trace.service[kept],
        input_tokens=trace.input_tokens[kept],
        output_tokens=trace.output_tokens[kept],
    )


def _kinds(site: Site) -> list[dict[int, Group]]:
    """For each shape, a group that hosts one service, by service; forward services alone."""
    kinds: list[dict[int, Group]] = []
    for number, estimates in enumerate(site.estimates):
        kind: dict[int, Group] = {}
        for service in estimates:
            if site.generates[service]:
                continue
            alone = site.deployment((Host(number, (service,)),), {}, site.problem.workload.serving)
            if alone is not None:
                kind[service] = alone.groups[0]
        kinds.append(kind)
    return kinds
