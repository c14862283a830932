"""What a trace holds: rates, burstiness and lengths of each service."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from muplan.serde import Part
from muplan.traces.trace import Trace

Floats = NDArray[np.float64]
Tokens = NDArray[np.int32]


class LengthSummary(Part):
    """Mean and quantiles of a token length."""

    mean: float
    p10: float
    p50: float
    p90: float
    p99: float
    maximum: int


class ServiceSummary(Part):
    """What a trace holds of one service.

    ``cv`` is the coefficient of variation of the inter-arrival times; None where there are fewer
    than three requests, or all come at once.
    """

    service: str
    num_requests: int
    rate_rps: float
    cv: float | None
    input_tokens: LengthSummary | None  # None where there are no requests
    output_tokens: LengthSummary | None


class TraceSummary(Part):
    """What a trace holds, service by service."""

    duration_s: float
    num_requests: int
    services: tuple[ServiceSummary, ...]


def describe_trace(trace: Trace) -> TraceSummary:
    """Summarise rates, burstiness and lengths of every service of a trace."""
    return TraceSummary(
        duration_s=trace.duration_s,
        num_requests=len(trace),
        services=tuple(_summary(trace.only(service)) for service in trace.services),
    )


def _summary(trace: Trace) -> ServiceSummary:
    """Summarise a trace of one service."""
    intervals_s = np.diff(trace.arrival_s)
    has_cv = len(trace) >= 3 and intervals_s.sum() > 0.0
    return ServiceSummary(
        service=trace.services[0],
        num_requests=len(trace),
        rate_rps=len(trace) / trace.duration_s,
        cv=float(intervals_s.std() / intervals_s.mean()) if has_cv else None,
        input_tokens=_length_summary(trace.input_tokens) if len(trace) else None,
        output_tokens=_length_summary(trace.output_tokens) if len(trace) else None,
    )


def _length_summary(tokens: Tokens) -> LengthSummary:
    p10, p50, p90, p99 = (float(value) for value in np.quantile(tokens, (0.1, 0.5, 0.9, 0.99)))
    return LengthSummary(
        mean=float(tokens.mean()), p10=p10, p50=p50, p90=p90, p99=p99, maximum=int(tokens.max())
    )
