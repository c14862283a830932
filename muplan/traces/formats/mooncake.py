"""Traces in Mooncake's form (kvcache-ai/Mooncake, FAST 2025): a JSON object on each line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from muplan.traces.formats.recorded import recorded_trace
from muplan.traces.rows import MAX_TOKENS, Faults, lines_of, read_bytes
from muplan.traces.trace import Trace

_LENGTHS = ("input_length", "output_length")


def import_mooncake(path: Path, service: str) -> Trace:
    """Read a JSONL file in Mooncake's form as the requests of one service.

    Of each object ``timestamp`` (milliseconds), ``input_length`` and ``output_length`` (tokens) are read.
    ``hash_ids``, which tell prompts that begin alike, are not: prefix caching is not modelled, every prompt
    counts whole.

    Parameters
    ----------
    service
        Name that the requests are given.

    Raises
    ------
    InputError
        The file cannot be read, or has faults; they are listed with their lines (the first 50).
    """
    faults = Faults(str(path))
    times_s, lengths = list[float](), list[tuple[int, ...]]()
    for line, text in enumerate(lines_of(read_bytes(path), path), start=1):
        if not text.strip():
            continue
        try:
            request = json.loads(text)
        except ValueError as error:
            faults.add(line, "", f"is no JSON ({error})")
            continue
        if not isinstance(request, dict):
            faults.add(line, "", "is no JSON object")
            continue
        times_s.append(_milliseconds(request, line, faults) / 1e3)
        lengths.append(tuple(_tokens(request, key, line, faults) for key in _LENGTHS))
    faults.raise_any(
        "Correct or remove these lines; each is an object with timestamp, input_length, output_length."
    )
    if not lengths:
        faults.add(1, "", "holds no request")
        faults.raise_any("Name a file with requests.")
    tokens = np.array(lengths, dtype=np.int32)
    return recorded_trace(
        path, (service,), np.array(times_s), np.zeros(len(tokens), dtype=np.int32), tokens[:, 0], tokens[:, 1]
    )


def _milliseconds(request: dict[str, Any], line: int, faults: Faults) -> float:
    value = request.get("timestamp")
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0:
        return float(value)
    found = f"must be finite and at least 0 (found {value!r})" if "timestamp" in request else "is missing"
    faults.add(line, "timestamp", found)
    return 0.0


def _tokens(request: dict[str, Any], key: str, line: int, faults: Faults) -> int:
    value = request.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_TOKENS:
        return value
    bounds = f"must be a whole number from 1 to {MAX_TOKENS} (found {value!r})"
    faults.add(line, key, bounds if key in request else "is missing")
    return 1
