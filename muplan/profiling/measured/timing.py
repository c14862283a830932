"""How long a run takes: warm-up until it is steady, then samples, their median and its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from muplan.profiling.measured.load import Load

_LEAST_WARM_UP_S, _MOST_WARM_UP_S, _STEADY = 0.02, 1.0, 0.05
"""Warm up for so long at least, and until two goes differ by no more than this share; but no longer."""
_MOST_WARM_UPS = 20
SAMPLE_S = 2e-3
"""A sample is of enough runs to last so long."""
_MOST_SAMPLES, _LEAST_SAMPLES, _SAMPLING_S = 11, 6, 2.0
"""Samples of each point; fewer where that many would take longer. Six are the fewest with a 95 % interval."""
_MISSED = 0.025
"""Probability with which the interval may lie above, and below, the median."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The median time of a run with its 95 % confidence interval, seconds."""

    median_s: float
    low_s: float
    high_s: float

    @property
    def spread(self) -> float:
        """Half the interval's width over the median."""
        return (self.high_s - self.low_s) / 2 / self.median_s


def time_load(load: Load, sample_s: float = SAMPLE_S) -> Timing:
    """Warm up until runs last equally long, then take samples of so many seconds."""
    before_s = warmed_s = load.time_s(1)
    for _ in range(_MOST_WARM_UPS):
        count = _runs_of_a_sample(before_s, sample_s)
        now_s = load.time_s(count)
        warmed_s += now_s * count
        is_steady = abs(now_s / before_s - 1.0) <= _STEADY and warmed_s >= _LEAST_WARM_UP_S
        before_s = now_s
        if is_steady or warmed_s >= _MOST_WARM_UP_S:
            break
    count = _runs_of_a_sample(before_s, sample_s)
    affordable = math.floor(_SAMPLING_S / (before_s * count))
    num_samples = min(max(affordable, _LEAST_SAMPLES), _MOST_SAMPLES)
    return timing_of([load.time_s(count) for _ in range(num_samples)])


def _runs_of_a_sample(run_s: float, sample_s: float) -> int:
    return max(1, round(sample_s / max(run_s, 1e-7)))


def timing_of(samples_s: Sequence[float]) -> Timing:
    """Return the median and the order statistics that hold it with 95 % or more, whatever the distribution.

    Of ``n`` samples, the ``k``-th smallest and the ``k``-th largest hold the median unless fewer than ``k``
    fall on one side of it: a binomial tail (David and Nagaraja, Order Statistics, §7.1).
    """
    ordered, count = np.sort(np.asarray(samples_s)), len(samples_s)
    tail, rank = 0.0, 0
    while rank < count // 2:
        tail += math.comb(count, rank) / 2**count
        if tail > _MISSED:
            break
        rank += 1
    outer = max(rank - 1, 0)
    return Timing(
        median_s=float(np.median(ordered)), low_s=float(ordered[outer]), high_s=float(ordered[-1 - outer])
    )
