"""Whether a group keeps up with what is asked of it, seen from its queue."""

from __future__ import annotations

from enum import StrEnum
from math import sqrt

import numpy as np

from muplan.serving.layout import Floats

_NUM_WINDOWS = 10
_SIGNIFICANCE = 2.33
"""Standard deviations of Kendall's statistic: one-sided 1 %."""
_GROWTH = 2.0
_SELDOM_EMPTY = 0.05


class Saturation(StrEnum):
    """A group's state over the measured period."""

    STABLE = "stable"  # the queue empties now and then
    BACKLOGGED = "backlogged"  # it does not grow, and hardly ever empties
    OVERLOADED = "overloaded"  # it grows: more comes than can be served


def saturation_of(arrival_s: Floats, start_s: Floats, *, begin_s: float, end_s: float) -> Saturation:
    """Judge a queue between two times.

    It is *overloaded* if the mean number waiting in ten equal windows rises (Mann, 1945; Kendall: one-sided
    1 %) and more than doubles from the first half to the second; else *backlogged* if nobody waits in less
    than 5 % of the time; else *stable*.

    Parameters
    ----------
    arrival_s, start_s
        When the requests came and when their service began; shape (requests,).
    """
    if len(arrival_s) == 0:
        return Saturation.STABLE
    times_s = np.concatenate([arrival_s, start_s])
    steps = np.concatenate([np.ones(len(arrival_s)), -np.ones(len(start_s))])
    order = np.argsort(times_s, kind="stable")
    times_s, waiting = times_s[order], np.cumsum(steps[order])
    edges_s = np.linspace(begin_s, end_s, _NUM_WINDOWS + 1)
    means = np.diff(_integral(times_s, waiting, edges_s)) / np.diff(edges_s)
    first, second = means[: _NUM_WINDOWS // 2].mean(), means[_NUM_WINDOWS // 2 :].mean()
    if _rises(means) and second > _GROWTH * first:
        return Saturation.OVERLOADED
    empty_s = np.diff(_integral(times_s, (waiting == 0).astype(float), edges_s[[0, -1]], before=1.0))[0]
    return Saturation.BACKLOGGED if empty_s < _SELDOM_EMPTY * (end_s - begin_s) else Saturation.STABLE


def _integral(times_s: Floats, values: Floats, at_s: Floats, *, before: float = 0.0) -> Floats:
    """Integrate a step function, ``values[i]`` from ``times_s[i]`` on, up to each of ``at_s``."""
    areas = np.concatenate([[0.0], np.cumsum(values[:-1] * np.diff(times_s))])
    place = np.searchsorted(times_s, at_s, side="right") - 1
    inside = areas[place] + values[place] * (at_s - times_s[place])
    return np.where(place < 0, before * (at_s - times_s[0]), inside)


def _rises(means: Floats) -> bool:
    """Whether later means are larger than earlier ones, more often than chance would have it."""
    num = len(means)
    later = np.sign(means[None, :] - means[:, None])[np.triu_indices(num, 1)].sum()
    return bool(later > _SIGNIFICANCE * sqrt(num * (num - 1) * (2 * num + 5) / 18))
