"""Constants and curves that say where they come from."""

from __future__ import annotations

from enum import StrEnum
from functools import lru_cache
from itertools import pairwise
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from muplan.errors import InputError
from muplan.serde import Part

Floats = NDArray[np.float64]
Source = Annotated[str, Field(min_length=1)]


class Label(StrEnum):
    """How a number came to be."""

    MEASURED = "measured"
    DERIVED = "derived"
    ASSUMED = "assumed"


class Constant(Part):
    """A number with its label and source; the unit is in the name of the key that holds it."""

    value: float
    label: Label
    source: Source


class Curve(Part):
    """A piecewise linear curve through points of ascending abscissa.

    A look-up outside the points is refused, except on a side where the curve is stated to stay flat.

    Parameters
    ----------
    points
        Pairs (abscissa, ordinate), at least two, abscissae strictly ascending. The units are those
        that the owner of the curve names.
    flat_below, flat_above
        Whether the first (last) ordinate holds for every smaller (larger) abscissa.
    """

    points: Annotated[tuple[tuple[float, float], ...], Field(min_length=2)]
    label: Label
    source: Source
    flat_below: bool = False
    flat_above: bool = False

    @model_validator(mode="after")
    def _check_ascending(self) -> Curve:
        abscissae = [point[0] for point in self.points]
        for left, right in pairwise(abscissae):
            if right <= left:
                raise ValueError(f"the points must ascend: {right:g} follows {left:g}")
        return self

    @property
    def lowest(self) -> float:
        """The first abscissa."""
        return self.points[0][0]

    @property
    def highest(self) -> float:
        """The last abscissa."""
        return self.points[-1][0]

    def at(self, abscissa: ArrayLike) -> Floats:
        """Interpolate the ordinates at ``abscissa`` (any shape; the result has the same).

        Raises
        ------
        InputError
            An abscissa lies outside the points on a side that is not stated to be flat.
        """
        wanted = np.asarray(abscissa, dtype=np.float64)
        abscissae, ordinates = _columns(self.points)
        too_low = np.isnan(wanted) | ((wanted < abscissae[0]) & (not self.flat_below))
        refused = too_low | ((wanted > abscissae[-1]) & (not self.flat_above))
        if refused.any():
            first = wanted[refused].flat[0] if wanted.ndim else float(wanted)
            raise InputError(
                f"{first:g} lies outside the curve, known from {abscissae[0]:g} to {abscissae[-1]:g}.",
                "Stay inside that range, or extend the curve in the device file with its source.",
            )
        return np.asarray(np.interp(wanted, abscissae, ordinates), dtype=np.float64)


@lru_cache(maxsize=256)
def _columns(points: tuple[tuple[float, float], ...]) -> tuple[Floats, Floats]:
    table = np.array(points, dtype=np.float64)
    return np.ascontiguousarray(table[:, 0]), np.ascontiguousarray(table[:, 1])
