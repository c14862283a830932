"""Scores of placements: requests in time on training traces, the same for all (common random numbers)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from muplan.plan import Group
from muplan.planning.search.placement import Host, Placement, Site
from muplan.serving import policies
from muplan.serving.in_time import PassBook
from muplan.serving.in_time_kernel import Offered, Placed
from muplan.serving.layout import Floats, Integers
from muplan.traces.generate import Purpose, generate_trace, trace_rng
from muplan.traces.trace import Trace
from muplan.workload import Serving

_CUT = 0.02
"""Part of a trace at either end that is not counted, at least what its queues need to fill and empty."""
_CUT_LIMITS = 5.0
"""The same, in multiples of the longest latency limit."""


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


class Scorer:
    """Scores placements of forward services on training traces.

    Parameters
    ----------
    serving
        The rules; `muplan.serving.in_time.is_countable` must hold of them.
    num_requests
        Mean number of requests counted of each trace.
    admitted
        Share of each service's demand that is let in, where it is not all.
    """

    def __init__(
        self,
        site: Site,
        serving: Serving,
        *,
        seed: int,
        num_traces: int,
        num_requests: float,
        admitted: Mapping[str, float],
    ) -> None:
        services = site.problem.services
        self._book = PassBook(site.problem, _kinds(site), serving)
        rate_rps = sum(service.rate_rps for service in services)
        longest_s = max(service.limits.latency_s for service in services if service.request_kind == "forward")
        duration_s = num_requests / rate_rps
        cut_s = max(_CUT * duration_s, _CUT_LIMITS * longest_s)
        shares = np.array([admitted.get(service.name, 1.0) for service in services])
        self._traces: list[Offered] = []
        self._offered: list[Integers] = []
        for number in range(num_traces):
            rng = trace_rng(seed, number, Purpose.TRAINING)
            trace = generate_trace(services, duration_s=duration_s + 2 * cut_s, rng=rng)
            trace = _let_in(trace, shares) if (shares < 1.0).any() else trace
            service = trace.service.astype(np.int64)
            self._traces.append(self._book.offered(trace, service, cut_s, cut_s))
            counted = (trace.arrival_s >= cut_s) & (trace.arrival_s < trace.duration_s - cut_s)
            self._offered.append(np.bincount(service[counted], minlength=len(services)))
        self.num_simulated = 0

    @property
    def num_traces(self) -> int:
        """Number of training traces."""
        return len(self._traces)

    def score(self, placement: Placement, traces: Sequence[int] | None = None) -> Score:
        """Simulate a placement on some of the traces, or on all."""
        placed, chosen = self._placed(placement), range(self.num_traces) if traces is None else traces
        counts = [self._book.count(placed, self._traces[number]) for number in chosen]
        self.num_simulated += sum(len(self._traces[number].arrival_s) for number in chosen)
        offered = [self._offered[number] for number in chosen]
        return Score(
            offered=np.sum(offered, axis=0),
            in_time=np.sum([count.in_time for count in counts], axis=0),
            served=np.sum([count.served for count in counts], axis=0),
            share_by_trace=np.array(
                [count.in_time.sum() / max(of.sum(), 1) for count, of in zip(counts, offered, strict=True)]
            ),
        )

    def _placed(self, placement: Placement) -> Placed:
        return self._book.placed([host.shape for host in placement], [host.services for host in placement])


def _let_in(trace: Trace, shares: Floats) -> Trace:
    """The part of a trace that a deployment admits."""
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
