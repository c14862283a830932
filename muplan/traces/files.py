"""Traces in CSV files: muplan's own form, and the public Azure LLM inference traces.

muplan's form has the header ``arrival_s,service,input_tokens,output_tokens`` and one line for each
request in the order of arrival. A first line ``# duration_s=600.0`` says how long the period is that
the trace covers; without it the period ends one mean inter-arrival time after the last request.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from muplan.errors import Fault, InputError
from muplan.serde import write_text
from muplan.traces.trace import Trace

_COLUMNS = ("arrival_s", "service", "input_tokens", "output_tokens")
_AZURE_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_DURATION = "# duration_s="
_MAX_TOKENS = 2**31 - 1
_MAX_FAULTS = 50


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
    lines = _read_text(path).split("\n")
    faults = _Faults(str(path))
    duration_s = _duration_s(lines, faults)
    first = 1 if duration_s is not None else 0
    rows = list(_rows(lines, first, _COLUMNS, faults))
    limit_s = math.inf if duration_s is None else duration_s
    arrivals, previous_s = np.zeros(len(rows)), 0.0
    for index, (line, row) in enumerate(rows):
        arrivals[index] = arrival_s = _seconds(row[0], line, faults)
        if arrival_s < previous_s:
            faults.add(line, "arrival_s", f"{row[0]} is before the request above, at {previous_s!r}")
        if arrival_s >= limit_s:
            faults.add(line, "arrival_s", f"{row[0]} is not before the end of the trace, {limit_s!r}")
        if not row[1]:
            faults.add(line, "service", "the name is empty")
        previous_s = previous_s if math.isnan(arrival_s) else arrival_s
    inputs = _tokens(rows, 2, "input_tokens", 1, faults)
    outputs = _tokens(rows, 3, "output_tokens", 0, faults)
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


def import_azure(path: Path, service: str) -> Trace:
    """Read a CSV of the Azure LLM inference traces (AzurePublicDataset) as the requests of one service.

    The file has the columns TIMESTAMP, ContextTokens and GeneratedTokens, as in the traces of 2023
    and 2024. Time starts at the first request; requests are sorted by their time stamps, which are
    read to the microsecond and in UTC where they name no zone.

    Parameters
    ----------
    service
        Name that the requests are given.

    Raises
    ------
    InputError
        The file cannot be read, or has faults; they are listed with their lines (the first 50).
    """
    faults = _Faults(str(path))
    rows = list(_rows(_read_text(path).split("\n"), 0, _AZURE_COLUMNS, faults))
    stamps = [_timestamp(row[0], line, faults) for line, row in rows]
    inputs = _tokens(rows, 1, "ContextTokens", 1, faults)
    outputs = _tokens(rows, 2, "GeneratedTokens", 1, faults)
    faults.raise_any("Correct or remove these lines.")
    first = min(stamps)
    arrivals = np.array([(stamp - first).total_seconds() for stamp in stamps])
    order = np.argsort(arrivals, kind="stable")
    return Trace(
        services=(service,),
        arrival_s=arrivals[order],
        service=np.zeros(len(rows), dtype=np.int32),
        input_tokens=np.array(inputs, dtype=np.int32)[order],
        output_tokens=np.array(outputs, dtype=np.int32)[order],
        duration_s=_covered_s(arrivals[order], path),
    )


class _Faults:
    """Collects the faults of one file."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._found: list[Fault] = []

    def add(self, line: int, key: str, message: str) -> None:
        self._found.append(Fault(file=self._file, key=key, line=line, message=message))

    def raise_any(self, remedy: str) -> None:
        faults = sorted(self._found, key=lambda fault: fault.line)
        if len(faults) > _MAX_FAULTS:
            error = InputError.from_faults(faults[:_MAX_FAULTS], remedy)
            problem = error.problem.replace(f"{_MAX_FAULTS} faults", f"{len(faults)} faults", 1)
            raise InputError(f"{problem}\n  … and {len(faults) - _MAX_FAULTS} more", remedy, faults)
        if faults:
            raise InputError.from_faults(faults, remedy)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.", "Check the path.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}).", "Save it as UTF-8.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from None


def _duration_s(lines: Sequence[str], faults: _Faults) -> float | None:
    """Read the duration that the first line states; None where it states none."""
    if not lines or not lines[0].startswith(_DURATION):
        return None
    duration_s = _seconds(lines[0].removeprefix(_DURATION).strip(), 1, faults, key="duration_s")
    if duration_s == 0.0:
        faults.add(1, "duration_s", "must be above 0")
    return duration_s


def _rows(
    lines: Sequence[str], first: int, columns: tuple[str, ...], faults: _Faults
) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every request; a missing header ends the reading."""
    header = tuple(lines[first].strip().split(",")) if first < len(lines) else ()
    if header != columns:
        faults.add(first + 1, "", f"expected the header {','.join(columns)}, found {','.join(header)!r}")
        faults.raise_any("Name a file of that form.")
    if not any(line.strip() for line in lines[first + 1 :]):
        faults.add(first + 1, "", "no request follows the header")
        faults.raise_any("Name a file with requests.")
    # Without quoting a line is a row, and a row a line.
    for line, row in enumerate((text.split(",") for text in lines[first + 1 :]), start=first + 2):
        if len(row) == len(columns):
            yield line, [field.strip() for field in row]
        elif row != [""]:
            faults.add(line, "", f"expected {len(columns)} fields, found {len(row)}")


def _seconds(field: str, line: int, faults: _Faults, key: str = "arrival_s") -> float:
    """Read a time; NaN, with a fault, where it is none."""
    try:
        value = float(field)
    except ValueError:
        faults.add(line, key, f"{field!r} is no number")
        return math.nan
    if not math.isfinite(value) or value < 0.0:
        faults.add(line, key, f"must be finite and at least 0 (found {field})")
        return math.nan
    return value


def _timestamp(field: str, line: int, faults: _Faults) -> datetime:
    try:
        stamp = datetime.fromisoformat(field)
    except ValueError:
        faults.add(line, "TIMESTAMP", f"{field!r} is no time such as 2023-11-16 18:17:03.9799600")
        return datetime.max.replace(tzinfo=UTC)
    return stamp if stamp.tzinfo is not None else stamp.replace(tzinfo=UTC)


def _tokens(
    rows: Sequence[tuple[int, list[str]]], column: int, name: str, minimum: int, faults: _Faults
) -> list[int]:
    """Whole numbers of one column."""
    values = []
    for line, row in rows:
        field = row[column]
        value = int(field) if field.isascii() and field.isdigit() and len(field) <= 10 else -1
        if not minimum <= value <= _MAX_TOKENS:
            faults.add(
                line, name, f"must be a whole number from {minimum} to {_MAX_TOKENS} (found {field!r})"
            )
        values.append(value)
    return values


def _covered_s(arrivals: np.ndarray[tuple[int], np.dtype[np.float64]], path: Path) -> float:
    """End of the period where the file does not state it: one mean interval after the last request."""
    if len(arrivals) < 2 or arrivals[-1] == arrivals[0]:
        raise InputError(
            f"{path} does not say how long a period it covers, and has too few requests to tell.",
            f"Begin the file with a line such as '{_DURATION}600'.",
        )
    return float(arrivals[-1] + (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1))
