"""Measured points as tables over batches and tokens, gaps filled in from their neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from muplan.errors import DeviceError
from muplan.profile import PhaseGrid, Profile
from muplan.profiling.measured.points import Measurement, Point

Floats = NDArray[np.float64]

_MOST_REFUSED = 0.5
"""Of a cluster type's points in a phase; with more, a profile would be filled in more than measured."""


def latency_table(
    modelled: Profile, number: int, grid: PhaseGrid, measured: Mapping[Point, Measurement], anchor: int
) -> Floats:
    """Return a cluster type's latencies at the running clock, seconds; shape (batches, tokens).

    A refused point gets the modelled latency, times what its neighbours took over theirs.

    Raises
    ------
    DeviceError
        More than half of the points were refused.
    """

    def believed(made: Measurement) -> float:
        return np.nan if made.refused else made.latency_s

    taken_s = _on(grid, number, measured, believed)
    gaps = np.isnan(taken_s)
    if gaps.mean() > _MOST_REFUSED:
        reasons = {reason for made in measured.values() for reason in made.refused}
        raise DeviceError(
            f"{modelled.model}, {modelled.cluster_types[number].name}, {grid.phase}: {gaps.sum()} of"
            f" {gaps.size} points were refused ({'; '.join(sorted(reasons)[:3])}).",
            "Let nothing else run on the device, let it cool, and measure again: delete the points kept"
            " beside the profile first.",
        )
    predicted_s = np.array(_table(modelled, number, grid))[anchor]
    return np.asarray(predicted_s * completed(taken_s / predicted_s, grid))


def _table(modelled: Profile, number: int, grid: PhaseGrid) -> tuple[tuple[tuple[float, ...], ...], ...]:
    return modelled.cluster_types[number].tables[modelled.phases.index(grid)].latency_s[0]


def power_table(
    modelled_w: Floats, number: int, grid: PhaseGrid, measured: Mapping[Point, Measurement]
) -> Floats | None:
    """Return a cluster type's power at the running clock, watts; None where it was not read anywhere.

    Between the points read, power is linear in the logarithms. Where one of those was refused, or the
    cluster takes too little of the time there to be read, it is modelled.
    """

    def believed(made: Measurement) -> float:
        watts = made.believed_power_w
        return np.nan if watts is None else watts

    drawn_w = _on(grid, number, measured, believed)
    known = ~np.isnan(drawn_w)
    if not known.any():
        return None
    rows, columns = np.flatnonzero(known.any(axis=1)), np.flatnonzero(known.any(axis=0))
    corners = np.where(known, drawn_w, modelled_w)[np.ix_(rows, columns)]
    log_tokens, log_batches = np.log(grid.tokens), np.log(grid.batches)
    wide = np.array([np.interp(log_tokens, log_tokens[columns], np.log(line)) for line in corners])
    whole = np.array([np.interp(log_batches, log_batches[rows], line) for line in wide.T]).T
    return np.asarray(np.exp(whole))


def completed(ratios: Floats, grid: PhaseGrid) -> Floats:
    """Fill the gaps (NaN) of positive ratios, shape (batches, tokens), from what stands around them.

    A gap gets the geometric mean of what its row and its column say: there, values are linear in the
    logarithms between points, and the nearest outside; the median where row and column are empty.
    """
    known = ~np.isnan(ratios)
    if known.all():
        return ratios
    logs = np.log(ratios)
    log_tokens, log_batches = np.log(grid.tokens), np.log(grid.batches)
    along = np.stack(
        [
            np.array([_bridged(log_tokens, row) for row in logs]),
            np.array([_bridged(log_batches, column) for column in logs.T]).T,
        ]
    )
    has_any = ~np.isnan(along)
    total = np.where(has_any, along, 0.0).sum(axis=0)
    count = has_any.sum(axis=0)
    guess = np.where(count > 0, total / np.maximum(count, 1), np.median(logs[known]))
    return np.asarray(np.exp(np.where(known, logs, guess)))


def _bridged(abscissae: Floats, ordinates: Floats) -> Floats:
    known = ~np.isnan(ordinates)
    if not known.any():
        return np.full(ordinates.shape, np.nan)
    return np.asarray(np.interp(abscissae, abscissae[known], ordinates[known]))


def interpolation_errors(whole_s: Floats, batches: Sequence[int], tokens: Sequence[int]) -> Floats:
    """Return how far points are from what their neighbours on either side say, as a profile is looked up.

    One error for every point that has neighbours on both sides, along tokens and along batches.
    """
    along_tokens = _held_out(whole_s, np.log(tokens))
    along_batches = _held_out(whole_s.T, np.log(batches))
    return np.concatenate([along_tokens, along_batches])


def _held_out(values: Floats, log_points: Floats) -> Floats:
    """Errors along the last axis; ``values`` has two."""
    if len(log_points) < 3:
        return np.empty(0)
    share = (log_points[1:-1] - log_points[:-2]) / (log_points[2:] - log_points[:-2])
    predicted = values[:, :-2] ** (1.0 - share) * values[:, 2:] ** share
    return np.asarray(np.abs(predicted / values[:, 1:-1] - 1.0).ravel())


def _on(
    grid: PhaseGrid,
    number: int,
    measured: Mapping[Point, Measurement],
    value: Callable[[Measurement], float],
) -> Floats:
    """Put a value of every point on the grid."""
    return np.array(
        [
            [
                value(measured[Point(cluster_type=number, phase=grid.phase, batch=batch, tokens=tokens)])
                for tokens in grid.tokens
            ]
            for batch in grid.batches
        ]
    )
