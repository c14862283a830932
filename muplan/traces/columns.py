"""Read the columns of a CSV file at once.

Fast, and only for files about which nothing is unusual: of any other `read_columns` makes nothing, and
`muplan.traces.rows` reads it row by row, to say what is wrong with which line.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from muplan.traces.rows import MAX_TOKENS

Kind = Literal["seconds", "tokens", "text", "timestamp"]

_TYPES: Mapping[Kind, str] = {"seconds": "float64", "text": "category", "timestamp": "str"}
"""What each kind is read as; tokens as what they are, for pandas would take 2.0 for a whole number."""


_SIGNS = tuple(before + sign for before in (b",", b" ", b"\t") for sign in (b"+", b"-"))
"""A sign before a number, which pandas would take for part of a whole number."""


def read_columns(
    data: bytes, header_line: int, columns: Mapping[str, Kind]
) -> dict[str, NDArray[Any]] | None:
    """Read columns of a CSV by their names; None where a row is unusual.

    Parameters
    ----------
    data
        UTF-8 text.
    header_line
        Index of the line that holds the header.
    columns
        What each column holds: seconds, finite and at least 0; tokens, whole numbers from 0 on; text; time
        stamps in the form of ISO 8601, in UTC where they name no zone.

    Returns
    -------
    columns
        By name, each of shape (rows,): float64; int32; for text the names in the array ``NAME.names``,
        sorted, and indices into them as int32; time stamps as whole microseconds since 1970, int64.
    """
    import pandas as pd

    if any(sign in data for sign in _SIGNS) or data.count(b"\r") != data.count(b"\r\n"):
        return None
    # Pandas reads floats exactly by default from 3.0 on, and there deprecates to ask for it.
    is_exact = int(pd.__version__.split(".")[0]) >= 3
    exact: dict[str, Any] = {} if is_exact else {"float_precision": "round_trip"}
    header = data.split(b"\n", header_line + 1)[header_line : header_line + 1]
    num_fields = header[0].count(b",") + 1 if header else 0
    try:
        frame = pd.read_csv(
            io.BytesIO(data),
            skiprows=header_line,
            usecols=list(columns),
            dtype={name: _TYPES[kind] for name, kind in columns.items() if kind in _TYPES},
            low_memory=False,
            na_filter=False,
            quoting=3,  # csv.QUOTE_NONE: a quotation mark is a letter
            **exact,
            skip_blank_lines=True,
        )
        found = {name: _values(frame[name], kind) for name, kind in columns.items()}
    except (ValueError, OverflowError):
        return None
    if len(frame) == 0 or data.count(b",") != _commas_before(data, header_line) + (num_fields - 1) * (
        len(frame) + 1
    ):
        return None
    values: dict[str, NDArray[Any]] = {}
    for name, column in found.items():
        if column is None:
            return None
        if isinstance(column, tuple):
            values[f"{name}.names"], values[name] = column
        else:
            values[name] = column
    return values


def _values(column: Any, kind: Kind) -> NDArray[Any] | tuple[NDArray[Any], NDArray[Any]] | None:
    """Values of one column; None where one of them is out of its range."""
    import pandas as pd

    if kind == "timestamp":
        stamps = pd.to_datetime(column, format="ISO8601", utc=True)
        return np.asarray(stamps.to_numpy(dtype="datetime64[us]").astype(np.int64))
    if kind == "text":
        names = [str(name) for name in column.cat.categories]
        if any(not name or name != name.strip() for name in names):
            return None
        order = np.argsort(names)
        rank = np.empty(len(names), dtype=np.int32)
        rank[order] = np.arange(len(names), dtype=np.int32)
        return np.array(names)[order], rank[column.cat.codes.to_numpy()]
    numbers = column.to_numpy()
    if kind == "tokens":
        is_whole = numbers.dtype.kind == "i" and len(numbers) > 0
        fits = is_whole and numbers.min() >= 0 and numbers.max() <= MAX_TOKENS
        return np.asarray(numbers.astype(np.int32)) if fits else None
    fits = bool(np.isfinite(numbers).all()) and numbers.min(initial=0.0) >= 0.0
    return np.asarray(numbers) if fits else None


def _commas_before(data: bytes, header_line: int) -> int:
    return sum(line.count(b",") for line in data.split(b"\n", header_line)[:header_line])
