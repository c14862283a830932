"""Read text row by row, with the line of every fault.

Slow and exact: files without a fault are read by `muplan.traces.columns`, which is many times as fast, and
come here only where something about them is unusual.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from muplan.errors import Fault, InputError

MAX_TOKENS = 2**31 - 1
_MAX_FAULTS = 50


class Faults:
    """Collects the faults of one file."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._found: list[Fault] = []

    def add(self, line: int, key: str, message: str) -> None:
        """Note a fault."""
        self._found.append(Fault(file=self._file, key=key, line=line, message=message))

    def raise_any(self, remedy: str) -> None:
        """Raise an InputError that lists the faults, the first fifty with their text."""
        faults = sorted(self._found, key=lambda fault: fault.line)
        if len(faults) > _MAX_FAULTS:
            error = InputError.from_faults(faults[:_MAX_FAULTS], remedy)
            problem = error.problem.replace(f"{_MAX_FAULTS} faults", f"{len(faults)} faults", 1)
            raise InputError(f"{problem}\n  … and {len(faults) - _MAX_FAULTS} more", remedy, faults)
        if faults:
            raise InputError.from_faults(faults, remedy)


def read_bytes(path: Path) -> bytes:
    """Read a file, without its byte order mark.

    Raises
    ------
    InputError
        The file cannot be read.
    """
    try:
        return path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.", "Check the path.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from None


def lines_of(data: bytes, path: Path) -> list[str]:
    """The lines of a text, without their ends.

    Raises
    ------
    InputError
        The text is not UTF-8.
    """
    try:
        return data.decode("utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text ({error.reason}).", "Save it as UTF-8.") from None


def rows_of(
    lines: Sequence[str], first: int, columns: tuple[str, ...], faults: Faults, *, optional: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Line number and fields of every row, in the order of ``columns``; a missing header ends the reading.

    Parameters
    ----------
    first
        Index of the header among the lines.
    columns
        What the header must say.
    optional
        Whether the header may have further columns, and an order of its own.
    """
    header = [name.strip() for name in lines[first].split(",")] if first < len(lines) else []
    fits = set(columns) <= set(header) if optional else header == list(columns)
    if not fits:
        wanted = "a header with" if optional else "the header"
        faults.add(first + 1, "", f"expected {wanted} {','.join(columns)}, found {','.join(header)!r}")
        faults.raise_any("Name a file of that form.")
    if not any(line.strip() for line in lines[first + 1 :]):
        faults.add(first + 1, "", "no request follows the header")
        faults.raise_any("Name a file with requests.")
    places = [header.index(name) for name in columns]
    # Without quoting a line is a row, and a row a line.
    for line, row in enumerate((text.split(",") for text in lines[first + 1 :]), start=first + 2):
        if len(row) == len(header):
            yield line, [row[place].strip() for place in places]
        elif len(row) > 1 or row[0].strip():
            faults.add(line, "", f"expected {len(header)} fields, found {len(row)}")


def seconds_of(field: str, line: int, faults: Faults, key: str) -> float:
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


def tokens_of(
    rows: Sequence[tuple[int, list[str]]], column: int, name: str, minimum: int, faults: Faults
) -> list[int]:
    """Whole numbers of one column."""
    values = []
    for line, row in rows:
        field = row[column]
        value = int(field) if field.isascii() and field.isdigit() and len(field) <= 10 else -1
        if not minimum <= value <= MAX_TOKENS:
            faults.add(line, name, f"must be a whole number from {minimum} to {MAX_TOKENS} (found {field!r})")
        values.append(value)
    return values
