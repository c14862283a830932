"""The BurstGPT traces (HPMLL/BurstGPT, arXiv 2401.17644): requests to ChatGPT and GPT-4 over 121 days."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muplan.errors import InputError
from muplan.traces.columns import Kind, read_columns
from muplan.traces.formats.recorded import recorded_trace
from muplan.traces.rows import Faults, lines_of, read_bytes, rows_of, seconds_of, tokens_of
from muplan.traces.trace import Trace

_COLUMNS: dict[str, Kind] = {
    "Timestamp": "seconds",
    "Model": "text",
    "Request tokens": "tokens",
    "Response tokens": "tokens",
    "Log Type": "text",
}


def import_burstgpt(
    path: Path, *, service: str | None = None, model: str | None = None, log_type: str | None = None
) -> tuple[Trace, int]:
    """Read a CSV of BurstGPT.

    Its columns Timestamp (seconds), Model, Request tokens, Response tokens and Log Type are read, others
    are not. Requests without prompt or reply failed; they are left out. Time stamps are whole seconds in
    much of the record, so that many requests come at once.

    Parameters
    ----------
    service
        Name that all requests are given; the name of their model, in small letters, where None.
    model
        The model whose requests are kept, as the file names it; of all models where None.
    log_type
        The log type whose requests are kept, as the file names it; of all types where None.

    Returns
    -------
    trace
        The requests.
    num_failed
        Requests of those kept that failed and are left out.

    Raises
    ------
    InputError
        The file cannot be read, has faults (listed with their lines, the first 50), or nothing is kept.
    """
    data = read_bytes(path)
    header = {name.strip() for name in data.split(b"\n", 1)[0].decode("utf-8", "replace").split(",")}
    columns = None
    if set(_COLUMNS) <= header:
        columns = read_columns(data, 0, _COLUMNS)
    if columns is None:
        columns = _by_rows(data, path)
    kept = _members(columns, "Model", model, path) & _members(columns, "Log Type", log_type, path)
    served = kept & (columns["Request tokens"] > 0) & (columns["Response tokens"] > 0)
    if not served.any():
        raise InputError(f"{path} has no such request with a reply.", "Ask for another model or log type.")
    present, index = np.unique(columns["Model"][served], return_inverse=True)
    names = tuple(str(columns["Model.names"][place]).lower().replace(" ", "-") for place in present)
    if service is not None:
        names, index = (service,), np.zeros_like(index)
    trace = recorded_trace(
        path,
        names,
        columns["Timestamp"][served],
        index.astype(np.int32),
        columns["Request tokens"][served],
        columns["Response tokens"][served],
    )
    return trace, int((kept & ~served).sum())


def _members(
    columns: dict[str, NDArray[Any]], column: str, name: str | None, path: Path
) -> NDArray[np.bool_]:
    """Which rows have a name in a column; all where it is None."""
    if name is None:
        return np.ones(len(columns[column]), dtype=np.bool_)
    names = columns[f"{column}.names"].tolist()
    if name not in names:
        raise InputError(
            f"{path} has no {name!r} in the column {column}.", f"It has {', '.join(map(repr, names))}."
        )
    return np.asarray(columns[column] == names.index(name))


def _by_rows(data: bytes, path: Path) -> dict[str, NDArray[Any]]:
    """The columns, or the faults of the file with their lines."""
    faults = Faults(str(path))
    rows = list(rows_of(lines_of(data, path), 0, tuple(_COLUMNS), faults, optional=True))
    columns: dict[str, NDArray[Any]] = {
        "Timestamp": np.array([seconds_of(row[0], line, faults, "Timestamp") for line, row in rows]),
        "Request tokens": np.array(tokens_of(rows, 2, "Request tokens", 0, faults), dtype=np.int64),
        "Response tokens": np.array(tokens_of(rows, 3, "Response tokens", 0, faults), dtype=np.int64),
    }
    for place, name in ((1, "Model"), (4, "Log Type")):
        for line, row in rows:
            if not row[place]:
                faults.add(line, name, "the name is empty")
        names, index = np.unique([row[place] for _, row in rows], return_inverse=True)
        columns[f"{name}.names"], columns[name] = names, index.astype(np.int32)
    faults.raise_any("Correct or remove these lines.")
    for name in ("Request tokens", "Response tokens"):
        columns[name] = columns[name].astype(np.int32)
    return columns
