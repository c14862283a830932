"""What a trace holds: rates, burstiness and lengths of each service."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from muplan.serde import Part
from muplan.traces.trace import Trace

WINDOWS_S = (1.0, 10.0, 60.0, 600.0)
"""Windows in which the dispersion of a trace is told."""
_FEWEST_WINDOWS = 10

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


class Dispersion(Part):
    """Variance over mean of the counts in windows of one length: 1 for a Poisson process, more for bursts."""

    window_s: float
    index: float


class ServiceSummary(Part):
    """What a trace holds of one service.

    ``cv`` is the coefficient of variation of the inter-arrival times; None where there are fewer
    than three requests, or all come at once. ``dispersion`` has the windows that the trace holds at
    least ten of.
    """

    service: str
    num_requests: int
    rate_rps: float
    cv: float | None
    dispersion: tuple[Dispersion, ...]
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
        dispersion=_dispersion(trace),
        input_tokens=_length_summary(trace.input_tokens) if len(trace) else None,
        output_tokens=_length_summary(trace.output_tokens) if len(trace) else None,
    )


def _dispersion(trace: Trace) -> tuple[Dispersion, ...]:
    """Indices of dispersion in the windows that the trace holds enough of."""
    found = []
    for window_s in WINDOWS_S:
        if trace.duration_s < _FEWEST_WINDOWS * window_s:
            break
        index = count_dispersion(trace.arrival_s, window_s=window_s, duration_s=trace.duration_s)
        if index is not None:
            found.append(Dispersion(window_s=window_s, index=index))
    return tuple(found)


def count_dispersion(arrival_s: Floats, *, window_s: float, duration_s: float) -> float | None:
    """Index of dispersion of counts: variance over mean of the arrivals in windows of one length.

    The windows begin at 0 and lie side by side; what is left of the period at its end is not counted.

    Parameters
    ----------
    arrival_s
        Arrival times in [0, duration_s), seconds.

    Returns
    -------
    index
        None where fewer than two whole windows fit, or they hold no arrival.
    """
    num_windows = int(duration_s / window_s)
    places = (arrival_s / window_s).astype(np.intp)
    counts = np.bincount(places[places < num_windows], minlength=num_windows)
    if num_windows < 2 or not counts.any():
        return None
    return float(counts.var(ddof=1) / counts.mean())


def _length_summary(tokens: Tokens) -> LengthSummary:
    p10, p50, p90, p99 = (float(value) for value in np.quantile(tokens, (0.1, 0.5, 0.9, 0.99)))
    return LengthSummary(
        mean=float(tokens.mean()), p10=p10, p50=p50, p90=p90, p99=p99, maximum=int(tokens.max())
    )
