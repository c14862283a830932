"""Operations on traces: each takes traces and returns one, and leaves those it was given as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from muplan.errors import InputError
from muplan.traces.trace import Trace

SHIFT_S = 60.0
"""How far copies of a trace are turned against each other where its rate is multiplied."""


def slice_trace(trace: Trace, *, start_s: float = 0.0, stop_s: float | None = None) -> Trace:
    """Cut a part out of a trace; its time begins at ``start_s``.

    Parameters
    ----------
    start_s, stop_s
        The part, from ``start_s`` up to but without ``stop_s``; to the end where that is None. Seconds.

    Raises
    ------
    InputError
        The part is empty, or not within the trace.
    """
    stop_s = trace.duration_s if stop_s is None else stop_s
    if not 0.0 <= start_s < stop_s <= trace.duration_s:
        raise InputError(
            f"There is no part from {start_s:g} s to {stop_s:g} s in a trace of {trace.duration_s:g} s.",
            "Give a beginning before an end, both within the trace.",
        )
    first, last = np.searchsorted(trace.arrival_s, (start_s, stop_s))
    part = np.arange(first, last)
    return _requests(trace, part, arrival_s=trace.arrival_s[part] - start_s, duration_s=stop_s - start_s)


def thin(trace: Trace, share: float, rng: np.random.Generator) -> Trace:
    """Keep each request with a probability, independently; a Poisson process stays one.

    Parameters
    ----------
    share
        Probability to be kept, above 0 and at most 1.

    Raises
    ------
    InputError
        The share is no such probability.
    """
    if not 0.0 < share <= 1.0:
        raise InputError(
            f"A share of {share:g} cannot be kept of a trace.", "Give a share above 0 and at most 1."
        )
    kept = np.flatnonzero(rng.random(len(trace)) < share)
    return _requests(trace, kept, arrival_s=trace.arrival_s[kept], duration_s=trace.duration_s)


def superpose(traces: Sequence[Trace]) -> Trace:
    """Lay traces of equal length over each other; requests of services of one name become one service.

    Services are numbered in the order in which they first stand in the traces, and requests that come at
    once keep the order of the traces.

    Raises
    ------
    InputError
        There is no trace, or the traces differ in length.
    """
    lengths_s = sorted({trace.duration_s for trace in traces})
    if len(lengths_s) != 1:
        found = f"Traces of {lengths_s[0]:g} to {lengths_s[-1]:g} s differ" if lengths_s else "No traces"
        raise InputError(
            f"{found} and cannot be laid over each other.",
            "Cut them to one length first: muplan trace convert --stop.",
        )
    names = tuple(dict.fromkeys(name for trace in traces for name in trace.services))
    service = [
        np.array([names.index(name) for name in trace.services], dtype=np.int32)[trace.service]
        for trace in traces
    ]
    arrival_s = np.concatenate([trace.arrival_s for trace in traces])
    order = np.argsort(arrival_s, kind="stable")
    return Trace(
        services=names,
        arrival_s=arrival_s[order],
        service=np.concatenate(service)[order],
        input_tokens=np.concatenate([trace.input_tokens for trace in traces])[order],
        output_tokens=np.concatenate([trace.output_tokens for trace in traces])[order],
        duration_s=lengths_s[0],
    )


def rotate(trace: Trace, phase_s: float) -> Trace:
    """Turn a trace in its circle: what comes at ``phase_s`` comes at 0, what came before follows at the end.

    Parameters
    ----------
    phase_s
        At least 0 and less than the trace's length, seconds.

    Raises
    ------
    InputError
        The phase is not within the trace.
    """
    if not 0.0 <= phase_s < trace.duration_s:
        raise InputError(
            f"A trace of {trace.duration_s:g} s has no moment {phase_s:g} s.", "Give one within the trace."
        )
    first = int(np.searchsorted(trace.arrival_s, phase_s))
    arrival_s = np.concatenate(
        [trace.arrival_s[first:] - phase_s, trace.arrival_s[:first] + (trace.duration_s - phase_s)]
    )
    order = np.roll(np.arange(len(trace)), -first)
    return _requests(trace, order, arrival_s=arrival_s, duration_s=trace.duration_s)


def multiply(trace: Trace, factor: float, rng: np.random.Generator, *, shift_s: float = SHIFT_S) -> Trace:
    """Change the rate of a trace and leave its time as it is.

    As many whole copies as ``factor`` holds are laid over each other, and one that is thinned to what is
    left. All but the first are turned in their circle by a random phase below ``shift_s``: bursts shorter
    than that become independent, what changes over longer times stays.

    Parameters
    ----------
    factor
        Of the rate, above 0.
    shift_s
        Most that a copy is turned by, above 0, seconds; at most the length of the trace.

    Raises
    ------
    InputError
        The factor is not above 0 and finite.
    """
    if not (factor > 0.0 and math.isfinite(factor)):
        raise InputError(f"A rate cannot be multiplied by {factor:g}.", "Give a finite factor above 0.")
    rest, whole = math.modf(factor)
    copies = [trace] * int(whole) + ([thin(trace, rest, rng)] if rest > 0.0 else [])
    phases_s = rng.random(len(copies)) * min(shift_s, np.nextafter(trace.duration_s, 0.0))
    phases_s[0] = 0.0
    return superpose([rotate(copy, float(phase)) for copy, phase in zip(copies, phases_s, strict=True)])


def convert_traces(
    traces: Sequence[Trace],
    *,
    service: str | None,
    start_s: float,
    stop_s: float | None,
    keep: float,
    multiply_by: float,
    faster_by: float,
    rng: np.random.Generator,
) -> Trace:
    """Apply operations in a fixed order.

    Of each trace one service and a part are taken and laid over each other; then the whole is thinned,
    its rate multiplied, its time sped up.

    Raises
    ------
    InputError
        As the operations.
    """
    if service is not None:
        traces = [trace.only(service) for trace in traces]
    if start_s != 0.0 or stop_s is not None:
        traces = [slice_trace(trace, start_s=start_s, stop_s=stop_s) for trace in traces]
    trace = superpose(traces) if len(traces) > 1 else traces[0]
    if keep != 1.0:
        trace = thin(trace, keep, rng)
    if multiply_by != 1.0:
        trace = multiply(trace, multiply_by, rng)
    return trace.faster(faster_by) if faster_by != 1.0 else trace


def _requests(
    trace: Trace, index: NDArray[np.intp], *, arrival_s: NDArray[np.float64], duration_s: float
) -> Trace:
    """Some requests of a trace at other times; rounding moves none to the end of the period or past it."""
    return Trace(
        services=trace.services,
        arrival_s=np.minimum(arrival_s, np.nextafter(duration_s, 0.0)),
        service=trace.service[index],
        input_tokens=trace.input_tokens[index],
        output_tokens=trace.output_tokens[index],
        duration_s=duration_s,
    )
