"""Tables of measured latencies in CSV files, one row for each model, configuration, batch and clock.

`read_latency_table` reads and checks one; `muplan.profiling.imported` makes profiles of it.
docs/formats.md describes the columns.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from muplan.errors import Fault, InputError
from muplan.serde.text import read_text

KEYS = ("model", "tensor_parallel", "pipeline_parallel", "batch_size")
VALUES = (
    "latency_s",
    "max_stage_latency_s",
    "stage_latency_s",
    "stage_weight_bytes_per_gpu",
    "clock_mhz",
    "power_w",
    "activation_bytes_per_gpu",
)
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_AGREEMENT = 0.005
"""Relative difference that rounding may make between a sum of stages and the stated latency."""
_MAX_STAGES = 256
_MAX_FAULTS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One row. Tuples run over the stages; None stands for what the row does not state.

    ``is_derived`` says that the stage latencies were made of their sum and maximum.
    """

    line: int
    model: str
    tensor_parallel: int
    num_stages: int
    batch: int
    clock_mhz: int | None
    stage_latency_s: tuple[float, ...]
    is_derived: bool
    stage_weight_bytes: tuple[int, ...] | None
    stage_power_w: tuple[float, ...] | None
    stage_activation_bytes: tuple[int, ...] | None

    @property
    def place(self) -> str:
        """What the row measures, in words."""
        shape = f"tensor parallelism {self.tensor_parallel} × {self.num_stages} stages"
        clock = "" if self.clock_mhz is None else f" at {self.clock_mhz} MHz"
        return f"{self.model}, {shape}, batch {self.batch}{clock}"


@dataclass(slots=True)
class TableFaults:
    """Collects the faults of one table."""

    file: str
    found: list[Fault] = field(default_factory=list)

    def add(self, line: int, column: str, message: str) -> None:
        """Note a fault; ``column`` is empty where it is the row's."""
        self.found.append(Fault(file=self.file, key=column, line=line, message=message))

    def raise_any(self) -> None:
        """Raise the InputError that lists what was found (the first 50), by line."""
        faults = sorted(self.found, key=lambda fault: fault.line)
        if not faults:
            return
        remedy = "Correct these rows; docs/formats.md describes the columns of a table of latencies."
        if len(faults) > _MAX_FAULTS:
            rest = len(faults) - _MAX_FAULTS
            remedy = f"These are the first {_MAX_FAULTS}; {rest} more follow. {remedy}"
        raise InputError.from_faults(faults[:_MAX_FAULTS], remedy)


def read_latency_table(path: Path) -> tuple[Measurement, ...]:
    """Read a table; InputError lists all its faults with row, column and value."""
    faults = TableFaults(str(path))
    reader = csv.reader(io.StringIO(read_text(path).removeprefix("\ufeff"), newline=""), strict=True)
    rows: list[Measurement] = []
    try:
        header = _header(next(reader, []), faults)
        faults.raise_any()
        for fields in reader:
            if any(cell.strip() for cell in fields):
                row = _row(reader.line_num, header, fields, faults)
                rows += [] if row is None else [row]
    except csv.Error as error:
        faults.add(reader.line_num, "", f"not valid CSV: {error}")
    if not rows and not faults.found:
        faults.add(1, "", "no row follows the header")
    faults.raise_any()
    return tuple(rows)


def _header(cells: Sequence[str], faults: TableFaults) -> tuple[str, ...]:
    header = tuple(cell.strip() for cell in cells)
    for name in dict.fromkeys(header):
        if name not in KEYS + VALUES:
            known = ", ".join(KEYS + VALUES)
            faults.add(1, name, f"no such column (known are {known})")
        elif header.count(name) > 1:
            faults.add(1, name, "the column stands twice")
    for name in KEYS:
        if name not in header:
            faults.add(1, name, "this column is required")
    if "stage_latency_s" not in header and not {"latency_s", "max_stage_latency_s"} <= set(header):
        faults.add(1, "stage_latency_s", "is required, or latency_s and max_stage_latency_s")
    return header


def _row(line: int, header: Sequence[str], fields: Sequence[str], faults: TableFaults) -> Measurement | None:
    """Read a row; None, with the faults noted, where it has any."""
    if len(fields) != len(header):
        faults.add(line, "", f"expected {len(header)} fields, found {len(fields)}")
        return None
    num_faults = len(faults.found)
    cells = _Cells(line, {name: cell.strip() for name, cell in zip(header, fields, strict=True)}, faults)
    model = cells.values.get("model", "")
    if not _MODEL.fullmatch(model):
        faults.add(line, "model", f"must be a name of letters, digits, dots and dashes (found {model!r})")
    num_stages = cells.count("pipeline_parallel", _MAX_STAGES)
    stages, is_derived = _stages(cells, num_stages)
    weights = cells.numbers("stage_weight_bytes_per_gpu", num_stages)
    activations = cells.numbers("activation_bytes_per_gpu", num_stages, or_one=True)
    row = Measurement(
        line=line,
        model=model,
        tensor_parallel=cells.count("tensor_parallel"),
        num_stages=num_stages,
        batch=cells.count("batch_size"),
        clock_mhz=cells.count("clock_mhz") if cells.values.get("clock_mhz") else None,
        stage_latency_s=stages,
        is_derived=is_derived,
        stage_weight_bytes=None if weights is None else tuple(map(math.ceil, weights)),
        stage_power_w=cells.numbers("power_w", num_stages, or_one=True),
        stage_activation_bytes=None if activations is None else tuple(map(math.ceil, activations)),
    )
    return row if len(faults.found) == num_faults else None


def _stages(cells: _Cells, num_stages: int) -> tuple[tuple[float, ...], bool]:
    """Latency of every stage, and whether it was made of sum and maximum."""
    totals, longest = cells.numbers("latency_s", 1), cells.numbers("max_stage_latency_s", 1)
    stages = cells.numbers("stage_latency_s", num_stages)
    if stages is None:
        if not totals or not longest:
            if not cells.values.get("stage_latency_s"):
                message = "is empty; state it, or latency_s and max_stage_latency_s"
                cells.faults.add(cells.line, "stage_latency_s", message)
            return (), False
        stages, is_derived = _stages_between(totals[0], longest[0], num_stages), True
    else:
        is_derived = False
    if min(stages) <= 0:
        cells.faults.add(cells.line, "max_stage_latency_s", f"leaves no time for the other {num_stages - 1}")
    for name, stated, found in (
        ("latency_s", totals, math.fsum(stages)),
        ("max_stage_latency_s", longest, max(stages)),
    ):
        if stated and abs(found - stated[0]) > _AGREEMENT * stated[0]:
            cells.faults.add(
                cells.line, name, f"{stated[0]:g} does not fit {num_stages} stages (theirs is {found:g})"
            )
    return stages, is_derived


def _stages_between(total_s: float, longest_s: float, num_stages: int) -> tuple[float, ...]:
    """Stages of that sum and maximum: the longest first, the others equal.

    Where no such stages exist, their sum or maximum is another.
    """
    if num_stages <= 1:
        return (total_s,)
    rest_s = max((total_s - longest_s) / (num_stages - 1), 0.0)
    return (longest_s, *(rest_s,) * (num_stages - 1))


@dataclass(frozen=True, slots=True)
class _Cells:
    """The cells of one row, read as numbers; a fault is noted where one is none."""

    line: int
    values: Mapping[str, str]
    faults: TableFaults

    def count(self, column: str, largest: int = 10**6) -> int:
        """Read a positive whole number; 0, with a fault, where it is none."""
        text = self.values.get(column, "")
        if text.isascii() and text.isdigit() and len(text) <= len(str(largest)) and 1 <= int(text) <= largest:
            return int(text)
        self.faults.add(self.line, column, f"must be a whole number from 1 to {largest:,} (found {text!r})")
        return 0

    def numbers(self, column: str, num_stages: int, *, or_one: bool = False) -> tuple[float, ...] | None:
        """Read one positive number for each stage (or a single one for all); None where the cell is empty."""
        texts = self.values.get(column, "").split()
        if not texts or num_stages == 0:
            return None
        if len(texts) != num_stages and not (or_one and len(texts) == 1):
            noun = "number" if num_stages == 1 else "numbers"
            message = f"expected {num_stages} {noun}, one for each stage; found {len(texts)}"
            self.faults.add(self.line, column, message)
            return None
        found = []
        for text in texts:
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not (math.isfinite(value) and value > 0):
                self.faults.add(self.line, column, f"must be a number above 0 (found {text!r})")
                return None
            found.append(value)
        return tuple(found * num_stages if len(found) < num_stages else found)
