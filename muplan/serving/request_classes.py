"""Classes of the requests of a generate service: by the length of the reply."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muplan.problem.problem import Problem, ResolvedService
from muplan.serving.metrics import Latency, latencies_of, within_limits
from muplan.serving.predictor import class_predictor
from muplan.serving.records import Records


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassMetrics:
    """How the requests of one class fared, over those that arrived in the measured period."""

    from_tokens: int
    below_tokens: int | None
    """Output tokens of the class; None: no bound."""
    num_requests: int
    num_rejected: int
    num_within: int
    latency: Latency
    ttft: Latency
    tpot: Latency

    @property
    def attainment(self) -> float:
        """Share of requests within the limits, rejected ones counted as misses."""
        return self.num_within / self.num_requests


def class_bounds(service: ResolvedService) -> tuple[int, ...]:
    """Output tokens at which a class ends and the next begins, ascending.

    These are the classes of the length predictor: the quantiles 25, 50, 75 and 99 % of the replies that the
    workload expects of the service, whatever a run's own requests are. A service whose lengths are not known
    has no classes.
    """
    if service.request_kind != "generate" or (service.lengths is None and service.trace is None):
        return ()
    return tuple(int(bound) for bound in np.unique(np.ceil(class_predictor(service).bounds)))


def measure_classes(records: Records, problem: Problem) -> dict[str, tuple[ClassMetrics, ...]]:
    """How the classes of each service fared, shortest replies first; those without requests are left out."""
    within, rejected = within_limits(records, problem), records.rejected
    classes = {}
    for number, service in enumerate(problem.services):
        bounds = class_bounds(service)
        mine = np.flatnonzero(records.counted & (records.service == number)) if bounds else np.empty(0, int)
        class_of = np.searchsorted(bounds, records.output_tokens[mine], side="right")
        found = []
        for place in np.unique(class_of).tolist():
            members = mine[class_of == place]
            latency, ttft, tpot = latencies_of(records, members[~rejected[members]])
            found.append(
                ClassMetrics(
                    from_tokens=bounds[place - 1] if place else 1,
                    below_tokens=bounds[place] if place < len(bounds) else None,
                    num_requests=len(members),
                    num_rejected=int(rejected[members].sum()),
                    num_within=int(within[members].sum()),
                    latency=latency,
                    ttft=ttft,
                    tpot=tpot,
                )
            )
        classes[service.name] = tuple(found)
    return classes
