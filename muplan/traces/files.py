"""Traces in muplan's own CSV files.

The header is ``arrival_s,service,input_tokens,output_tokens``, with one line for each request in the order of
arrival. A first line ``# duration_s=600.0`` says how long the period is that the trace covers; without it the
period ends one mean inter-arrival time after the last request.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from muplan.errors import InputError
from muplan.serde import write_text
from muplan.traces.columns import read_columns
from muplan.traces.rows import Faults, lines_of, read_bytes, rows_of, seconds_of, tokens_of
from muplan.traces.trace import Trace

_COLUMNS = ("arrival_s", "service", "input_tokens", "output_tokens")
_DURATION = "# duration_s="


def write_trace(trace: Trace, path: Path) -> None:
    """Write a trace as CSV; `read_trace` gives the same requests back, to the last bit.

    Raises
    ------
    InputError
        The file cannot be written, or a service has a name that a line cannot hold.
    """
    for name in trace.services:
        if not name or name != name.strip() or set(name) & set(",\n\r"):
            raise InputError(
                f"The service name {name!r} cannot be written.", "Use letters, digits, dots and dashes."
            )
    text = io.StringIO()
    text.write(f"{_DURATION}{trace.duration_s!r}\n")
    text.write(",".join(_COLUMNS) + "\n")
    columns = (trace.arrival_s, trace.service, trace.input_tokens, trace.output_tokens)
    for arrival_s, service, inputs, outputs in zip(*(column.tolist() for column in columns), strict=True):
        text.write(f"{arrival_s!r},{trace.services[service]},{inputs},{outputs}\n")
    write_text(text.getvalue(), path)


def read_trace(path: Path) -> Trace:
    """Read a trace in muplan's CSV form.

    Services are numbered in the order of their names.

    Raises
    ------
    InputError
        The file cannot be read, or has faults; they are listed with their lines (the first 50).
    """
    data = read_bytes(path)
    trace = _read_at_once(data, path)
    return _read_by_rows(data, path) if trace is None else trace


def covered_s(arrival_s: NDArray[np.float64], path: Path, remedy: str) -> float:
    """End of the period where a file does not state it: one mean interval after the last request.

    Raises
    ------
    InputError
        There are fewer than two requests, or all come at once; the remedy is the caller's.
    """
    if len(arrival_s) < 2 or arrival_s[-1] == arrival_s[0]:
        raise InputError(
            f"{path} does not say how long a period it covers, and has too few requests to tell.", remedy
        )
    return float(arrival_s[-1] + (arrival_s[-1] - arrival_s[0]) / (len(arrival_s) - 1))


def _read_at_once(data: bytes, path: Path) -> Trace | None:
    """The trace; None where something about the file is unusual."""
    first, *rest = data.split(b"\n", 2)
    duration_s, header_line = math.inf, 0
    if first.startswith(_DURATION.encode()):
        try:
            duration_s, header_line = float(first.removeprefix(_DURATION.encode())), 1
        except ValueError:
            return None
        if not 0.0 < duration_s < math.inf:
            return None
    header = rest[0] if header_line and rest else first
    if header.strip() != ",".join(_COLUMNS).encode():
        return None
    columns = read_columns(
        data,
        header_line,
        {"arrival_s": "seconds", "service": "text", "input_tokens": "tokens", "output_tokens": "tokens"},
    )
    if columns is None or columns["input_tokens"].min() < 1:
        return None
    arrival_s = columns["arrival_s"]
    if (np.diff(arrival_s) < 0.0).any() or arrival_s[-1] >= duration_s:
        return None
    return Trace(
        services=tuple(columns["service.names"].tolist()),
        arrival_s=arrival_s,
        service=columns["service"],
        input_tokens=columns["input_tokens"],
        output_tokens=columns["output_tokens"],
        duration_s=duration_s if header_line else _covered_s(arrival_s, path),
    )


def _read_by_rows(data: bytes, path: Path) -> Trace:
    """The trace, or the faults of the file with their lines."""
    lines = lines_of(data, path)
    faults = Faults(str(path))
    duration_s = _duration_s(lines, faults)
    first = 1 if duration_s is not None else 0
    rows = list(rows_of(lines, first, _COLUMNS, faults))
    limit_s = math.inf if duration_s is None else duration_s
    arrivals, previous_s = np.zeros(len(rows)), 0.0
    for index, (line, row) in enumerate(rows):
        arrivals[index] = arrival_s = seconds_of(row[0], line, faults, "arrival_s")
        if arrival_s < previous_s:
            faults.add(line, "arrival_s", f"{row[0]} is before the request above, at {previous_s!r}")
        if arrival_s >= limit_s:
            faults.add(line, "arrival_s", f"{row[0]} is not before the end of the trace, {limit_s!r}")
        if not row[1]:
            faults.add(line, "service", "the name is empty")
        previous_s = previous_s if math.isnan(arrival_s) else arrival_s
    inputs = tokens_of(rows, 2, "input_tokens", 1, faults)
    outputs = tokens_of(rows, 3, "output_tokens", 0, faults)
    faults.raise_any("Correct these lines; docs/formats.md describes the columns of a trace.")
    names = sorted({row[1] for _, row in rows})
    position = {name: index for index, name in enumerate(names)}
    return Trace(
        services=tuple(names),
        arrival_s=arrivals,
        service=np.array([position[row[1]] for _, row in rows], dtype=np.int32),
        input_tokens=np.array(inputs, dtype=np.int32),
        output_tokens=np.array(outputs, dtype=np.int32),
        duration_s=_covered_s(arrivals, path) if duration_s is None else duration_s,
    )


def _duration_s(lines: Sequence[str], faults: Faults) -> float | None:
    """Read the duration that the first line states; None where it states none."""
    if not lines or not lines[0].startswith(_DURATION):
        return None
    duration_s = seconds_of(lines[0].removeprefix(_DURATION).strip(), 1, faults, "duration_s")
    if duration_s == 0.0:
        faults.add(1, "duration_s", "must be above 0")
    return duration_s


def _covered_s(arrival_s: NDArray[np.float64], path: Path) -> float:
    return covered_s(arrival_s, path, f"Begin the file with a line such as '{_DURATION}600'.")
