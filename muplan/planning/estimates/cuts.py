"""Contiguous cuts of a chain of clusters into stages: every one that no other beats.

An exact dynamic programme over prefixes of the chain. A label stands for a way to cut a prefix into
some number of stages; its three figures (transfer time, bottleneck, weights of the fullest stage) only
grow along the chain, so a label that another one beats in all three can be left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muplan.planning.estimates.clusters import Floats
from muplan.serving.compiled import allocating, compiled

Integers = NDArray[np.int64]

_EQUAL = 1.0 + 1e-9
"""Figures this close are equal: sums of the same terms in another order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A contiguous partition: all its transfers, its bottleneck, and the weights of its fullest stage."""

    stops: tuple[int, ...]
    """For each stage, the index after its last cluster; the last is the number of clusters."""
    transfer_s: float
    bottleneck_s: float
    weight_bytes: float


def cut_fronts(times_s: Floats, handover_s: Floats, weight_bytes: Floats) -> tuple[tuple[Cut, ...], ...]:
    """All cuts that no other one of as many stages beats in transfers, bottleneck and fullest stage.

    Parameters
    ----------
    times_s, weight_bytes
        Of every cluster; shape (clusters,).
    handover_s
        Time to hand the output of a cluster from a stage to the next; shape (most stages − 1, clusters).

    Returns
    -------
    tuple of tuple of Cut
        For 1, 2, … stages, up to the most; by ascending bottleneck, then transfers. Empty where there
        are fewer clusters than stages. Of equal cuts one stands for all.
    """
    handover_s = np.concatenate([np.zeros((1, len(times_s))), handover_s])  # none before the first stage
    figures, links, ends = _labels(_segments(times_s), _segments(weight_bytes), handover_s)
    fronts = []
    for first, last in ends:
        order = sorted(range(first, last), key=lambda label: (figures[label, 1], figures[label, 0]))
        fronts.append(tuple(_cut(label, figures, links) for label in order))
    return tuple(fronts)


def _segments(values: Floats) -> Floats:
    """Sums over clusters ``start ≤ index < stop``; shape (clusters + 1, clusters + 1), by start and stop."""
    prefix = np.concatenate(([0.0], np.cumsum(values)))
    return prefix[None, :] - prefix[:, None]


def _cut(label: int, figures: Floats, links: Integers) -> Cut:
    transfer_s, bottleneck_s, weight_bytes = figures[label].tolist()
    stops: list[int] = []
    while label > 0:
        stops.append(int(links[label, 0]))
        label = int(links[label, 1])
    return Cut(
        stops=tuple(reversed(stops)),
        transfer_s=transfer_s,
        bottleneck_s=bottleneck_s,
        weight_bytes=weight_bytes,
    )


@allocating
def _labels(time_s: Floats, weight_bytes: Floats, handover_s: Floats) -> tuple[Floats, Integers, Integers]:
    """Labels of every prefix and number of stages; the first is that of no stage at all.

    Returns
    -------
    figures, links
        Of each label: transfers, bottleneck, fullest stage; the end of its prefix, and the label it extends.
    ends
        First and last label of the whole chain, for each number of stages; shape (most stages, 2).
    """
    num, most = len(time_s) - 1, len(handover_s)
    figures, figure = np.zeros((1024, 3)), np.zeros(3)
    links = np.full((1024, 2), -1)  # end of the prefix, label extended
    ends, count = np.zeros((most, 2), dtype=np.int64), 1
    before = np.zeros((num + 1, 2), dtype=np.int64)  # first and last label of each prefix, a stage less
    before[0, 1] = 1
    for stage in range(most):
        here = np.zeros((num + 1, 2), dtype=np.int64)
        for end in range(stage + 1, num + 1):
            first = count
            for start in range(stage, end):
                for label in range(before[start, 0], before[start, 1]):
                    figure[0] = figures[label, 0] + handover_s[stage, start - 1]
                    figure[1] = max(figures[label, 1], time_s[start, end])
                    figure[2] = max(figures[label, 2], weight_bytes[start, end])
                    if _is_beaten(figure, figures, first, count):
                        continue
                    count = _without_beaten(figure, figures, links, first, count)
                    if count == len(figures):
                        figures = _twice(figures)
                        links = _twice(links)
                    figures[count], links[count, 0], links[count, 1] = figure, end, label
                    count += 1
            here[end, 0], here[end, 1] = first, count
        before = here
        ends[stage] = here[num]
    return figures, links, ends


@compiled
def _is_beaten(figure: Floats, figures: Floats, first: int, last: int) -> bool:
    """Whether one of the labels from ``first`` on is as good in all figures."""
    for other in range(first, last):
        if (
            figures[other, 0] <= figure[0] * _EQUAL
            and figures[other, 1] <= figure[1] * _EQUAL
            and figures[other, 2] <= figure[2] * _EQUAL
        ):
            return True
    return False


@compiled
def _without_beaten(figure: Floats, figures: Floats, links: Integers, first: int, last: int) -> int:
    """Drop the labels from ``first`` on that a new one beats; returns where the rest end."""
    kept = first
    for other in range(first, last):
        if not (
            figure[0] <= figures[other, 0] * _EQUAL
            and figure[1] <= figures[other, 1] * _EQUAL
            and figure[2] <= figures[other, 2] * _EQUAL
        ):
            for column in range(3):
                figures[kept, column] = figures[other, column]
            links[kept, 0], links[kept, 1] = links[other, 0], links[other, 1]
            kept += 1
    return kept


@allocating
def _twice(table: NDArray[Any]) -> NDArray[Any]:
    """The table with room for as many rows again."""
    longer = np.zeros((2 * len(table), table.shape[1]), dtype=table.dtype)
    longer[: len(table)] = table
    return longer
