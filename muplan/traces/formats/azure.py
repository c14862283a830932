"""The Azure LLM inference traces of 2023 and 2024 (Azure/AzurePublicDataset, CC-BY 4.0)."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from muplan.traces.columns import read_columns
from muplan.traces.formats.recorded import recorded_trace
from muplan.traces.rows import Faults, lines_of, read_bytes, rows_of, tokens_of
from muplan.traces.trace import Trace

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


def import_azure(path: Path, service: str) -> Trace:
    """Read a CSV of the Azure LLM inference traces as the requests of one service.

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
    data = read_bytes(path)
    columns = None
    if data.split(b"\n", 1)[0].strip() == ",".join(_COLUMNS).encode():
        columns = read_columns(data, 0, dict(zip(_COLUMNS, ("timestamp", "tokens", "tokens"), strict=True)))
    if columns is not None and min(columns[name].min() for name in _COLUMNS[1:]) >= 1:
        stamps, inputs, outputs = (columns[name] for name in _COLUMNS)
    else:
        stamps, inputs, outputs = _by_rows(data, path)
    return recorded_trace(
        path,
        (service,),
        (stamps - stamps.min()) / 1e6,
        np.zeros(len(stamps), dtype=np.int32),
        inputs,
        outputs,
    )


def _by_rows(data: bytes, path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The columns, or the faults of the file with their lines."""
    faults = Faults(str(path))
    rows = list(rows_of(lines_of(data, path), 0, _COLUMNS, faults))
    stamps = [_microseconds(row[0], line, faults) for line, row in rows]
    inputs = tokens_of(rows, 1, _COLUMNS[1], 1, faults)
    outputs = tokens_of(rows, 2, _COLUMNS[2], 1, faults)
    faults.raise_any("Correct or remove these lines.")
    return np.array(stamps), np.array(inputs, dtype=np.int32), np.array(outputs, dtype=np.int32)


def _microseconds(field: str, line: int, faults: Faults) -> int:
    """A time stamp as microseconds since 1970."""
    try:
        stamp = datetime.fromisoformat(field)
    except ValueError:
        faults.add(line, "TIMESTAMP", f"{field!r} is no time such as 2023-11-16 18:17:03.9799600")
        return 0
    since = (stamp if stamp.tzinfo is not None else stamp.replace(tzinfo=UTC)) - datetime(
        1970, 1, 1, tzinfo=UTC
    )
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
