"""The trace of recorded requests: sorted, with time from the first of them on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muplan.traces.files import covered_s
from muplan.traces.trace import Trace


def recorded_trace(
    path: Path,
    services: tuple[str, ...],
    times_s: NDArray[np.float64],
    service: NDArray[np.int32],
    input_tokens: NDArray[np.int32],
    output_tokens: NDArray[np.int32],
) -> Trace:
    """Make a trace of the requests of a record.

    Requests are sorted by their times, equal ones in the order of the file. Time starts at the first; the
    trace ends one mean inter-arrival time after the last, for a record does not say how long it watched.

    Parameters
    ----------
    path
        The record, to be named where it has too few requests.
    times_s, service, input_tokens, output_tokens
        Columns, all of shape (requests,); ``service`` indexes ``services``.

    Raises
    ------
    InputError
        There are fewer than two requests, or all come at once.
    """
    order = np.argsort(times_s, kind="stable")
    arrival_s = times_s[order] - times_s[order[:1]]
    return Trace(
        services=services,
        arrival_s=arrival_s,
        service=service[order],
        input_tokens=input_tokens[order],
        output_tokens=output_tokens[order],
        duration_s=covered_s(arrival_s, path, "Name a record of more requests, at different times."),
    )
