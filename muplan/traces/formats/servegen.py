"""Request rates of production services as ServeGen has them (alibaba/ServeGen, arXiv 2505.09999)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from muplan.errors import InputError
from muplan.traces.processes import Piecewise
from muplan.traces.rows import Faults, lines_of, read_bytes, rows_of, seconds_of

_COLUMNS = ("model", "t_start_s", "requests_per_s")


def read_servegen_rates(
    path: Path, model: str, *, noise_cv: float = 0.0, interval_cv: float = 1.0
) -> Piecewise:
    """Read the rates of one service as a piecewise process.

    The CSV has the columns model, t_start_s and requests_per_s (others are not read): one line for each
    interval of each service, of equal length and in the order of time.

    Parameters
    ----------
    model
        The service, as the file names it.
    noise_cv, interval_cv
        What the rates do not tell: noise on them, and the variation of intervals at a constant rate.

    Raises
    ------
    InputError
        The file cannot be read, has faults (listed with their lines), or lacks the service.
    """
    faults = Faults(str(path))
    rows = list(rows_of(lines_of(read_bytes(path), path), 0, _COLUMNS, faults, optional=True))
    mine = [(line, row) for line, row in rows if row[0] == model]
    if not mine:
        names = ", ".join(dict.fromkeys(row[0] for _, row in rows))
        raise InputError(f"{path} has no model {model!r}.", f"It has {names}.")
    starts_s = [seconds_of(row[1], line, faults, "t_start_s") for line, row in mine]
    rates_rps = [seconds_of(row[2], line, faults, "requests_per_s") for line, row in mine]
    interval_s = starts_s[1] - starts_s[0] if len(mine) > 1 else 0.0
    for (line, row), (before_s, after_s) in zip(mine[1:], pairwise(starts_s), strict=True):
        if not after_s - before_s > 0.0 or abs(after_s - before_s - interval_s) > 1e-6 * interval_s:
            faults.add(line, "t_start_s", f"{row[1]} is not {interval_s:g} s after the interval above")
    faults.raise_any("Correct these lines; intervals are of equal length and in order.")
    if len(mine) < 2 or not any(rates_rps):
        raise InputError(
            f"{path} has {len(mine)} intervals of {model!r} with a sum of {sum(rates_rps):g} requests/s.",
            "Name a service with at least two intervals, and requests in one of them.",
        )
    return Piecewise(
        rates_rps=tuple(rates_rps), interval_s=interval_s, noise_cv=noise_cv, interval_cv=interval_cv
    )
