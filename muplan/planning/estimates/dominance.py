"""Dominance: which choices may be left out because another one is as good, but for a stated tolerance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from muplan.planning.estimates.clusters import Floats

TOLERANCE = 0.02
"""Part by which a choice that is offered may be worse, in any figure, than one that is left out."""


def covered(
    points: Floats, by: Floats, usable_bytes: float, tolerance: float = TOLERANCE
) -> NDArray[np.bool_]:
    """Whether each point has one among ``by`` that is nowhere worse by more than the tolerance.

    Weights may differ by the tolerance's part of the memory: services share it, so what counts is how
    much of it they take. The other figures may differ by that part of themselves.

    Parameters
    ----------
    points, by
        Figures of choices, the last of them the weights of the fullest stage; shapes (points, figures) and
        (others, figures).
    """
    most = points * (1.0 + tolerance)
    most[:, -1] = points[:, -1] + tolerance * usable_bytes
    no_worse = np.all(by[None, :, :] <= most[:, None, :], axis=-1)
    return np.asarray(np.any(no_worse, axis=-1))


def cover(points: Floats, usable_bytes: float, tolerance: float = TOLERANCE) -> list[int]:
    """Places of the points to keep so that they cover all; of those that cover each other the first."""
    kept: list[int] = []
    left = np.arange(len(points))
    while len(left):
        first = left[0]
        kept.append(int(first))
        left = left[~covered(points[left], points[first][None], usable_bytes, tolerance)]
    return kept
